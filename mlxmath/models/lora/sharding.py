"""A model too large for one device, spread over several processes: for inference and evaluation.

`tensor`: every process holds a part of every layer, as mlx_lm's own `shard` splits it: a projection's rows, or its
columns and a sum over the processes. `pipeline`: every process holds some of the blocks. Either way each process goes
through the whole forward pass and gets the same logits, so they all draw the same tokens.

An adapter is split with its layer. For rows of W, with W and B split: y_p = W_p x + s B_p A x. For columns:
y = Σ_p W_p x_p + s B Σ_p A_p x_p, where the second sum is of rank-many numbers a token. Where the model itself sums
what its experts give, the parts W_p x_p + s B A_p x_p are left to that sum.

Shapes: I inputs, O outputs, R rank; a part of I or O is one process's.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers.distributed import shard_inplace
from mlx.utils import tree_flatten, tree_unflatten

from mlxmath.errors import InputError
from mlxmath.models.load import Loaded, check_finite, load_model
from mlxmath.models.lora.adapter import load_adapter
from mlxmath.models.lora.layers import (
    EXPERTS,
    LINEARS,
    AdapterLayer,
    DoRALinear,
    ExpertsLoRALinear,
    LoRALinear,
    linear_shape,
)
from mlxmath.runtime.launch import launched

Sharding = Literal["tensor", "pipeline"]
SHARDINGS: tuple[Sharding, ...] = ("tensor", "pipeline")
_SHARDING_FUNCTIONS = ("shard_linear", "shard_inplace")
"""By which mlx_lm's models split their layers, by their names there."""


@dataclass(frozen=True)
class _Cut:
    """How a model split a layer of its own."""

    shape: tuple[int, int] | None
    """(inputs, outputs) that it had then: some models repeat rows first."""
    layer: nn.Module
    """What became of it."""
    sharding: Any
    """ "all-to-sharded" (rows), "sharded-to-all" (columns), or a function."""
    segments: Any
    sums: bool
    """Whether the layer sums over the processes itself."""


class SummedLoRALinear(LoRALinear):
    """LoRA on a layer whose columns, and so the rows of `lora_a`, are split over the processes."""

    def __call__(self, x_BLI: mx.array) -> mx.array:
        """Apply the layer: (B, L, part of I) to (B, L, O)."""
        a_IR, b_RO = self.lora_a.astype(x_BLI.dtype), (self.scale * self.lora_b).astype(x_BLI.dtype)
        low_BLR = mx.distributed.all_sum(x_BLI @ a_IR, group=self.linear.group)
        return mx.addmm(self.linear(x_BLI), low_BLR, b_RO)


def load_sharded(
    folder: Path,
    dtype: str,
    sharding: Sharding,
    group: mx.distributed.Group,
    adapter: Path | None = None,
    base_fingerprint: str | None = None,
) -> tuple[Loaded, dict[str, Any]]:
    """Load this process's part of a model, and of an adapter on it.

    Args:
        folder: the whole model, on each machine.
        dtype: see `load_model`.
        sharding: how it is spread.
        group: the processes.
        adapter: an adapter folder.
        base_fingerprint: see `load_adapter`.

    Returns:
        The model, and adapter_config.json (empty without an adapter).

    Raises:
        InputError: the architecture, its sizes or the adapter cannot be spread in this way over so many processes.
        MlxmathError: model or adapter do not load.
    """
    is_alone = group.size() == 1
    loaded = load_model(folder, dtype, lazy=not is_alone)
    record = {} if adapter is None else load_adapter(loaded.model, adapter, base_fingerprint)
    if is_alone:
        loaded.model.eval()
        return loaded, record
    spread = _by_tensor if sharding == "tensor" else _by_block
    spread(loaded.model, loaded.config, group)
    loaded.model.is_spread = True  # for who would leave a pass early, or make several at once
    for number, block in enumerate(
        loaded.model.layers
    ):  # one after the other: a part is cut out of the whole, which is forgotten then
        mx.eval(block.parameters())
        check_finite(folder, dict(tree_flatten(block.parameters(), f".layers.{number}")))
    mx.eval(loaded.model.parameters())
    check_finite(folder, {name: a for name, a in tree_flatten(loaded.model.parameters()) if ".layers." not in name})
    loaded.model.eval()
    return loaded, record


def ways(model: nn.Module) -> tuple[Sharding, ...]:
    """How mlx_lm can spread a model of this architecture."""
    found: dict[Sharding, bool] = {
        "tensor": hasattr(model, "shard"),
        "pipeline": hasattr(getattr(model, "model", None), "pipeline"),
    }
    return tuple(name for name, there in found.items() if there)


