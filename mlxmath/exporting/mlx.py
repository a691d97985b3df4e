"""`--to mlx`: the fused model, as mlx_lm loads it.

Into a quantized base an adapter is not simply rounded: a step between two values of 4 bits is as large as what an
adapter moves a weight. So each fused layer gets the fewest bits with which rounding changes its outputs by at most a
tenth of what the adapter changes them, or stays in 16 bits; the other layers stay as they are. --dequantize writes all
layers in 16 bits; --requantize rounds the fused ones to the bits that they had, and says what that costs.

The measure is ‖X (round(W') - W')ᵀ‖ / ‖X (W' - W)ᵀ‖ with W' the merged weight and X the layer's inputs while the tuned
model reads a few problems; of experts, whose inputs differ, without X. See `--check` for what becomes of answers.

Shapes: N tokens, I inputs, O outputs.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlxmath.config.section import DEMO
from mlxmath.data.render import encode_prompt
from mlxmath.evaluation.benchmarks import load_benchmark
from mlxmath.exporting.check import Answers, ModelAnswers
from mlxmath.exporting.files import Output, one_tensor, write_companions, write_tensors
from mlxmath.exporting.merge import Dense, Part, array_of, expert_pieces, merged_tensors, parts_of, trained_whole
from mlxmath.exporting.original import Job, refuse_flags
from mlxmath.generation.model import load_generation_tokenizer, open_model
from mlxmath.models.load import suit
from mlxmath.models.lora.layers import LoRALinear
from mlxmath.runtime.console import Progress, size
from mlxmath.runtime.files import read_json
from mlxmath.weights.dtypes import Array, stored_as
from mlxmath.weights.hub import open_weights
from mlxmath.weights.layout import check_built
from mlxmath.weights.packing import Packing
from mlxmath.weights.quantize import as_numpy
from mlxmath.weights.tensors import TensorRef

LARGEST_SHARE = 0.1
"""Of what an adapter changes a layer's outputs: what rounding may change them by default. What a trained adapter
changes adds up over the layers, what rounding does not: on the demo 0.3 % of the effect on log-probabilities is lost.
Of a random adapter's effect on logits it is 11 %."""
_MUCH = 0.2
_PROBLEMS = 3
"""That the tuned model reads to give its layers inputs."""
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
    """‖X (W' - W)ᵀ‖², what the adapter changes."""
    error: float
    """‖X (round(W') - W')ᵀ‖²."""

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
        roundings = _roundings(job, loaded.model, parts)
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


def _roundings(job: Job, model: nn.Module, parts: Mapping[str, Part]) -> dict[str, Rounding]:
    """How each fused layer is stored."""
    original, found = job.original, {}
    tokenizer = load_generation_tokenizer(original.model)
    texts = [original.template.prompt(item.question) for item in load_benchmark(DEMO, _PROBLEMS).items]
    suit(model, "float32")
    inputs = inputs_of(model, [encode_prompt(tokenizer, text) for text in texts])
    with Progress("measuring", len(parts)) as progress:
        for name, part in parts.items():
            found[name] = rounding_of(
                part, inputs.get(part.path), job.settings.export_dtype, requantize=job.settings.requantize
            )
            progress.update()
            mx.clear_cache()
    return found


