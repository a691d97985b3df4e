"""Affine quantization by mlx_lm's rules, an array at a time.

mlx_lm decides by building the model: every layer with `to_quantized` whose last dimension the group size divides, less
those that the model's own predicate leaves out. A weight that the model takes as it is stored is quantized a block of
rows at a time: `mx.quantize` works row by row, so blocks give the same bits. One that mlx_lm puts together on loading
(experts, stacked) is made whole, quantized and forgotten before the next.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlxmath.errors import InputError
from mlxmath.weights.architecture import Built
from mlxmath.weights.dtypes import Array
from mlxmath.weights.tensors import TensorRef

MODE = "affine"
_BITS, _GROUP_SIZE = 4, 64
"""MLX's own, for a layer whose settings leave them out."""
CHUNK_ELEMENTS = 1 << 22
"""Elements of an array in memory that are quantized at once."""


@dataclass(frozen=True)
class QuantizationPlan:
    """
    Attributes:
        bits: name of each weight that is quantized -> its (bits, group size).
        settings: what config.json says under "quantization".
        skipped: layers that stay as they are because the group size does not divide their last dimension.
    """

    bits: Mapping[str, tuple[int, int]]
    settings: dict[str, Any]
    skipped: tuple[str, ...]


def plan_quantization(built: Built, *, bits: int, group_size: int) -> QuantizationPlan:
    """Decide what is quantized.

    Raises:
        InputError: the model asks for a quantization that is not affine.
    """
    from mlx.nn.layers.base import Module
    from mlx.utils import tree_flatten

    chosen: dict[str, tuple[int, int]] = {}
    skipped = []
    settings: dict[str, Any] = {"group_size": group_size, "bits": bits, "mode": MODE}
    predicate = getattr(built.model, "quant_predicate", None)
    leaves: Any = tree_flatten(built.model.leaf_modules(), is_leaf=Module.is_module)
    for path, module in leaves:
        if not hasattr(module, "to_quantized"):
            continue
        if module.weight.shape[-1] % group_size:
            skipped.append(path)
            continue
        answer = True if predicate is None else predicate(path, module)
        if isinstance(answer, dict):
            if answer.get("mode", MODE) != MODE:
                raise InputError(f"--quantize: {path} wants the quantization {answer['mode']!r}; only affine is done.")
            settings[path] = answer
            chosen[f"{path}.weight"] = (answer.get("bits", _BITS), answer.get("group_size", _GROUP_SIZE))
        elif answer:
            chosen[f"{path}.weight"] = (bits, group_size)
    return QuantizationPlan(chosen, settings, tuple(skipped))


def quantized_tensors(name: str, dtype: str, shape: tuple[int, ...], bits: int, group_size: int) -> list[Any]:
    """(name, dtype, shape) of the three tensors that take a weight's place: packed (..., in * bits / 32), scales and
    biases (..., in / group size)."""
    path = name.removesuffix(".weight")
    rows, columns = shape[:-1], shape[-1]
    return [
        (name, "uint32", (*rows, columns * bits // 32)),
        (f"{path}.scales", dtype, (*rows, columns // group_size)),
        (f"{path}.biases", dtype, (*rows, columns // group_size)),
    ]


def quantized_blocks(rows_of: Iterator[Any], bits: int, group_size: int) -> Iterator[Array]:
    """Quantize a weight: all packed rows, then all scales, then all biases.

    Args:
        rows_of: yields its rows in order, as arrays (any, in) of MLX, of the type that scales and biases will have.
        bits: bits an element.
        group_size: neighbours in a row that share a scale and a bias.
    """
    import mlx.core as mx

    scales, biases = [], []
    for rows in rows_of:
        packed, scale, bias = mx.quantize(rows, group_size, bits, mode=MODE)
        scales.append(as_numpy(scale))
        biases.append(as_numpy(bias))
        yield np.array(packed)
    yield from scales
    yield from biases


def stored_rows(tensor: TensorRef, dtype: str) -> Iterator[Any]:
    """The rows of a stored weight (..., in) as arrays of MLX, some at a time."""
    import mlx.core as mx

    columns = tensor.shape[-1]
    for values in tensor.blocks_as(dtype, multiple=columns):
        rows = mx.array(values.reshape(-1, columns))
        yield rows.view(mx.bfloat16) if dtype == "bfloat16" else rows


def made_rows(array: Any) -> Iterator[Any]:
    """The rows of an array (..., in), some at a time."""
    rows = array.reshape(-1, array.shape[-1])
    step = max(CHUNK_ELEMENTS // rows.shape[1], 1)
    for start in range(0, rows.shape[0], step):
        yield rows[start : start + step]


def as_numpy(array: Any) -> Array:
    """An array of MLX for numpy, bfloat16 as its bits."""
    import mlx.core as mx

    return np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)
