"""`--to mlx`: the fused model, as mlx_lm loads it.

Into a quantized base an adapter is not simply rounded: a step between two values of 4 bits is as large as what an
adapter moves a weight. So each fused layer gets the fewest bits with which rounding moves its weight by at most a
twentieth of what the adapter moves it, or stays in 16 bits; the other layers stay as they are. --dequantize writes all
layers in 16 bits; --requantize rounds the fused ones to the bits that they had, and says what that costs.

The measure is of weights: ‖round(W') - W'‖ / ‖W' - W‖ with W' the merged weight; see `--check` for what becomes of
answers.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mlx.core as mx

from mlxmath.exporting.check import Answers, ModelAnswers
from mlxmath.exporting.files import Output, one_tensor, write_companions, write_tensors
from mlxmath.exporting.merge import Dense, Part, array_of, expert_pieces, merged_tensors, parts_of
from mlxmath.exporting.original import Job, refuse_flags
from mlxmath.generation.model import open_model
from mlxmath.runtime.console import Progress, size
from mlxmath.runtime.files import read_json
from mlxmath.weights.dtypes import Array, stored_as
from mlxmath.weights.hub import open_weights
from mlxmath.weights.layout import check_built
from mlxmath.weights.packing import Packing
from mlxmath.weights.quantize import as_numpy
from mlxmath.weights.tensors import TensorRef

LARGEST_SHARE = 0.05
"""Of what an adapter moves a weight: what rounding may move it by default. Logits lose up to twice that share of what
the adapter does to them (on the demo 0.11 where it was 0.07 of the weights)."""
_MUCH = 0.2
_MORE_BITS = (5, 6, 8)
_QUANTIZATION = ("quantization", "quantization_config")


@dataclass(frozen=True)
class Rounding:
    """How a fused layer is stored. `bits` None: in 16."""

    part: Part
    bits: int | None
    group_size: int
    dtype: str
    moved: float
    """‖W' - W‖², what the adapter moves."""
    error: float
    """‖round(W') - W'‖²."""

    @property
    def settings(self) -> dict[str, Any] | bool:
        """What config.json says of the layer."""
        if self.bits is None:
            return False
        return {"group_size": self.group_size, "bits": self.bits, "mode": "affine"}


@dataclass(frozen=True)
class Requantized(Output):
    """A fused layer, quantized again."""

    part: Part
    bits: int
    group_size: int

    def blocks(self) -> Iterator[Array]:
        """Packed weight, scales, biases."""
        dtype = getattr(mx, self.tensors[1][1])
        for array in mx.quantize(self.part.weight().astype(dtype), self.group_size, self.bits):
            yield as_numpy(array)
        mx.clear_cache()


@dataclass(frozen=True)
class AsStored(Output):
    """A tensor that is not touched."""

    ref: TensorRef = field(repr=False)

    def blocks(self) -> Iterator[Array]:
        """Its bytes."""
        yield from self.ref.blocks()


def write(job: Job) -> list[str]:
    """Write the fused model; see `Target`."""
    original, settings = job.original, job.settings
    refuse_flags(settings, "adapter_only", "gguf_type")
    loaded = original.load()
    config = read_json(original.model / "config.json")
    quantization = next((config[key] for key in _QUANTIZATION if isinstance(config.get(key), dict)), None)
    stored_bytes = sum(ref.num_bytes for ref in open_weights(original.model).tensors.values())
    notes = []
    if quantization is None or settings.dequantize:
        outputs: list[Output] = [
            one_tensor(each, settings.export_dtype) for each in merged_tensors(loaded, original.model)
        ]
        config = {key: value for key, value in config.items() if key not in _QUANTIZATION}
    else:
        parts = {name: part for name, part in parts_of(loaded).items() if part.adapter is not None and part.is_packed}
        roundings = _roundings(job, parts)
        outputs = _outputs(job, loaded, roundings)
        quantization |= {rounding.part.path: rounding.settings for rounding in roundings.values()}
        config |= dict.fromkeys(_QUANTIZATION, quantization)
        notes += _notes(list(roundings.values()))
    num_bytes = sum(output.num_bytes for output in outputs)
    notes.insert(0, f"weights of {size(num_bytes)}, the base's are {size(stored_bytes)}")
    check_built(config, [tensor for output in outputs for tensor in output.tensors], original.model, asked=False)
    write_tensors(job.folder, outputs, form="mlx")
    write_companions(job.folder, original, config)
    return notes


def reopened(job: Job) -> Answers:
    """The fused model."""
    return ModelAnswers(open_model(job.folder, job.original.dtype, None, job.original.template))


