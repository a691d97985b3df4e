"""Attention by blocks against plain attention in NumPy and float64, with the masks written out."""

import tracemalloc
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from mlxmath.models.kernels import long_rows, short_rows
from mlxmath.models.kernels.cpu import CpuKernels
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.layouts import SharedPrompts
from mlxmath.models.masks import NOWHERE, Mask

BLOCK = 16
Case = tuple[Mask | None, NDArray[np.bool_]]
"""A mask, and the same written out: (B, L, keys)."""


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_rows, "BLOCK", BLOCK)
    monkeypatch.setattr(short_rows, "LONGEST", BLOCK)


def causal(rows: int, length: int) -> Case:
    return None, np.broadcast_to(np.tri(length, dtype=bool), (rows, length, length))


def windowed(rows: int, length: int) -> Case:
    window = 11
    seen = np.tri(length, dtype=bool) & ~np.tri(length, k=-window, dtype=bool)
    return Mask.causal(length).within(window), np.broadcast_to(seen, (rows, length, length))


def packed(rows: int, length: int) -> Case:
    """Texts of some lengths, others in each row, the last one padding."""
    texts = np.stack([np.searchsorted(np.cumsum([7 + row, 25, 3]), np.arange(length), "right") for row in range(rows)])
    return Mask.packed(mx.array(texts)), (texts[:, :, None] == texts[:, None]) & np.tri(length, dtype=bool)


def continued(rows: int, length: int) -> Case:
    """Prompts of 20 positions at most, shorter in each row."""
    lengths = np.array([20 - 9 * row for row in range(rows)])
    prompts = SharedPrompts(mx.zeros((rows, 20), mx.int32), mx.array(lengths), mx.arange(rows))
    of_prompt = np.broadcast_to((np.arange(20) < lengths[:, None])[:, None], (rows, length, 20))
    own = np.broadcast_to(np.tri(length, dtype=bool), (rows, length, length))
    return prompts.mask(length), np.concatenate([of_prompt, own], axis=2)


def continued_in_a_window(rows: int, length: int) -> Case:
    window, (mask, seen) = 25, continued(rows, length)
    assert mask is not None
    for row in range(rows):
        before = 20 - 9 * row
        places = np.concatenate([np.arange(20), before + np.arange(length)])
        seen[row] &= places[None] > (before + np.arange(length))[:, None] - window
    return mask.within(window), seen


def hidden(rows: int, length: int) -> Case:
    """Causal, but the first 18 keys are seen by nobody, so that the first 18 queries see nothing."""
    causal = Mask.causal(length)
    seen = np.tri(length, dtype=bool) & (np.arange(length) >= 18)
    places = np.where(np.arange(length) < 18, NOWHERE, np.arange(length)).astype(np.int32)[None]
    return Mask(places, causal.first_BL, causal.last_BL), np.broadcast_to(seen, (rows, length, length))


CASES = [causal, windowed, packed, continued, continued_in_a_window, hidden]


def plain(q: Any, k: Any, v: Any, d: Any, scale: float, seen: NDArray[np.bool_]) -> tuple[NDArray[np.float64], ...]:
    """Result and gradients, by their formulas."""
    q, k, v, d = (np.array(x.astype(mx.float32)).astype(np.float64) for x in (q, k, v, d))
    groups = q.shape[1] // k.shape[1]
    shared = [np.repeat(x, groups, axis=1) for x in (k, v)]
    scores = np.where(seen[:, None], scale * q @ shared[0].swapaxes(-1, -2), -np.inf)
    top = scores.max(-1, keepdims=True)
    p = np.exp(scores - np.where(np.isinf(top), 0, top))
    total = p.sum(-1, keepdims=True)
    p /= np.where(total == 0, 1, total)
    out = p @ shared[1]
    d_s = p * (d @ shared[1].swapaxes(-1, -2) - (d * out).sum(-1, keepdims=True))
    d_k, d_v = (
        x.reshape(len(x), -1, groups, *x.shape[2:]).sum(2)
        for x in (scale * d_s.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ d)
    )
    return out, scale * d_s @ shared[0], d_k, d_v


