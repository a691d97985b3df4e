"""Element types of stored tensors, and the exact conversions between the floating ones.

numpy has no bfloat16, so such tensors travel as their bit patterns in uint16 beside the name "bfloat16", those of the
8-bit types in uint8.
"""

from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Dtype(NamedTuple):
    """An element type.

    Attributes:
        itemsize: bytes an element.
        code: its name in safetensors files.
        numpy: the type under which its elements travel.
    """

    itemsize: int
    code: str
    numpy: np.dtype[Any]


_TYPES = (
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
    ("float8_e4m3fn", "F8_E4M3", "u1"),
    ("float8_e5m2", "F8_E5M2", "u1"),
    ("float8_e8m0fnu", "F8_E8M0", "u1"),
)
DTYPES = {name: Dtype(np.dtype(bits).itemsize, code, np.dtype(bits)) for name, code, bits in _TYPES}
BY_CODE = {code: name for name, code, _ in _TYPES}
FLOATING = frozenset({"float64", "float32", "float16", "bfloat16"})
FLOAT8 = frozenset({"float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"})
"""Kept as their bits; MLX reads them as uint8."""


def stored_as(source: str, wanted: str) -> str:
    """The type in which a tensor of type `source` is kept when the user wants `wanted` ("auto": the source's own).

    Only floating types change. float64 becomes float32 under "auto": MLX computes in float64 on the CPU alone.
    """
    if source not in FLOATING:
        return source
    if wanted == "auto":
        return "float32" if source == "float64" else source
    return wanted


def readable(dtype: str) -> str:
    """The type that MLX reads in place of `dtype` in a safetensors file."""
    return {"float64": "float32"}.get(dtype, "uint8" if dtype in FLOAT8 else dtype)


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
    if source == target or (source in FLOAT8 and target == "uint8"):
        return block, 0
    with np.errstate(over="ignore", invalid="ignore"):
        if source == "bfloat16":
            wide = widen(block)
        else:
            wide = widen8(block, source) if source in FLOAT8 else block.astype(np.float32, copy=False)
        result = wide if target == "float32" else narrow(wide) if target == "bfloat16" else wide.astype(np.float16)
    if target == "bfloat16" or (target == "float32" and source != "float64"):
        return result, 0
    original = wide if source == "bfloat16" or source in FLOAT8 else block
    return result, int(np.count_nonzero(np.isinf(result)) - np.count_nonzero(np.isinf(original)))


def widen(bits: Array) -> Array:
    """bfloat16 bit patterns (uint16) as float32, exactly."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def widen8(bits: Array, dtype: str) -> Array:
    """Values of an 8-bit floating type (uint8 bit patterns) as float32, exactly.

    Of the Open Compute Project's 8-bit floating point (OFP8): E4M3 has no infinities and one NaN of each sign; E5M2 is
    the upper half of float16. E8M0 is a power of two.
    """
    return _values8(dtype)[bits]


@cache
def _values8(dtype: str) -> Array:
    """The value of each of the 256 bit patterns."""
    bits = np.arange(256, dtype=np.uint8)
    if dtype == "float8_e5m2":
        return (bits.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    if dtype == "float8_e8m0fnu":
        powers = np.exp2(np.arange(255) - 127.0)
        return np.append(powers, np.nan).astype(np.float32)
    exponent, fraction = (bits >> 3) & 15, (bits & 7).astype(np.float32)
    size = np.where(
        exponent == 0, fraction / 8 * 2.0**-6, (1 + fraction / 8) * np.exp2(exponent.astype(np.float32) - 7)
    )
    size = np.where((bits & 127) == 127, np.nan, size)
    return np.where(bits >= 128, -size, size).astype(np.float32)


def narrow(values: Array) -> Array:
    """float32 as bfloat16 bit patterns (uint16), rounded to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)
