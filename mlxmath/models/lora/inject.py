"""Puts adapters into a model, or opens its blocks for full fine-tuning, and finds what trains."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlxmath.config.schema import LoraConfig
from mlxmath.errors import InputError
from mlxmath.models.lora.layers import AdapterLayer, adapter_layer
from mlxmath.models.lora.targets import Layer, Targets, first_block, natural, resolve_targets


@dataclass(frozen=True)
class Injected:
    """What trains: `keys` as mlx_lm's adapter_config.json lists them (relative to a block) and the counts."""

    kind: str
    """mlx_lm's fine_tune_type: "lora", "dora" or "full"."""
    keys: tuple[str, ...]
    num_modules: int
    num_trainable: int
    num_total: int
    notes: tuple[str, ...] = ()
    """What people should know of the choice, a line each."""

    def __str__(self) -> str:
        percent = 100 * self.num_trainable / self.num_total
        what = {"lora": "LoRA adapters", "dora": "DoRA adapters", "full": "layers"}[self.kind]
        return (
            f"{self.num_modules} {what}{' on' if self.kind != 'full' else ':'} {', '.join(self.keys)}: "
            f"{self.num_trainable:,} of {self.num_total:,} parameters train ({percent:.3g} %)"
        )


def inject(model: nn.Module, config: LoraConfig, targets: Targets | None = None) -> Injected:
    """Put adapters on the layers that `config` chooses; freeze everything but them.

    `targets` stands in for what `resolve_targets` finds.

    Raises:
        InputError: see `resolve_targets`.
    """
    targets = targets or resolve_targets(model, config)
    put_adapters(model, targets, config.variant, config.rank, config.scale, config.dropout)
    return Injected(
        kind=config.variant,
        keys=targets.keys,
        num_modules=len(targets.layers),
        num_trainable=sum(array.size for array in adapter_arrays(model).values()),
        num_total=_num_parameters(model),
        notes=targets.notes,
    )


def put_adapters(
    model: nn.Module, targets: Targets, variant: str, rank: int, scale: float, dropout: float = 0.0
) -> None:
    """Replace layers by adapter layers around them; freeze everything but the adapters."""
    put_each(model, [(layer, variant, rank, scale, dropout) for layer in targets.layers])


def put_each(model: nn.Module, chosen: Sequence[tuple[Layer, str, int, float, float]]) -> None:
    """The same, with variant, rank, scale and dropout of each layer."""
    modules = dict(model.named_modules())
    model.freeze()
    layers: list[tuple[str, Any]] = [
        (layer.path, adapter_layer(modules[layer.path], variant, rank, scale, dropout))
        for layer, variant, rank, scale, dropout in chosen
    ]
    model.update_modules(tree_unflatten(layers))


def open_blocks(model: nn.Module, num_layers: int) -> Injected:
    """Full fine-tuning: every parameter of the last `num_layers` blocks (-1: all) trains; everything else is frozen.

    The embeddings, the final norm and the head stay frozen, as in mlx_lm: the loss can then do without all logits at
    once, and rare tokens keep what they mean.

    Raises:
        InputError: a block is quantized: packed weights have no gradient.
    """
    model.freeze()
    blocks = model.layers[first_block(model, num_layers) :]
    modules = [(key, module) for block in blocks for key, module in block.named_modules() if not module.children()]
    if any(_is_packed(module) for _, module in modules):
        raise InputError(
            "--full: the model is quantized and packed weights cannot be trained. Convert it without --quantize "
            "(another --mlx-path), or train adapters (without --full)."
        )
    for block in blocks:
        block.unfreeze()
        for module in block.modules():  # tables of whole numbers have no gradient
            module.freeze(keys=[name for name, value in module.items() if _is_whole(value)], recurse=False)
    return Injected(
        kind="full",
        keys=tuple(sorted({key for key, module in modules if module.trainable_parameters()}, key=natural)),
        num_modules=sum(bool(module.trainable_parameters()) for _, module in modules),
        num_trainable=sum(array.size for array in adapter_arrays(model).values()),
        num_total=_num_parameters(model),
    )


def adapter_arrays(model: nn.Module) -> dict[str, mx.array]:
    """The arrays that train by their full names, for example `model.layers.0.self_attn.q_proj.lora_a`."""
    return dict(tree_flatten(model.trainable_parameters()))


def _num_parameters(model: nn.Module) -> int:
    """Parameters as people count them: a packed 4-bit word holds eight."""
    total = 0
    for _, module in model.named_modules():
        for name, array in module.items():
            if not isinstance(array, mx.array) or name.startswith("_"):
                continue
            if _is_packed(module) and name == "weight":
                total += array.size * 32 // module.bits
            elif not (isinstance(module, AdapterLayer) and name == "scale"):
                total += array.size
    return total


def _is_packed(module: nn.Module) -> bool:
    """Whether a layer's weight is quantized, whatever the kind of layer."""
    return hasattr(module, "bits") and "scales" in module


def _is_whole(value: Any) -> bool:
    return isinstance(value, mx.array) and not mx.issubdtype(value.dtype, mx.inexact)