def _roundings(job: Job, parts: Mapping[str, Part]) -> dict[str, Rounding]:
    """How each fused layer is stored."""
    found = {}
    with Progress("measuring", len(parts)) as progress:
        for name, part in parts.items():
            found[name] = rounding_of(part, job.settings.export_dtype, requantize=job.settings.requantize)
            progress.update()
            mx.clear_cache()
    return found


def rounding_of(part: Part, dtype: str = "auto", *, requantize: bool = False) -> Rounding:
    """The fewest bits, from those that a layer has, with which rounding is small beside what its adapter does.

    Args:
        part: a packed layer with an adapter.
        dtype: of scales, and of a weight that is not packed ("auto": as before).
        requantize: take the bits that it has, whatever rounding costs.
    """
    base, wanted = part.base_weight(), part.weight()
    moved = float(mx.square(wanted - base).sum())
    kept = stored_as(part.dtype, dtype) if part.dtype in ("float32", "float16", "bfloat16") else "bfloat16"
    layer = part.layer
    is_affine = getattr(layer, "mode", "affine") == "affine"
    group_size = layer.group_size if is_affine else 32
    choices = [layer.bits, *(bits for bits in _MORE_BITS if bits > layer.bits)]
    rounding = None
    for bits in choices[:1] if requantize else choices:
        packed = mx.quantize(wanted.astype(getattr(mx, kept)), group_size, bits)
        again = mx.dequantize(packed[0], *(each.astype(mx.float32) for each in packed[1:]), group_size, bits)
        error = float(mx.square(again - wanted).sum())
        rounding = Rounding(part, bits, group_size, kept, moved, error)
        if error <= LARGEST_SHARE**2 * moved:
            return rounding
    if requantize and rounding is not None:
        return rounding
    error = float(mx.square(wanted.astype(getattr(mx, kept)).astype(mx.float32) - wanted).sum())
    return Rounding(part, None, group_size, kept, moved, error)


def _outputs(job: Job, loaded: Any, roundings: Mapping[str, Rounding]) -> list[Output]:
    """What is written: fused layers as decided, merged ones that were not packed, the rest as it is."""
    original, dtype = job.original, job.settings.export_dtype
    merged: dict[str, Callable[[], mx.array]] = {
        name: part.weight for name, part in parts_of(loaded).items() if part.adapter is not None
    }
    merged |= expert_pieces(loaded, original.model)
    gone = {f"{name.removesuffix('.weight')}.{end}" for name in roundings for end in ("scales", "biases")}
    outputs: list[Output] = []
    for name, ref in open_weights(original.model).tensors.items():
        if rounding := roundings.get(name):
            outputs.append(_rounded(rounding))
        elif name in gone:
            continue
        elif name in merged:
            outputs.append(one_tensor(Dense(name, ref.shape, ref.dtype, merged[name]), dtype))
        elif dtype == "auto" or stored_as(ref.dtype, dtype) == ref.dtype:
            outputs.append(AsStored(((name, ref.dtype, ref.shape),), ref))
        else:
            outputs.append(one_tensor(Dense(name, ref.shape, ref.dtype, partial(array_of, ref)), dtype))
    return outputs


def _rounded(rounding: Rounding) -> Output:
    part = rounding.part
    if rounding.bits is None:
        return one_tensor(Dense(part.name, part.shape, rounding.dtype, part.weight), rounding.dtype)
    tensors = Packing(rounding.bits, rounding.group_size).declared(part.name, rounding.dtype, part.shape)
    return Requantized(tuple(tensors), part, rounding.bits, rounding.group_size)


def _notes(roundings: list[Rounding]) -> list[str]:
    """How the fused layers are stored, and what rounding costs."""
    by_bits: dict[int | None, list[Rounding]] = {}
    for rounding in roundings:
        by_bits.setdefault(rounding.bits, []).append(rounding)
    found = [
        f"{len(each)} fused layers in {bits or 16} bits: rounding moves their weights by {share(each):.2g} of what the "
        "adapter moves them"
        for bits, each in sorted(by_bits.items(), key=lambda item: item[0] or 16)
    ]
    if any(bits and share(each) > _MUCH for bits, each in by_bits.items()):
        found.append("much of the adapter is lost by this rounding; without --requantize it is kept")
    return found


def share(roundings: list[Rounding]) -> float:
    """‖round(W') - W'‖ / ‖W' - W‖ over some layers."""
    moved = sum(each.moved for each in roundings)
    return math.sqrt(sum(each.error for each in roundings) / moved) if moved else 0.0