class _Recorder(nn.Module):
    """A layer that keeps what it is given."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._layer = layer
        self._inputs: list[mx.array] = []

    def __call__(self, x_BLI: mx.array) -> mx.array:
        """Apply the layer."""
        self._inputs.append(x_BLI.reshape(-1, x_BLI.shape[-1]))
        return self._layer(x_BLI)


def inputs_of(model: nn.Module, prompts: Sequence[Sequence[int]]) -> dict[str, mx.array]:
    """(N, I) in float32: what each plain layer with an adapter is given while the model reads some prompts; by path."""
    adapters = {path: each for path, each in model.named_modules() if isinstance(each, LoRALinear)}
    recorders = {path: _Recorder(adapter) for path, adapter in adapters.items()}
    model.eval()
    model.update_modules(tree_unflatten(list(recorders.items())))
    try:
        for prompt in prompts:
            mx.eval(model(mx.array([prompt])))
    finally:
        model.update_modules(tree_unflatten(list(adapters.items())))
    found = {path: mx.concatenate(each._inputs).astype(mx.float32) for path, each in recorders.items() if each._inputs}
    mx.eval(found)
    return found


def rounding_of(
    part: Part, inputs_NI: mx.array | None = None, dtype: str = "auto", *, requantize: bool = False
) -> Rounding:
    """The fewest bits, from those that a layer has, with which rounding is small beside what its adapter does.

    Args:
        part: a packed layer with an adapter.
        inputs_NI: what it is given; None looks at the weights alone.
        dtype: of scales, and of a weight that is not packed ("auto": as before).
        requantize: take the bits that it has, whatever rounding costs.
    """
    base, wanted = part.base_weight(), part.weight()

    def squared(change: mx.array) -> float:
        return float(mx.square(change if inputs_NI is None else inputs_NI @ change.T).sum())

    moved = squared(wanted - base)
    kept = stored_as(part.dtype, dtype)
    layer = part.layer
    is_affine = getattr(layer, "mode", "affine") == "affine"
    group_size = layer.group_size if is_affine else 32
    choices = [layer.bits, *(bits for bits in _MORE_BITS if bits > layer.bits)]
    rounding = None
    for bits in choices[:1] if requantize else choices:
        packed = mx.quantize(wanted.astype(getattr(mx, kept)), group_size, bits)
        again = mx.dequantize(packed[0], *(each.astype(mx.float32) for each in packed[1:]), group_size, bits)
        error = squared(again - wanted)
        rounding = Rounding(part, bits, group_size, kept, moved, error)
        if error <= LARGEST_SHARE**2 * moved:
            return rounding
    if requantize and rounding is not None:
        return rounding
    error = squared(wanted.astype(getattr(mx, kept)).astype(mx.float32) - wanted)
    return Rounding(part, None, group_size, kept, moved, error)


def _outputs(job: Job, loaded: Any, roundings: Mapping[str, Rounding]) -> list[Output]:
    """What is written: fused layers as decided, merged ones that were not packed, the rest as it is."""
    original, dtype = job.original, job.settings.export_dtype
    merged: dict[str, Callable[[], mx.array]] = {
        name: part.weight for name, part in parts_of(loaded).items() if part.adapter is not None
    }
    merged |= expert_pieces(loaded, original.model) | trained_whole(loaded)
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
    by_form: dict[str, list[Rounding]] = {}
    for rounding in sorted(roundings, key=lambda each: each.bits or 16):
        by_form.setdefault(f"{rounding.bits} bits" if rounding.bits else rounding.dtype, []).append(rounding)
    found = [
        f"{len(each)} fused layers in {form}: rounding changes their outputs by {share(each):.2g} of what "
        "the adapter changes them"
        for form, each in by_form.items()
    ]
    if any(each[0].bits and share(each) > _MUCH for each in by_form.values()):
        found.append("much of the adapter is lost by this rounding; without --requantize it is kept")
    if over := [each for each in roundings if each.bits is None and share([each]) > LARGEST_SHARE]:
        worst = max(share([each]) for each in over)
        found.append(
            f"{over[0].dtype} is too coarse for {len(over)} of them: up to {worst:.2g}, where {LARGEST_SHARE:g} is "
            "aimed at; --export-dtype float32 keeps the adapter"
        )
    return found


def share(roundings: list[Rounding]) -> float:
    """‖X (round(W') - W')ᵀ‖ / ‖X (W' - W)ᵀ‖ over some layers."""
    moved = sum(each.moved for each in roundings)
    return math.sqrt(sum(each.error for each in roundings) / moved) if moved else 0.0