def inputs(rows: int, heads: int, kv_heads: int, length: int, num_keys: int, value_width: int) -> list[mx.array]:
    mx.random.seed(length)
    sizes = (
        (length, heads, 8),
        (num_keys, kv_heads, 8),
        (num_keys, kv_heads, value_width),
        (length, heads, value_width),
    )
    return [mx.random.normal((rows, *size)).swapaxes(1, 2) * 2 for size in sizes]  # strided, as a model makes them


def close(found: mx.array, expected: NDArray[np.float64], tolerance: float) -> None:
    assert found.shape == expected.shape
    assert np.abs(np.array(found.astype(mx.float32)) - expected).max() <= tolerance * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("kernels", [Kernels(), CpuKernels(), CpuKernels(2)], ids=["portable", "cpu", "two cores"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("length", [BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, 3 * BLOCK + 5])
@pytest.mark.parametrize(("rows", "heads", "kv_heads", "value_width"), [(1, 1, 1, 8), (2, 6, 2, 4)])
def test_attention_by_blocks(
    kernels: Kernels, case: Any, length: int, rows: int, heads: int, kv_heads: int, value_width: int
) -> None:
    mask, seen = case(rows, length)
    q, k, v, d = inputs(rows, heads, kv_heads, length, seen.shape[2], value_width)
    expected = plain(q, k, v, d, 0.4, seen)
    output = kernels.attention(q, k, v, 0.4, mask)
    found = output[0], *kernels.attention_backward(q, k, v, 0.4, mask, output, d)
    for one, other in zip(found, expected, strict=True):
        close(one, other, 1e-5)
    if mask is not None:
        written_out = np.broadcast_to(np.array(mask.array)[:, 0], seen.shape)
        np.testing.assert_array_equal(written_out, seen)


def test_in_16_bits_the_softmax_is_in_32() -> None:
    mask, seen = packed(2, 40)
    arrays = [x.astype(mx.bfloat16) for x in inputs(2, 4, 2, 40, 40, 8)]
    output = CpuKernels().attention(*arrays[:3], 0.5, mask)
    found = output[0], *CpuKernels().attention_backward(*arrays[:3], 0.5, mask, output, arrays[3])
    for one, other in zip(found, plain(*arrays, 0.5, seen), strict=True):
        assert one.dtype == mx.bfloat16
        close(one, other, 2e-2)


def test_blocks_that_nobody_sees_are_left_out() -> None:
    def num_blocks(mask: Mask) -> int:
        queries = [slice(start, start + BLOCK) for start in range(0, 4 * BLOCK, BLOCK)]
        return sum(len(list(mask.seen_by(each, BLOCK))) for each in queries)

    length = 4 * BLOCK
    assert num_blocks(Mask.causal(length)) == 4 * 5 // 2
    assert num_blocks(Mask.causal(length).within(BLOCK)) == 4 + 3
    texts = Mask.packed(mx.array([[place // BLOCK for place in range(length)]]))
    assert num_blocks(texts) == 4 * 5 // 2  # nothing is known of it
    assert num_blocks(texts.known()) == 4
    queries = slice(3 * BLOCK, length)
    assert [seen is None for _, seen in Mask.causal(length).seen_by(queries, BLOCK)] == [True, True, True, False]


@pytest.mark.parametrize("kernels", [Kernels(), CpuKernels()], ids=["portable", "cpu"])
def test_memory_is_linear_in_the_length(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_rows, "BLOCK", 128)

    def peak_bytes(length: int) -> int:
        q, k, v, d = inputs(1, 2, 1, length, length, 8)
        mask = Mask.packed(mx.arange(length)[None] // 3000)
        mx.eval(q, k, v, d, mask.first_BL)
        mx.synchronize()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        tracemalloc.start()
        output = kernels.attention(q, k, v, 0.4, mask)
        found = kernels.attention_backward(q, k, v, 0.4, mask, output, d)
        mx.eval(found)
        _, numpys = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return mx.get_peak_memory() - before + numpys

    short, long = peak_bytes(1024), peak_bytes(4096)
    assert long < 4.4 * short
    assert long < 4096**2 / 2  # a quarter of a byte a pair and head
