"""Puts adapters into a model, or opens its blocks for full fine-tuning, and finds what trains."""

import difflib
import fnmatch
import re
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlxmath.config.schema import LoraConfig
from mlxmath.errors import InputError
from mlxmath.lora.layers import ADAPTER_LAYERS, LoRALinear, linear_shape

_BLOCK = re.compile(r"^(?:.*\.)?layers\.(\d+)\.(.+)$")


@dataclass(frozen=True)
class Injected:
    """What trains: `keys` as mlx_lm's adapter_config.json lists them (relative to a block) and the counts."""

    kind: str
    """mlx_lm's fine_tune_type: "lora", "dora" or "full"."""
    keys: tuple[str, ...]
    num_modules: int
    num_trainable: int
    num_total: int

    def __str__(self) -> str:
        percent = 100 * self.num_trainable / self.num_total
        what = {"lora": "LoRA adapters", "dora": "DoRA adapters", "full": "layers"}[self.kind]
        return (
            f"{self.num_modules} {what}{' on' if self.kind != 'full' else ':'} {', '.join(self.keys)}: "
            f"{self.num_trainable:,} of {self.num_total:,} parameters train ({percent:.3g} %)"
        )


def inject(model: nn.Module, config: LoraConfig, scale: float | None = None) -> Injected:
    """Replace the linear layers that `config.targets` names by LoRA layers; freeze everything but their adapters.

    `scale` stands in for `config.scale` where an adapter's file gives it.

    A target is a layer's name (`q_proj`), its path in a block (`self_attn.q_proj`), its full path (`lm_head`) or a
    glob over any of these (`*_proj`, `mlp.*`).

    Raises:
        InputError: a target matches nothing, or the rank exceeds a layer's smaller side.
    """
    first = _first_block(model, config.num_layers)
    layer_type, scale = ADAPTER_LAYERS[config.variant], config.scale if scale is None else scale
    linears = {
        path: module for path, module in model.named_modules() if isinstance(module, nn.Linear | nn.QuantizedLinear)
    }
    chosen = {path: key for target in config.targets for path, key in _matches(target, linears, first)}
    layers = []
    for path in chosen:
        smaller = min(linear_shape(linears[path]))
        if config.rank > smaller:
            raise InputError(f"--lora-rank {config.rank} exceeds the smaller side of {path} ({smaller}).")
    model.freeze()
    for path in sorted(chosen, key=_natural):
        layers.append((path, layer_type(linears[path], config.rank, scale, config.dropout)))
    model.update_modules(tree_unflatten(layers))
    return Injected(
        kind=config.variant,
        keys=tuple(sorted(set(chosen.values()), key=_natural)),
        num_modules=len(layers),
        num_trainable=sum(array.size for array in adapter_arrays(model).values()),
        num_total=_num_parameters(model),
    )


def open_blocks(model: nn.Module, num_layers: int) -> Injected:
    """Full fine-tuning: every parameter of the last `num_layers` blocks (-1: all) trains; everything else is frozen.

    The embeddings, the final norm and the head stay frozen, as in mlx_lm: the loss can then do without all logits at
    once, and rare tokens keep what they mean.

    Raises:
        InputError: a block is quantized: packed weights have no gradient.
    """
    model.freeze()
    blocks = model.layers[_first_block(model, num_layers) :]
    modules = [(key, module) for block in blocks for key, module in block.named_modules() if not module.children()]
    if any(isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding) for _, module in modules):
        raise InputError(
            "--full: the model is quantized and packed weights cannot be trained. Convert it without --quantize "
            "(another --mlx-path), or train adapters (without --full)."
        )
    for block in blocks:
        block.unfreeze()
    return Injected(
        kind="full",
        keys=tuple(sorted({key for key, module in modules if module.trainable_parameters()}, key=_natural)),
        num_modules=sum(bool(module.trainable_parameters()) for _, module in modules),
        num_trainable=sum(array.size for array in adapter_arrays(model).values()),
        num_total=_num_parameters(model),
    )


def adapter_arrays(model: nn.Module) -> dict[str, mx.array]:
    """The arrays that train by their full names, for example `model.layers.0.self_attn.q_proj.lora_a`."""
    return dict(tree_flatten(model.trainable_parameters()))


def _first_block(model: nn.Module, num_layers: int) -> int:
    return 0 if num_layers in (-1, 0) else max(0, len(model.layers) - num_layers)


def _matches(target: str, linears: dict[str, nn.Module], first_block: int) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    names: set[str] = set()
    for path in linears:
        block = _BLOCK.match(path)
        key = block[2] if block else path
        last = key.rsplit(".", 1)[-1]
        names |= {key, last}
        if any(fnmatch.fnmatchcase(name, target) for name in (path, key, last)) and (
            block is None or int(block[1]) >= first_block
        ):
            found.append((path, key))
    if "*" in target:  # a glob means the blocks' layers; the head only where it is named
        found = [(path, key) for path, key in found if _BLOCK.match(path)]
    if not found:
        near = difflib.get_close_matches(target, sorted(names), n=3, cutoff=0.4)
        known = sorted({name.rsplit(".", 1)[-1] for name in names}, key=_natural)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise InputError(
            f"--lora-targets: {target!r} matches no linear layer; {hint}This model has {', '.join(known)}."
        )
    return found


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _num_parameters(model: nn.Module) -> int:
    """Parameters as people count them: a packed 4-bit word holds eight."""
    total = 0
    for _, module in model.named_modules():
        for name, array in module.items():
            if not isinstance(array, mx.array) or name.startswith("_"):
                continue
            if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding) and name == "weight":
                total += array.size * 32 // module.bits
            elif not (isinstance(module, LoRALinear) and name == "scale"):
                total += array.size
    return total
