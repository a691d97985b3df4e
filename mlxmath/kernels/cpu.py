"""The kernels on a CPU, in NumPy over the arrays' own memory.

MLX's exponential takes about 10 ns an element on x86, on one thread; NumPy's vectorized one takes 0.3 ns and lets go of
the interpreter, so blocks that fit a core's cache run on all cores. The arrays are shared, not copied: `_view` is a
window on an evaluated array, and what is overwritten is always an array made here that nothing else has seen.

Since they look at values, they cannot run inside `mx.compile`. Inputs of other types than float32 take the portable
form.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxmath.kernels.portable import PortableKernels

_BLOCK = 1 << 15
"""Elements a thread works on at a time: a few such blocks fit into a core's second-level cache."""

Floats = NDArray[np.float32]


class CpuKernels:
    """See `Kernels`."""

    compiles = False

    def __init__(self) -> None:
        self._portable = PortableKernels()

    def swiglu(self, gate_BLF: mx.array, up_BLF: mx.array) -> mx.array:
        """silu(gate) · up."""
        if gate_BLF.dtype != mx.float32 or up_BLF.dtype != mx.float32:
            return self._portable.swiglu(gate_BLF, up_BLF)
        return _swiglu(gate_BLF, up_BLF)

    def attention(self, q_BHLD: mx.array, k_BKLD: mx.array, v_BKLD: mx.array, scale: float) -> mx.array:
        """Softmax in place between two matrix products; the backward pass computes the probabilities again."""
        if {q_BHLD.dtype, k_BKLD.dtype, v_BKLD.dtype} != {mx.float32}:
            return self._portable.attention(q_BHLD, k_BKLD, v_BKLD, scale)
        return _attention(scale)(q_BHLD, k_BKLD, v_BKLD)[0]

    def softmax_gradient(
        self, logits_NV: mx.array, targets_N: mx.array, weights_N: mx.array, soft_cap: float | None
    ) -> tuple[mx.array, mx.array]:
        """In the memory of the logits."""
        if logits_NV.dtype != mx.float32:
            logits_NV = logits_NV.astype(mx.float32)
        logits, targets, weights = _view(logits_NV), _view(targets_N), _view(weights_N)
        losses = np.empty(len(logits), np.float32)

        def rows(start: int, stop: int) -> None:
            for n in range(start, stop):
                losses[n] = _softmax_gradient_row(logits[n], int(targets[n]), weights[n], soft_cap)

        _parallel(rows, len(logits), max(1, _BLOCK // logits.shape[1]))
        return mx.array(losses), logits_NV


def _view(array: mx.array) -> NDArray[Any]:
    """The array's memory, evaluated, in row-major order."""
    array_ = mx.contiguous(array)
    mx.eval(array_)
    return np.asarray(array_)


@cache
def _pool() -> tuple[ThreadPoolExecutor, int]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ThreadPoolExecutor(max(1, cores - 1), thread_name_prefix="mlxmath"), cores


def _parallel(work: Callable[[int, int], None], count: int, block: int) -> None:
    """Call `work(start, stop)` over range(count) in blocks, an even share on each core."""
    pool, cores = _pool()
    share = -(-count // cores)

    def run(first: int) -> None:
        with np.errstate(over="ignore", under="ignore"):  # exp(100) is inf, and 1 / (1 + inf) is 0, as it should be
            for start in range(first, min(first + share, count), block):
                work(start, min(start + block, first + share, count))

    others = [pool.submit(run, first) for first in range(share, count, share)]
    run(0)
    for other in others:
        other.result()


# SwiGLU


@mx.custom_function
def _swiglu(gate: mx.array, up: mx.array) -> mx.array:
    g, u = (_view(a).reshape(-1) for a in (gate, up))
    out = np.empty_like(g)

    def block(a: int, b: int) -> None:
        t = np.negative(g[a:b])
        np.exp(t, out=t)
        t += 1
        np.divide(g[a:b], t, out=t)
        np.multiply(t, u[a:b], out=out[a:b])

    _parallel(block, g.size, _BLOCK)
    return mx.array(out).reshape(gate.shape)


@_swiglu.vjp
def _swiglu_vjp(primals: Any, cotangent: mx.array, _: mx.array) -> tuple[mx.array, mx.array]:
    """d gate = d · up · σ (1 + gate (1 − σ)), d up = d · gate σ."""
    gate, up = primals
    g, u, d = (_view(a).reshape(-1) for a in (gate, up, cotangent))
    d_gate, d_up = np.empty_like(g), np.empty_like(g)

    def block(a: int, b: int) -> None:
        sigmoid, out = np.negative(g[a:b]), d_gate[a:b]
        np.exp(sigmoid, out=sigmoid)
        sigmoid += 1
        np.reciprocal(sigmoid, out=sigmoid)
        silu = g[a:b] * sigmoid
        np.multiply(d[a:b], silu, out=d_up[a:b])
        np.subtract(1, sigmoid, out=out)
        out *= silu
        out += sigmoid
        out *= u[a:b]
        out *= d[a:b]

    _parallel(block, g.size, _BLOCK)
    return mx.array(d_gate).reshape(gate.shape), mx.array(d_up).reshape(gate.shape)


# Attention. Query heads that share a key head are stacked: (B, H, L, D) -> (B, K, H/K · L, D).


@cache
def _attention(scale: float) -> Any:
    @mx.custom_function
    def attention(q: mx.array, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        scores = _scores(q, k, scale)
        log_sums = np.empty(scores.shape[:-1], np.float32)
        _softmax_rows(_view(scores), log_sums, q.shape[2])
        out = (scores @ v).reshape(q.shape)
        return out, mx.array(log_sums)

    @attention.vjp
    def attention_vjp(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, mx.array, mx.array]:
        """dS = P ∘ (dO vᵀ − rowsum(dO ∘ O)); Dao et al. 2022, arXiv:2205.14135, appendix B."""
        q, k, v = primals
        out, log_sums = outputs
        stacked = (k.shape[0], k.shape[1], -1, q.shape[3])
        d_out = mx.contiguous(cotangents[0]).reshape(stacked)
        probabilities = _scores(q, k, scale)
        d_scores = d_out @ v.swapaxes(-1, -2)
        row_sums = (d_out * out.reshape(stacked)).sum(-1)
        mx.eval(probabilities, d_scores, row_sums)
        _probabilities_and_gradient(
            _view(probabilities), _view(d_scores), _view(log_sums), _view(row_sums), scale, q.shape[2]
        )
        d_q = (d_scores @ k).reshape(q.shape)
        d_k = d_scores.swapaxes(-1, -2) @ q.reshape(stacked)
        d_v = probabilities.swapaxes(-1, -2) @ d_out
        return d_q, d_k, d_v

    return attention


def _scores(q: mx.array, k: mx.array, scale: float) -> mx.array:
    """scale · q kᵀ, evaluated and ours alone: (B, K, H/K · L, L)."""
    stacked = (q * scale).reshape(k.shape[0], k.shape[1], -1, q.shape[3])
    scores = stacked @ k.swapaxes(-1, -2)
    mx.eval(scores)
    return scores


def _softmax_rows(scores: Floats, log_sums: Floats, length: int) -> None:
    """Causal softmax in place; row r stands at position r mod length."""
    rows, sums = scores.reshape(-1, length), log_sums.reshape(-1)
    future = np.triu(np.full((length, length), -np.inf, np.float32), 1)

    def block(a: int, b: int) -> None:
        for head in range(a, b):
            s = rows[head * length : (head + 1) * length]
            s += future
            top = s.max(axis=1)
            s -= top[:, None]
            np.exp(s, out=s)
            total = s.sum(axis=1)
            s *= (1 / total)[:, None]
            sums[head * length : (head + 1) * length] = top + np.log(total)

    _parallel(block, len(rows) // length, 1)


def _probabilities_and_gradient(
    scores: Floats, d_scores: Floats, log_sums: Floats, row_sums: Floats, scale: float, length: int
) -> None:
    """scores -> probabilities and d_scores -> scale · P ∘ (d_scores − row_sums), both in place."""
    s_rows, d_rows = scores.reshape(-1, length), d_scores.reshape(-1, length)
    log_sums, row_sums = log_sums.reshape(-1, 1), row_sums.reshape(-1, 1)
    future = np.triu(np.full((length, length), -np.inf, np.float32), 1)

    def block(a: int, b: int) -> None:
        for head in range(a, b):
            part = slice(head * length, (head + 1) * length)
            s, d = s_rows[part], d_rows[part]
            s += future
            s -= log_sums[part]
            np.exp(s, out=s)
            d -= row_sums[part]
            d *= s
            d *= scale

    _parallel(block, len(s_rows) // length, 1)


# Cross-entropy


def _softmax_gradient_row(row: Floats, target: int, weight: float, soft_cap: float | None) -> float:
    """One token: its weighted loss; `row` becomes the gradient."""
    if soft_cap is not None:
        row /= soft_cap
        np.tanh(row, out=row)
        slope = 1 - np.square(row)
        row *= soft_cap
    top = row.max()
    row -= top
    at_target = row[target]
    np.exp(row, out=row)
    total = row.sum(dtype=np.float64)
    row *= np.float32(weight / total)
    row[target] -= weight
    if soft_cap is not None:
        row *= slope
    return float(weight * (np.log(total) - at_target))
