"""Element types of stored tensors, and the exact conversions between the floating ones.

numpy has no bfloat16, so such tensors travel as their bit patterns in uint16 beside the name "bfloat16".
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Dtype:
    """An element type: its size in bytes, its code in safetensors, and the numpy type that holds its bits."""

    name: str
    itemsize: int
    code: str
    numpy: np.dtype[Any]


def _table(*rows: tuple[str, str, str]) -> dict[str, Dtype]:
    return {name: Dtype(name, np.dtype(bits).itemsize, code, np.dtype(bits)) for name, code, bits in rows}


DTYPES = _table(
    ("float64", "F64", "<f8"),
    ("float32", "F32", "<f4"),
    ("float16", "F16", "<f2"),
    ("bfloat16", "BF16", "<u2"),
    ("int64", "I64", "<i8"),
    ("int32", "I32", "<i4"),
    ("int16", "I16", "<i2"),
    ("int8", "I8", "i1"),
    ("uint64", "U64", "<u8"),
    ("uint32", "U32", "<u4"),
    ("uint16", "U16", "<u2"),
    ("uint8", "U8", "u1"),
    ("bool", "BOOL", "?"),
)
BY_CODE = {dtype.code: dtype for dtype in DTYPES.values()}
FLOATING = frozenset({"float64", "float32", "float16", "bfloat16"})


def stored_as(source: str, wanted: str) -> str:
    """The type in which a tensor of type `source` is kept when the user wants `wanted` ("auto": the source's own).

    Only floating types change. float64 becomes float32 under "auto": MLX computes in float64 on the CPU alone.
    """
    if source not in FLOATING:
        return source
    if wanted == "auto":
        return "float32" if source == "float64" else source
    return wanted


def prevailing(tensors: Iterable[tuple[str, int]]) -> str:
    """The floating type with the most elements, out of (dtype, number of elements) of each tensor."""
    counts: Counter[str] = Counter()
    for dtype, num_elements in tensors:
        if dtype in FLOATING:
            counts[dtype] += num_elements
    return counts.most_common(1)[0][0] if counts else "float32"


def convert(block: Array, source: str, target: str) -> tuple[Array, int]:
    """Convert a block between floating types, rounding to nearest even as PyTorch and MLX do.

    float64 passes through float32 on its way to a 16-bit type, as it does in PyTorch.

    Args:
        block: values of type `source` (bfloat16 as uint16 bit patterns).
        source: name of its type.
        target: name of the wanted type.

    Returns:
        The converted block, and how many finite values became infinite (only float16's narrow range does that
        to a model's weights).
    """
    if source == target:
        return block, 0
    with np.errstate(over="ignore", invalid="ignore"):
        wide = widen(block) if source == "bfloat16" else block.astype(np.float32, copy=False)
        if target == "float32":
            result = wide
        elif target == "float16":
            result = wide.astype(np.float16)
        elif target == "bfloat16":
            result = narrow(wide)
        else:
            raise ValueError(f"no conversion from {source} to {target}")
    if target == "bfloat16" or (target == "float32" and source != "float64"):
        return result, 0
    original = wide if source == "bfloat16" else block
    return result, int(np.count_nonzero(np.isinf(result)) - np.count_nonzero(np.isinf(original)))


def widen(bits: Array) -> Array:
    """bfloat16 bit patterns (uint16) as float32, exactly."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def narrow(values: Array) -> Array:
    """float32 as bfloat16 bit patterns (uint16), rounded to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)
