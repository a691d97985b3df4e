"""How a weight can be packed: MLX's modes, their bits and group sizes, and the bytes that this takes.

In mode `affine` each group of neighbours in a row has a scale and a bias of the model's type: w ≈ scale · q + bias,
with q of 2 to 8 bits. The others are floats with a shared scale of 8 bits a group (OCP Microscaling Formats 1.0, 2023;
NVIDIA's NVFP4): mxfp4 E2M1 and mxfp8 E4M3 with a power of two for 32 elements, nvfp4 E2M1 with an E4M3 number for 16.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlxmath.config.quantization import auto_bits
from mlxmath.config.schema import ModelConfig
from mlxmath.weights.dtypes import DTYPES
from mlxmath.weights.safetensor import Declared

AFFINE = "affine"
_GROUP_SIZE = 64
_BITS = 4
"""MLX's own, for a layer whose settings leave them out."""


@dataclass(frozen=True)
class Packing:
    """A form of a packed weight.

    Attributes:
        bits: of an element.
        group_size: neighbours in a row that share a scale.
        mode: MLX's name of the form.
    """

    bits: int
    group_size: int = _GROUP_SIZE
    mode: str = AFFINE

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Packing":
        """As config.json says it, of a model or of a layer."""
        return cls(settings.get("bits", _BITS), settings.get("group_size", _GROUP_SIZE), settings.get("mode", AFFINE))

    @property
    def settings(self) -> dict[str, Any]:
        """For config.json."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}

    def __str__(self) -> str:
        name = f"{self.bits} bits" if self.mode == AFFINE else self.mode
        return f"{name} in groups of {self.group_size}"

    def declared(self, name: str, dtype: str, shape: tuple[int, ...]) -> list[Declared]:
        """(name, dtype, shape) of what takes the place of a weight (..., in) of type `dtype`.

        Packed words (..., in · bits / 32), scales (..., in / group size) and, if affine, biases like the scales.
        """
        path = name.removesuffix(".weight")
        rows, columns = shape[:-1], shape[-1]
        groups = (*rows, columns // self.group_size)
        packed: list[Declared] = [(name, "uint32", (*rows, columns * self.bits // 32))]
        if self.mode != AFFINE:
            return [*packed, (f"{path}.scales", "uint8", groups)]
        return [*packed, (f"{path}.scales", dtype, groups), (f"{path}.biases", dtype, groups)]

    def num_bytes(self, dtype: str, shape: tuple[int, ...]) -> int:
        """That a weight (..., in) of type `dtype` takes in this form, scales and biases included."""
        return sum(DTYPES[kind].itemsize * math.prod(each) for _, kind, each in self.declared("", dtype, shape))

    def bits_a_weight(self, dtype: str) -> float:
        """Stored bits of a weight of type `dtype`, its share of scales and biases included."""
        return self.num_bytes(dtype, (1, self.group_size * 32)) / (self.group_size * 4)


@dataclass(frozen=True)
class Chosen:
    """A form for each layer.

    Attributes:
        packings: path of a layer -> its form.
        calibration: what it was chosen on, for people.
    """

    packings: Mapping[str, Packing]
    calibration: str


FLOATS = {"mxfp4": Packing(4, 32, "mxfp4"), "nvfp4": Packing(4, 16, "nvfp4"), "mxfp8": Packing(8, 32, "mxfp8")}
"""The forms whose bits and group size are fixed, by their mode."""
CANDIDATES = tuple(Packing(bits, size) for bits in (2, 3, 4, 5, 6, 8) for size in (32, 64, 128))
"""The forms that a choice by layer takes from."""


def asked_for(config: ModelConfig) -> Packing | None:
    """The form of all weights that `--quantize` asks for; None if it asks for none, or for one by layer."""
    if config.quantize is None or auto_bits(config.quantize) is not None:
        return None
    if isinstance(config.quantize, str):
        return FLOATS[config.quantize]
    return Packing(config.quantize, config.group_size or _GROUP_SIZE)


def planned_packing(config: ModelConfig) -> Packing | None:
    """The same for plans that are made before any choice by layer: the smallest affine form that takes no less.

    In groups of 32, which divide the rows of all layers that can be packed, and with scales of 16 bits.
    """
    target = auto_bits(config.quantize)
    if target is None:
        return asked_for(config)
    forms = [form for form in CANDIDATES if form.group_size == 32]
    return next((form for form in forms if form.bits_a_weight("bfloat16") >= target), forms[-1])


def held_otherwise(config: ModelConfig, quantization: Mapping[str, Any] | None, asked: str | None) -> bool:
    """Whether a model is not quantized as a configuration wants it.

    Args:
        config: its `quantize` and `group_size`.
        quantization: "quantization" of the model's config.json.
        asked: `--quantize` with which the model was made, as its manifest records it; None where that is unknown.
    """
    by_layer = auto_bits(asked) is not None
    if config.quantize is None:
        return quantization is not None
    if auto_bits(config.quantize) is not None:
        return asked != config.quantize
    return quantization is None or by_layer or asked_for(config) != Packing.of(quantization)