def _by_tensor(model: nn.Module, config: dict[str, Any], group: mx.distributed.Group) -> None:
    _check("tensor", model, config)
    size = group.size()

    def refused(name: str, number: int) -> InputError:
        return InputError(
            f"--shard tensor: the model's {name}, {number}, does not divide by {size} processes. Start another number "
            f"of them{', or use --shard pipeline' if 'pipeline' in ways(model) else ''}."
        )

    for name in ("num_attention_heads", "num_key_value_heads"):
        if int(config.get(name) or size) % size:
            raise refused(name, config[name])
    heads = _heads(model)
    adapters = {name: module for name, module in model.named_modules() if isinstance(module, AdapterLayer)}
    whole = {name: linear_shape(adapter.linear) for name, adapter in adapters.items()}
    model.update_modules(tree_unflatten([(name, adapter.linear) for name, adapter in adapters.items()]))
    try:
        with _cuts_noted() as cuts:
            model.shard(group)
    except (AssertionError, ValueError) as error:
        reason = str(error).strip().removesuffix(".")
        raise InputError(f"--shard tensor: {reason}. Start another number of processes.") from error
    for name, number in _heads(model).items():  # mlx_lm rounds them down
        is_repeated = number == 1 and size % heads[name] == 0
        if number not in (heads[name], heads[name] / size) and not is_repeated:
            raise refused(name, heads[name])
    layers = dict(model.named_modules())
    for name, adapter in adapters.items():
        cut = cuts.get(id(adapter.linear))
        if whole[name] != (cut.shape if cut else layers.get(name) is adapter.linear and linear_shape(adapter.linear)):
            raise InputError(
                f"--shard tensor: mlx_lm splits {name} in a way of its own, which its adapter cannot follow. "
                "Use --shard pipeline if the model has it, or fuse the adapter (`mlx_lm.fuse`) first."
            )
        if cut:
            _cut_adapter(name, adapter, cut, group)
    model.update_modules(tree_unflatten(list(adapters.items())))


def _heads(model: nn.Module) -> dict[str, int]:
    """The numbers of heads that a model's modules know, by name."""
    return {
        f"{path}.{name}": number
        for path, module in model.named_modules()
        for name, number in vars(module).items()
        if "heads" in name and type(number) is int
    }


def _by_block(model: nn.Module, config: dict[str, Any], group: mx.distributed.Group) -> None:
    _check("pipeline", model, config)
    if len(model.model.layers) < group.size():
        raise InputError(
            f"--shard pipeline: the model has {len(model.model.layers)} blocks, and there are {group.size()} processes."
        )
    model.model.pipeline(group)


def _check(sharding: Sharding, model: nn.Module, config: dict[str, Any]) -> None:
    launch = launched()
    sends = launch is None or launch.backend != "nccl"
    there = [way for way in ways(model) if sends or way != "pipeline"]
    if sharding not in there:
        kind = config.get("model_type", type(model).__name__)
        instead = f"use --shard {there[0]}" if there else "it runs on one device only; --quantize 4 makes it smaller"
        if sharding in ways(model):
            raise InputError(
                "--shard pipeline: MLX's nccl backend sends nothing from one process to the next, as from block to "
                f"block; {instead}."
            )
        raise InputError(f"--shard {sharding}: mlx_lm does not spread {kind} models in this way; {instead}.")


@contextmanager
def _cuts_noted() -> Iterator[dict[int, _Cut]]:
    """Note how mlx_lm's models split their layers, by the layer's id."""
    cuts: dict[int, _Cut] = {}

    def noting(shard: Callable[..., Any], *, sums: bool) -> Callable[..., Any]:
        def note(module: nn.Module, sharding: Any, *, segments: Any = 1, group: Any = None) -> Any:
            shape = linear_shape(module) if isinstance(module, LINEARS + EXPERTS) else None
            result = shard(module, sharding, segments=segments, group=group)
            cuts[id(module)] = _Cut(shape, result if sums else module, sharding, segments, sums)
            return result

        return note

    originals = [
        (module, function, getattr(module, function)) for name, module in list(sys.modules.items())
        for function in _SHARDING_FUNCTIONS if name.startswith("mlx_lm.models.") and hasattr(module, function)
    ]  # fmt: skip
    try:
        for home, function, original in originals:
            setattr(home, function, noting(original, sums=function == "shard_linear"))
        yield cuts
    finally:
        for home, function, original in originals:
            setattr(home, function, original)


def _cut_adapter(name: str, adapter: AdapterLayer, cut: _Cut, group: mx.distributed.Group) -> None:
    """Split an adapter as its layer was split."""
    if not isinstance(cut.sharding, str):
        raise InputError(f"--shard tensor: the adapter on {name} cannot be spread; fuse it (`mlx_lm.fuse`) first.")
    is_transposed = isinstance(adapter, LoRALinear)  # its arrays are (I, R) and (R, O); those of experts lie as W does

    def part(array: mx.array) -> mx.array:
        """What the process keeps of an array that is laid out like the layer's weight."""
        holder = nn.Module()
        holder.weight = array
        shard_inplace(holder, cut.sharding, segments=cut.segments, group=group)
        return holder.weight

    def part_of(array: mx.array) -> mx.array:
        return part(array.T).T if is_transposed else part(array)

    if cut.sharding == "sharded-to-all":
        if isinstance(adapter, DoRALinear):
            raise InputError(
                "--shard tensor: DoRA on a layer whose columns are split (o_proj, down_proj) needs the norms of "
                "whole rows. Use --shard pipeline, or fuse the adapter (`mlx_lm.fuse`) first."
            )
        adapter.lora_a = part_of(adapter.lora_a)
        if cut.sums:
            assert not isinstance(adapter, ExpertsLoRALinear)
            adapter.__class__ = SummedLoRALinear
    else:
        adapter.lora_b = part_of(adapter.lora_b)
        if isinstance(adapter, DoRALinear):
            adapter.m = part(adapter.m[:, None])[:, 0]
            adapter._weight_square_O = part(adapter._weight_square_O[:, None])[:, 0]
    adapter.linear = cut.layer
