"""The kernels on a CPU, in NumPy over the arrays' own memory.

MLX's exponential takes about 10 ns an element on x86, on one thread; NumPy's vectorized one takes 0.3 ns and lets go of
the interpreter, so blocks that fit a core's cache run on all cores. The arrays are shared, not copied: `view` is a
window on an evaluated array, and what is overwritten is always an array made here that nothing else has seen.

Since they look at values, they cannot run inside `mx.compile`. Inputs of other types than float32 take the portable
form.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxmath.models.kernels import cpu_divergence, cpu_long_rows, short_rows
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.masks import Mask
from mlxmath.runtime.blas import blas_is_missing, limit_threads, num_usable_cores

_BLOCK = 1 << 15
"""Elements a thread works on at a time: a few such blocks fit into a core's second-level cache."""

Floats = NDArray[np.float32]
_MLX = Kernels()
"""For other types than float32."""


class CpuKernels(Kernels):
    """In float32; other types take MLX's own operations.

    Args:
        num_cores: cores to use at once (default: all).
    """

    compiles = False

    def __init__(self, num_cores: int | None = None) -> None:
        self.num_cores = num_cores or num_usable_cores()

    def _parallel(self, work: Callable[[int, int], None], count: int, block: int) -> None:
        """Call `work(start, stop)` over range(count) in blocks, an even share on each core."""
        share = -(-count // self.num_cores)

        def run(first: int) -> None:
            with np.errstate(over="ignore", under="ignore"):  # exp(100) is inf, and 1 / (1 + inf) is 0, as it should be
                for start in range(first, min(first + share, count), block):
                    work(start, min(start + block, first + share, count))

        others = [_pool().submit(run, first) for first in range(share, count, share)]
        run(0)
        for other in others:
            other.result()

    def _parallel_products(self, work: Callable[[int, int], None], count: int) -> None:
        """The same in one block a core, where the work is products in NumPy, each of them on its core."""
        with limit_threads(1) if self.num_cores > 1 else nullcontext():
            self._parallel(work, count, count)

    def swiglu(self, gate_BLF: mx.array, up_BLF: mx.array) -> mx.array:
        """Four passes over a block while it is in the cache."""
        if _others(gate_BLF, up_BLF):
            return _MLX.swiglu(gate_BLF, up_BLF)
        g, u = (memory.reshape(-1) for memory in views(gate_BLF, up_BLF))
        out = np.empty_like(g)

        def block(a: int, b: int) -> None:
            t = np.negative(g[a:b])
            np.exp(t, out=t)
            t += 1
            np.divide(g[a:b], t, out=t)
            np.multiply(t, u[a:b], out=out[a:b])

        self._parallel(block, g.size, _BLOCK)
        return mx.array(out).reshape(gate_BLF.shape)

    def swiglu_backward(self, gate_BLF: mx.array, up_BLF: mx.array, d_BLF: mx.array) -> tuple[mx.array, mx.array]:
        """Both gradients while a block is in the cache."""
        if _others(gate_BLF, up_BLF, d_BLF):
            return _MLX.swiglu_backward(gate_BLF, up_BLF, d_BLF)
        g, u, d = (memory.reshape(-1) for memory in views(gate_BLF, up_BLF, d_BLF))
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

        self._parallel(block, g.size, _BLOCK)
        return mx.array(d_gate).reshape(gate_BLF.shape), mx.array(d_up).reshape(gate_BLF.shape)

    def attention(
        self, q_BHLD: mx.array, k_BKLD: mx.array, v_BKLD: mx.array, scale: float, mask: Mask | None
    ) -> tuple[mx.array, mx.array]:
        """The rows' log-sums are kept, the probabilities are not."""
        if _others(q_BHLD, k_BKLD, v_BKLD):
            return _MLX.attention(q_BHLD, k_BKLD, v_BKLD, scale, mask)
        length = q_BHLD.shape[2]
        if length > short_rows.LONGEST:
            return self._long_attention(q_BHLD, k_BKLD, v_BKLD, scale, mask)
        q, k, v = strided_views(q_BHLD, k_BKLD, v_BKLD)
        # in the memory order of the layer that comes next
        out_BLHD = np.empty((len(q), length, q.shape[1], v.shape[-1]), np.float32)
        log_sums = np.empty(q.shape[:-1], np.float32)
        added = _added_mask(mask)

        def heads(a: int, b: int) -> None:
            out_BHLD = out_BLHD.swapaxes(1, 2)
            short_rows.attention(q, k, v, scale, added, slice(a, b), out_BHLD, log_sums)

        self._parallel_products(heads, k.shape[1])
        return taken(out_BLHD).swapaxes(1, 2), taken(log_sums)

    def attention_backward(
        self,
        q_BHLD: mx.array,
        k_BKLD: mx.array,
        v_BKLD: mx.array,
        scale: float,
        mask: Mask | None,
        output: tuple[mx.array, mx.array],
        d_BHLD: mx.array,
    ) -> tuple[mx.array, mx.array, mx.array]:
        """dS = P ∘ (dO vᵀ − rowsum(dO ∘ O)), with P = exp(S − log-sums) computed again."""
        if _others(q_BHLD, k_BKLD, v_BKLD, d_BHLD):
            return _MLX.attention_backward(q_BHLD, k_BKLD, v_BKLD, scale, mask, output, d_BHLD)
        length = q_BHLD.shape[2]
        if length > short_rows.LONGEST:
            return self._long_attention_backward(q_BHLD, k_BKLD, v_BKLD, scale, mask, output, d_BHLD)
        out_BHLD, log_sums = output
        q, k, v, out, sums, d = strided_views(q_BHLD, k_BKLD, v_BKLD, out_BHLD, log_sums, d_BHLD)
        d_q, d_k, d_v = (np.zeros((len(x), x.shape[2], x.shape[1], x.shape[3]), np.float32) for x in (q, k, v))
        added = _added_mask(mask)

        def heads(a: int, b: int) -> None:
            found = (x.swapaxes(1, 2) for x in (d_q, d_k, d_v))
            short_rows.attention_backward(q, k, v, scale, added, slice(a, b), out, sums, d, *found)

        self._parallel_products(heads, k.shape[1])
        return taken(d_q).swapaxes(1, 2), taken(d_k).swapaxes(1, 2), taken(d_v).swapaxes(1, 2)

    def _long_attention(
        self, q_BHLD: mx.array, k_BKLD: mx.array, v_BKLD: mx.array, scale: float, mask: Mask | None
    ) -> tuple[mx.array, mx.array]:
        known = mask.known() if mask else Mask.causal(q_BHLD.shape[2])
        q, k, v = strided_views(q_BHLD, k_BKLD, v_BKLD)
        out, log_sums = np.empty((*q.shape[:3], v.shape[3]), np.float32), np.empty(q.shape[:3], np.float32)

        def heads(a: int, b: int) -> None:
            cpu_long_rows.attention(q, k, v, scale, known, range(a, b), out, log_sums)

        self._parallel_products(heads, len(k) * k.shape[1])
        return taken(out), taken(log_sums)

    def _long_attention_backward(
        self, q_BHLD: mx.array, k_BKLD: mx.array, v_BKLD: mx.array, scale: float, mask: Mask | None,
        output: tuple[mx.array, mx.array], d_BHLD: mx.array,
    ) -> tuple[mx.array, mx.array, mx.array]:  # fmt: skip
        known = mask.known() if mask else Mask.causal(q_BHLD.shape[2])
        q, k, v, out, log_sums, d = strided_views(q_BHLD, k_BKLD, v_BKLD, *output, d_BHLD)
        d_q, d_k, d_v = (np.zeros(x.shape, np.float32) for x in (q, k, v))

        def heads(a: int, b: int) -> None:
            cpu_long_rows.attention_backward(q, k, v, scale, known, range(a, b), out, log_sums, d, d_q, d_k, d_v)

        self._parallel_products(heads, len(k) * k.shape[1])
        return taken(d_q), taken(d_k), taken(d_v)

    def softmax_gradient(
        self, logits_NV: mx.array, targets_N: mx.array, weights_N: mx.array, soft_cap: float | None
    ) -> tuple[mx.array, mx.array]:
        """In the memory of the logits."""
        if logits_NV.dtype != mx.float32:
            logits_NV = logits_NV.astype(mx.float32)
        logits, targets, weights = view(logits_NV), view(targets_N), view(weights_N)
        losses = np.empty(len(logits), np.float32)

        def rows(start: int, stop: int) -> None:
            for n in range(start, stop):
                losses[n] = _softmax_gradient_row(logits[n], int(targets[n]), weights[n], soft_cap)

        self._parallel(rows, len(logits), max(1, _BLOCK // logits.shape[1]))
        return mx.array(losses), logits_NV

    def divergence_gradient(
        self, own_NV: mx.array, other_NV: mx.array, beta: float, temperature: float,
        own_cap: float | None = None, other_cap: float | None = None,
    ) -> tuple[mx.array, mx.array, mx.array]:  # fmt: skip
        """In the memory of the student's logits, a few rows at a time."""
        own_NV, other_NV = (x if x.dtype == mx.float32 else x.astype(mx.float32) for x in (own_NV, other_NV))
        own, other = views(own_NV, other_NV)
        divergences, entropies = np.empty(len(own), np.float32), np.empty(len(own), np.float32)

        def rows(a: int, b: int) -> None:
            caps = (own_cap, other_cap)
            cpu_divergence.divergence_gradient(
                own[a:b], other[a:b], beta, temperature, caps, divergences[a:b], entropies[a:b]
            )

        self._parallel(rows, len(own), max(1, _BLOCK // own.shape[1]))
        return mx.array(divergences), mx.array(entropies), own_NV


def _others(*arrays: mx.array) -> bool:
    """Whether any of the arrays is not float32."""
    return any(array.dtype != mx.float32 for array in arrays)


def _added_mask(mask: Mask | None) -> Floats | None:
    """0 where attention is allowed and −∞ where it is not: (1 or B, L, keys); None for causal attention."""
    if mask is None:
        return None
    allowed = view(mask.array)
    return np.where(allowed, np.float32(0), np.float32(-np.inf)).reshape(-1, *allowed.shape[-2:])


def view(array: mx.array) -> NDArray[Any]:
    """The array's memory, evaluated; where it is not in row-major order, a copy that is."""
    mx.eval(array)
    return np.ascontiguousarray(np.asarray(array))


def views(*arrays: mx.array) -> list[NDArray[Any]]:
    """`view` of each, evaluated at once: MLX's thread is waited for only once."""
    mx.eval(arrays)
    return [view(array) for array in arrays]


def strided_views(*arrays: mx.array) -> list[NDArray[Any]]:
    """`views`, but where an array is not in row-major order the view is not either, and nothing is copied."""
    mx.eval(arrays)
    return [np.asarray(array) for array in arrays]


def taken(memory: NDArray[Any]) -> mx.array:
    """An MLX array of row-major memory. (MLX copies flat memory ten times as fast as memory with a shape.)"""
    return mx.array(memory.reshape(-1)).reshape(memory.shape)


def product(a: mx.array, b: mx.array) -> mx.array:
    """a b: MLX's matrix product, or NumPy's where MLX has only the reference BLAS (see `mlxmath.runtime.blas`)."""
    if not blas_is_missing():
        return a @ b
    mx.eval(a, b)
    return mx.array(np.matmul(np.asarray(a), np.asarray(b)))  # a transposed factor is one by its strides, not a copy


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, num_usable_cores() - 1), thread_name_prefix="mlxmath")


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
