"""Adapters in PEFT's form, taken in: adapter_config.json with a peft_type, adapter_model.safetensors or .bin.

PEFT computes y = W x + s B A x with A (R, I) and B (O, R), the transposes of ours, and s = alpha / R or, for rsLoRA,
alpha / √R; R and alpha can be each layer's own. Of experts, stacked as one parameter (E, O, I), A is (E R, I), expert
after expert, and B is (O, R E), rank after rank. DoRA's magnitude (O,) is the same in both.

Shapes: I inputs, O outputs, E experts, R rank.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxmath.errors import MlxmathError
from mlxmath.models.lora.layers import AdapterLayer
from mlxmath.models.lora.peft_config import CONFIG, WEIGHTS, PeftConfig, weights_path
from mlxmath.models.lora.peft_experts import DOWN, GATE, GATE_UP, apart, home_in_peft
from mlxmath.models.lora.targets import Layer, linear_layers
from mlxmath.weights.dtypes import FLOATING
from mlxmath.weights.safetensor import open_safetensors
from mlxmath.weights.tensors import TensorRef
from mlxmath.weights.torch_bin import check_storages, open_torch

_NAME = re.compile(
    r"(?:base_model\.model\.)?(.{1,300})\.(lora_A|lora_B|lora_magnitude_vector)(?:\.default)?(?:\.weight)?"
)
_PARTS = {"lora_A": "lora_a", "lora_B": "lora_b", "lora_magnitude_vector": "m"}


@dataclass(frozen=True)
class Adapted:
    """A layer's adapter."""

    layer: Layer
    rank: int
    scale: float
    arrays: Mapping[str, mx.array]
    """`lora_a`, `lora_b` and in DoRA `m`, float32, as our layers have them."""


def read_peft(folder: Path, model: nn.Module) -> tuple[PeftConfig, list[Adapted]]:
    """An adapter in PEFT's form, for the layers of a model.

    Args:
        folder: of the adapter.
        model: the base, with adapters or without.

    Raises:
        MlxmathError: a file is missing or damaged, something cannot be taken in, or tensors are missing, unknown or
            misshapen (all of them are named).
    """
    config = PeftConfig.read(folder)
    path = weights_path(folder)
    if path is None:
        raise MlxmathError(f"{folder} holds no adapter: {WEIGHTS[0]} is missing.")
    if path.suffix == ".bin":
        opened = open_torch(path)
        check_storages(path, opened.storages)
        tensors = opened.tensors
    else:
        tensors = open_safetensors(path)
    layers = _layers(model)
    problems: list[str] = []
    parts: dict[str, dict[str, TensorRef]] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            problems.append(f"{name[:200]} is no part of a LoRA adapter")
        elif match[2] in parts.setdefault(match[1], {}):
            problems.append(f"{name} is there twice")
        else:
            parts[match[1]][match[2]] = tensor
    found: list[Adapted] = []
    for name, refs in parts.items():
        if experts := _experts(name, config, layers, parts):
            wrong = list(_wrong_experts(name, refs, experts, config))
            problems += wrong
            found += [] if wrong else _adapted_experts(refs, experts, config)
            continue
        layer = layers.get(_plain(name))
        if layer is None:
            problems.append(f"{name} is no linear layer of this model")
        elif wrong := list(_wrong(name, refs, layer, config)):
            problems += wrong
        else:
            arrays = {_PARTS[part]: _array(ref) for part, ref in refs.items()}
            ours = {part: array if part == "m" else mx.contiguous(array.T) for part, array in arrays.items()}
            found.append(Adapted(layer, config.rank_of(name), config.scale_of(name), ours))
    counts = Counter(one.layer.path for one in found)
    problems += [f"{path} has {count} adapters" for path, count in counts.items() if count > 1]
    if not parts and not problems:
        problems.append("there is no tensor")
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise MlxmathError(
            f"{path} does not fit this model and the {CONFIG} beside it: {shown}. It was made for {config.base}; is "
            "that the base?"
        )
    return config, found


def _layers(model: nn.Module) -> dict[str, Layer]:
    """The linear layers by their paths in Hugging Face's model; those within adapters by the adapters' paths."""
    adapted = {path for path, module in model.named_modules() if isinstance(module, AdapterLayer)}
    found = {}
    for layer in linear_layers(model):
        outer = layer.path.removesuffix(".linear")
        path = outer if outer != layer.path and outer in adapted else layer.path
        found[_plain(path)] = replace(layer, path=path)
    return found


