"""A base and its adapter as one model: tensors under the names of Hugging Face, one in memory at a time.

LoRA: W + s B A. DoRA: m ∘ (W + s B A) / ‖W + s B A‖, the norm of each row. Both are computed in float32 from the
weight as it is stored (a packed one dequantized) and rounded once, to the type that is asked for.

Shapes: I inputs, O outputs, E experts, R rank.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxmath.errors import InputError
from mlxmath.models.load import Loaded
from mlxmath.models.lora.inject import adapter_arrays
from mlxmath.models.lora.layers import ADAPTER_PARAMETERS, AdapterLayer, DoRALinear, ExpertsLoRALinear, linear_shape
from mlxmath.weights.dtypes import FLOATING, prevailing
from mlxmath.weights.hub import open_weights
from mlxmath.weights.remade import expert_name
from mlxmath.weights.tensors import TensorRef


@dataclass(frozen=True)
class Part:
    """A stored layer of the model, without its adapter if it has one."""

    path: str
    """In mlx_lm's model."""
    name: str
    """The stored weight's, as Hugging Face has it."""
    layer: nn.Module
    adapter: AdapterLayer | None
    dtype: str
    """That its weight is stored in; of a packed one that of its scales, of most others where these are no floats."""
    stored: Mapping[str, TensorRef]
    """Its arrays on the disk, by their names in the layer."""

    @property
    def is_packed(self) -> bool:
        """Whether it is quantized."""
        return "scales" in self.layer

    @property
    def shape(self) -> tuple[int, ...]:
        """(O, I), or (E, O, I), of its dense weight; an embedding's is (tokens, width)."""
        *rows, columns = self.layer.weight.shape
        return (*rows, columns * 32 // self.layer.bits if self.is_packed else columns)

    def weight(self, expert: int | None = None) -> mx.array:
        """Its weight in float32, merged; of one expert (O, I) if that is asked for."""
        base = self.base_weight(expert)
        if self.adapter is None:
            return base
        return merged(base, self.adapter, expert)

    def base_weight(self, expert: int | None = None) -> mx.array:
        """The same without the adapter: dequantized with scales in float32.

        It is read from the disk: what the model reads, it keeps. (Of experts, which are asked for one by one, their
        stack is kept.)
        """
        names = [name for name in ("weight", "scales", "biases") if self.layer.get(name) is not None]
        if expert is None and self.stored.keys() >= {*names}:
            arrays = [array_of(self.stored[name]) for name in names]
        else:
            arrays = [self.layer[name] if expert is None else self.layer[name][expert] for name in names]
        if not self.is_packed:
            return arrays[0].astype(mx.float32)
        if "global_scale" in self.layer:
            raise InputError(f"--to: {self.name} is quantized with a scale of the whole weight, which is not exported.")
        layer = self.layer
        return mx.dequantize(
            *arrays, group_size=layer.group_size, bits=layer.bits, mode=getattr(layer, "mode", "affine")
        ).astype(mx.float32)


@dataclass(frozen=True)
class Dense:
    """A tensor of the merged model."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """That it is, or was, stored in."""
    make: Callable[[], mx.array]
    """Its values, in float32 where they are floating-point numbers."""


def merged(weight: mx.array, adapter: AdapterLayer, expert: int | None = None) -> mx.array:
    """What an adapter makes of its layer's weight, float32: (O, I), of experts (E, O, I) or one's (O, I)."""
    if isinstance(adapter, ExpertsLoRALinear):
        a, b = (array if expert is None else array[expert] for array in (adapter.lora_a, adapter.lora_b))
        return weight + adapter.scale * (b @ a)
    merged_OI = weight + (adapter.lora_a @ (adapter.scale * adapter.lora_b)).T
    if isinstance(adapter, DoRALinear):
        norm_O1 = mx.sqrt(mx.maximum(mx.square(merged_OI).sum(axis=1, keepdims=True), 1e-30))
        merged_OI = adapter.m[:, None] * (merged_OI / norm_O1)
    return merged_OI


def parts_of(loaded: Loaded) -> dict[str, Part]:
    """The layers whose weight is stored, packed or with an adapter or both, by the weight's stored name."""
    modules = dict(loaded.model.named_modules())
    adapters = {path: module for path, module in modules.items() if isinstance(module, AdapterLayer)}
    usual = prevailing((ref.dtype, ref.num_elements) for ref in loaded.stored.values())
    found = {}
    for name, ref in loaded.stored.items():
        path, _, part = name.rpartition(".")
        adapter = adapters.get(path)
        layer = adapter.linear if adapter is not None else modules.get(path)
        if part == "weight" and layer is not None and (adapter is not None or "scales" in layer):
            stored = {
                name: loaded.stored[f"{path}.{name}"]
                for name in ("weight", "scales", "biases")
                if f"{path}.{name}" in loaded.stored
            }
            dtype = stored["scales"].dtype if "scales" in stored else ref.dtype
            found[ref.name] = Part(path, ref.name, layer, adapter, dtype if dtype in FLOATING else usual, stored)
    return found


def merged_tensors(loaded: Loaded, folder: Path) -> list[Dense]:
    """All tensors of a model with its adapter merged, none of them packed, in the order in which they are stored.

    Args:
        loaded: `Original.load()`.
        folder: of the converted model.

    Raises:
        InputError: an adapter is on layers that mlx_lm puts together in a way that cannot be undone.
    """
    parts, found = parts_of(loaded), list[Dense]()
    pieces = expert_pieces(loaded, folder) | trained_whole(loaded)
    packed = {f"{part.name.removesuffix('.weight')}.{name}" for part in parts.values() if part.is_packed
              for name in ("scales", "biases")}  # fmt: skip
    for name, ref in open_weights(folder).tensors.items():
        if part := parts.get(name):
            found += _experts_apart(part) if ".switch_" in name else [_whole(part)]
        elif name not in packed:
            found.append(Dense(name, ref.shape, ref.dtype, pieces.get(name) or partial(array_of, ref)))
    return found


def trained_whole(loaded: Loaded) -> dict[str, Callable[[], mx.array]]:
    """Of a full fine-tuning: how to make the stored tensors that were trained themselves."""
    made: dict[str, Callable[[], mx.array]] = {}
    for name, array in adapter_arrays(loaded.model).items():
        if name.rpartition(".")[2] in ADAPTER_PARAMETERS:
            continue
        if name not in loaded.stored:
            raise InputError(
                f"--to: {name}, which was trained, is put together by mlx_lm of several stored tensors, and cannot be "
                "taken apart again. mlx_lm reads the adapter folder as it is."
            )
        made[loaded.stored[name].name] = partial(array.astype, mx.float32)
    return made


def _whole(part: Part) -> Dense:
    return Dense(part.name, part.shape, part.dtype, part.weight)


def _experts_apart(part: Part) -> Iterator[Dense]:
    """mlx_lm's stack of experts as Hugging Face's checkpoints have them: one after the other."""
    for expert in range(part.shape[0]):
        yield Dense(expert_name(part.path, expert), part.shape[1:], part.dtype, partial(part.weight, expert))


def expert_pieces(loaded: Loaded, folder: Path) -> dict[str, Callable[[], mx.array]]:
    """The stored tensors of experts that mlx_lm stacks on loading and that have adapters: how to make them, merged.

    Which expert a stored tensor is, and which rows of it, is found by its values.

    Raises:
        InputError: they are not in the stack as they are stored.
    """
    taken = {ref.name for ref in loaded.stored.values()}
    tensors = {name: ref for name, ref in open_weights(folder).tensors.items() if name not in taken}
    added: dict[str, list[_Piece]] = {}
    for path, adapter in loaded.model.named_modules():
        if not isinstance(adapter, AdapterLayer) or f"{path}.weight" in loaded.stored:
            continue
        home = path.partition(".switch_")[0]
        near = {name: ref for name, ref in tensors.items() if name.startswith(f"{home}.")}
        places = _places(adapter, near)
        if not isinstance(adapter, ExpertsLoRALinear) or places is None:
            raise InputError(
                f"--to: the weight of {path} is put together by mlx_lm of several stored ones, and its adapter cannot "
                "be merged into these. Export the adapter alone, or train on other layers."
            )
        for name, rows, expert in places:
            added.setdefault(name, []).append(_Piece(adapter, rows, expert))
    return {name: partial(_with, tensors[name], pieces) for name, pieces in added.items()}


@dataclass(frozen=True)
class _Piece:
    """What an adapter changes in a stored tensor."""

    adapter: ExpertsLoRALinear
    rows: slice
    expert: int | None
    """None: of all of them."""


def _with(ref: TensorRef, pieces: list[_Piece]) -> mx.array:
    whole = array_of(ref)
    for piece in pieces:
        whole[..., piece.rows, :] = merged(whole[..., piece.rows, :], piece.adapter, piece.expert)
    return whole


def _places(adapter: AdapterLayer, tensors: Mapping[str, TensorRef]) -> list[tuple[str, slice, int | None]] | None:
    """Where the stack of an adapter's experts lies: (stored name, rows, expert); None if that is not found."""
    weight_EOI = adapter.linear.weight
    inputs, outputs = linear_shape(adapter.linear)
    experts = weight_EOI.shape[0]
    for name, ref in tensors.items():
        for start in (0, outputs):
            if ref.shape[0] == experts and len(ref.shape) == 3 and ref.shape[1] >= start + outputs:
                rows = slice(start, start + outputs)
                if ref.shape[2] == inputs and mx.array_equal(array_of(ref)[:, rows], weight_EOI).item():
                    return [(name, rows, None)]
    found: dict[int, str] = {}
    for name, ref in tensors.items():
        if ref.shape == (outputs, inputs):
            same = mx.all(weight_EOI == array_of(ref)[None], axis=(1, 2)).tolist()
            expert = next((e for e, is_same in enumerate(same) if is_same and e not in found), None)
            if expert is not None:
                found[expert] = name
    if len(found) != experts:
        return None
    return [(name, slice(0, outputs), expert) for expert, name in found.items()]


def array_of(ref: TensorRef) -> mx.array:
    """A stored tensor; in float32 where it holds floating-point numbers."""
    values = ref.read()
    if ref.dtype == "bfloat16":
        return mx.array(values).view(mx.bfloat16).astype(mx.float32)
    return mx.array(values.astype(np.float32) if ref.dtype in FLOATING else values)
