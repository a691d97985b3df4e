"""Q4_K and Q6_K, which gguf reads and does not write.

Both cut a row into super-blocks of 256 values, and these into sub-blocks with a scale each; the scales are small whole
numbers times one of the super-block in 16 bits.

    Q4_K    8 × 32 values    x ≈ d s q − e m     q in 0 … 15, s and m in 0 … 63, 4.5 bits a value
    Q6_K   16 × 16 values    x ≈ d s q           q in −32 … 31, s in −128 … 127, 6.5625 bits a value

A sub-block's scale is searched as llama.cpp does (`make_qkx2_quants`, `make_qx_quants` in ggml-quants.c): for some
20 step sizes the values are rounded, and the scale that fits those whole numbers best is solved by weighted least
squares; the step size whose fit errs least is kept. Large values weigh more. Layout of the bytes: `block_q4_K` and
`block_q6_K` in ggml-common.h.

Shapes: N super-blocks, S sub-blocks of one, V values of a sub-block.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
_Quantizer = Callable[[Floats], Bytes]

SUPER_BLOCK = 256
_AT_ONCE = 1024
"""Super-blocks that a thread searches together: 1 MB of values, and some ten arrays of that size."""
_TINY = np.float32(1e-30)


def quantize_q4_k(values: Floats) -> Bytes:
    """Rows of a multiple of 256 values (…, C) to Q4_K: bytes (…, C / 256 · 144)."""
    return _in_parts(values, 144, _q4_k)


def quantize_q6_k(values: Floats) -> Bytes:
    """Rows of a multiple of 256 values (…, C) to Q6_K: bytes (…, C / 256 · 210)."""
    return _in_parts(values, 210, _q6_k)


def _in_parts(values: Floats, num_bytes: int, quantize: _Quantizer) -> Bytes:
    *rows, width = values.shape
    if width % SUPER_BLOCK:
        raise ValueError(f"rows of {width} values are no multiple of {SUPER_BLOCK}")
    blocks_NX = np.ascontiguousarray(values, np.float32).reshape(-1, SUPER_BLOCK)
    packed = np.empty((len(blocks_NX), num_bytes), np.uint8)

    def fill(start: int) -> None:
        part = slice(start, start + _AT_ONCE)
        packed[part] = quantize(blocks_NX[part])

    with ThreadPoolExecutor(os.cpu_count()) as threads:  # NumPy computes without Python's lock
        list(threads.map(fill, range(0, len(blocks_NX), _AT_ONCE)))
    return packed.reshape(*rows, width // SUPER_BLOCK * num_bytes)


def _q4_k(blocks_NX: Floats) -> Bytes:
    x_NSV = blocks_NX.reshape(-1, 8, 32)
    scale_NS, offset_NS = _search_with_offset(x_NSV)
    d_N1, s_NS = _whole(scale_NS, 63)
    e_N1, m_NS = _whole(offset_NS, 63)
    step_NS, low_NS = d_N1 * s_NS, e_N1 * m_NS
    q_NSV = np.rint((x_NSV + low_NS[..., None]) * _inverse(step_NS)[..., None]).clip(0, 15).astype(np.uint8)

    s, m = s_NS.astype(np.uint8), m_NS.astype(np.uint8)
    first = np.concatenate((s[:, :4] | s[:, 4:] >> 4 << 6, m[:, :4] | m[:, 4:] >> 4 << 6), axis=1)
    last = (s[:, 4:] & 15) | (m[:, 4:] & 15) << 4
    pairs = q_NSV.reshape(-1, 4, 2, 32)
    quants = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)
    return np.concatenate((_as_bytes(d_N1), _as_bytes(e_N1), first, last, quants), axis=1)


def _q6_k(blocks_NX: Floats) -> Bytes:
    x_NSV = blocks_NX.reshape(-1, 16, 16)
    scale_NS = _search(x_NSV)
    largest_N1 = np.take_along_axis(scale_NS, np.abs(scale_NS).argmax(axis=1)[:, None], axis=1)
    d_N1 = (largest_N1 / -128).astype(np.float16).astype(np.float32)  # the largest scale is -128
    s_NS = np.rint(scale_NS * _inverse(d_N1)).clip(-128, 127)
    q_NSV = np.rint(x_NSV * _inverse(d_N1 * s_NS)[..., None]).clip(-32, 31)

    q = (q_NSV + 32).astype(np.uint8).reshape(-1, 2, 4, 32)  # halves of 128 values, four rows of 32 in each
    low = np.concatenate((q[:, :, 0] & 15 | (q[:, :, 2] & 15) << 4, q[:, :, 1] & 15 | (q[:, :, 3] & 15) << 4), axis=2)
    high = q[:, :, 0] >> 4 | q[:, :, 1] >> 4 << 2 | q[:, :, 2] >> 4 << 4 | q[:, :, 3] >> 4 << 6
    scales = s_NS.astype(np.int8).view(np.uint8)
    return np.concatenate((low.reshape(-1, 128), high.reshape(-1, 64), scales, _as_bytes(d_N1)), axis=1)


def _search_with_offset(x_NSV: Floats) -> tuple[Floats, Floats]:
    """Scales and offsets (N, S), both ≥ 0, of x ≈ scale · q − offset with q in 0 … 15."""
    weight = np.sqrt((x_NSV * x_NSV).mean(axis=2, keepdims=True)) + np.abs(x_NSV)
    largest_NS1 = x_NSV.max(axis=2, keepdims=True)
    sum_w, sum_x = weight.sum(axis=2), (weight * x_NSV).sum(axis=2)
    best_error = np.full(sum_w.shape, np.inf, np.float32)
    best_scale = np.zeros_like(sum_w)
    best_low = np.minimum(x_NSV.min(axis=2), 0)  # an offset cannot raise
    for reach in np.arange(14.0, 16.05, 0.1, dtype=np.float32):
        low_NS1 = best_low[..., None]
        q = np.rint((x_NSV - low_NS1) * (reach * _inverse(largest_NS1 - low_NS1))).clip(0, 15)
        weighted_q = weight * q
        sum_q, sum_qq = weighted_q.sum(axis=2), (weighted_q * q).sum(axis=2)
        sum_qx = (weighted_q * x_NSV).sum(axis=2)
        inverse = _inverse(sum_w * sum_qq - sum_q * sum_q)
        scale = (sum_w * sum_qx - sum_x * sum_q) * inverse
        low = (sum_qq * sum_x - sum_q * sum_qx) * inverse
        raised = low > 0
        scale = np.where(raised, sum_qx * _inverse(sum_qq), scale)
        low = np.where(raised, np.float32(0), low)
        difference = scale[..., None] * q + low[..., None] - x_NSV
        error = (weight * difference * difference).sum(axis=2)
        better = (error < best_error) & (scale > 0)
        best_error = np.where(better, error, best_error)
        best_scale = np.where(better, scale, best_scale)
        best_low = np.where(better, low, best_low)
    return best_scale, -best_low


def _search(x_NSV: Floats) -> Floats:
    """Scales (N, S) of x ≈ scale · q with q in −32 … 31; the value of largest size is met by −32, the wider side."""
    weight = x_NSV * x_NSV
    largest = np.take_along_axis(x_NSV, np.abs(x_NSV).argmax(axis=2)[..., None], axis=2)
    best_gain = np.full(x_NSV.shape[:2], -1, np.float32)
    best_scale = np.zeros(x_NSV.shape[:2], np.float32)
    for reach in np.arange(31.1, 32.95, 0.1, dtype=np.float32):
        q = np.rint(x_NSV * (-reach * _inverse(largest))).clip(-32, 31)
        weighted_q = weight * q
        sum_qx, sum_qq = (weighted_q * x_NSV).sum(axis=2), (weighted_q * q).sum(axis=2)
        scale = sum_qx * _inverse(sum_qq)
        gain = scale * sum_qx  # what the weighted square error falls by
        better = gain > best_gain
        best_gain, best_scale = np.where(better, gain, best_gain), np.where(better, scale, best_scale)
    return best_scale


def _whole(factors_NS: Floats, largest: int) -> tuple[Floats, Floats]:
    """Factors ≥ 0 as one number (N, 1) that 16 bits hold, times whole numbers (N, S) of 0 to `largest`."""
    unit_N1 = (factors_NS.max(axis=1, keepdims=True) / largest).astype(np.float16).astype(np.float32)
    return unit_N1, np.rint(factors_NS * _inverse(unit_N1)).clip(0, largest)


def _inverse(values: Floats) -> Floats:
    """1 / values, and 0 for 0."""
    return np.divide(1, values, out=np.zeros_like(values), where=np.abs(values) > _TINY)


def _as_bytes(values_N1: Floats) -> Bytes:
    return np.ascontiguousarray(values_N1.astype("<f2")).view(np.uint8)