def _plain(path: str) -> str:
    """A path without the part that wrappers of language models put in: at one place in mlx_lm, at another elsewhere."""
    return ".".join(part for part in path.split(".") if part != "language_model")


def _wrong(name: str, refs: Mapping[str, TensorRef], layer: Layer, config: PeftConfig) -> Iterator[str]:
    """What is wrong with a layer's tensors."""
    rank = config.rank_of(name)
    expected: dict[str, tuple[int, ...]] = {"lora_A": (rank, layer.inputs), "lora_B": (layer.outputs, rank)}
    if config.is_dora:
        expected["lora_magnitude_vector"] = (layer.outputs,)
    if layer.num_experts is not None:
        yield f"{name} has experts, whose adapters are none of a single layer"
        return
    yield from _misfits(name, refs, expected)


def _misfits(name: str, refs: Mapping[str, TensorRef], expected: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Tensors that are missing, misshapen, no numbers or too many."""
    for part, shape in expected.items():
        if part not in refs:
            yield f"{name}.{part} is missing"
        elif refs[part].shape != shape:
            yield f"{refs[part].name} has shape {refs[part].shape}, expected {shape}"
        elif refs[part].dtype not in FLOATING:
            yield f"{refs[part].name} holds {refs[part].dtype}, expected floating-point numbers"
    for part in refs.keys() - expected.keys():
        yield f"{refs[part].name} is not expected (DoRA's magnitudes need use_dora)"


class _Experts(NamedTuple):
    """A parameter of stacked experts."""

    name: str
    """PEFT's, of the parameter."""
    layers: Mapping[str, Layer]
    """Ours, by the last part of their paths."""


def _experts(
    name: str, config: PeftConfig, layers: Mapping[str, Layer], parts: Mapping[str, object]
) -> _Experts | None:
    """Which parameter a wrapper of experts adapts; None where `name` is none of such a wrapper."""
    home = name.removesuffix(".base_layer")
    ours = {path.rpartition(".")[2]: each for path, each in layers.items() if home_in_peft(path) == _plain(home)}
    if not ours:
        return None
    targeted = [each for each in (GATE_UP, DOWN) if any(_ends(f"{home}.{each}", end) for end in config.parameters)]
    is_outer = name == home and f"{home}.base_layer" in parts
    if not targeted or (len(targeted) == 1) == (name != home or is_outer):
        return None
    return _Experts(f"{home}.{targeted[-1] if name == home else targeted[0]}", ours)


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _wrong_experts(name: str, refs: Mapping[str, TensorRef], experts: _Experts, config: PeftConfig) -> Iterator[str]:
    """What is wrong with the tensors of an adapter of experts."""
    rank, part = config.rank_of(experts.name), experts.name.rpartition(".")[2]
    one = experts.layers[DOWN if part == DOWN else GATE]
    count, outputs = one.num_experts or 1, one.outputs * (1 if part == DOWN else 2)
    expected = {"lora_A": (count * rank, one.inputs), "lora_B": (outputs, rank * count)}
    if config.is_dora:
        yield f"{name} has experts, for which neither PEFT nor mlx_lm has DoRA"
    yield from _misfits(name, refs, expected)


def _adapted_experts(refs: Mapping[str, TensorRef], experts: _Experts, config: PeftConfig) -> list[Adapted]:
    count = experts.layers[DOWN].num_experts or 1
    part = experts.name.rpartition(".")[2]
    pairs = apart(part, _array(refs["lora_A"]), _array(refs["lora_B"]), count)
    scale = config.scale_of(experts.name)
    return [
        Adapted(experts.layers[key], pair.a_ERI.shape[1], scale, {"lora_a": pair.a_ERI, "lora_b": pair.b_EOR})
        for key, pair in pairs.items()
    ]


def _array(ref: TensorRef) -> mx.array:
    """A tensor in float32."""
    values = ref.read()
    if ref.dtype == "bfloat16":
        return mx.array(values).view(mx.bfloat16).astype(mx.float32)
    return mx.array(values.astype(np.float32))
