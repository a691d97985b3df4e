"""The softmax-and-gradient of a chunk of logits as one kernel on Metal and CUDA.

MLX's own operations pass over the (N, V) logits some six times; the kernel reads them twice and writes them once. Its
body is one text for both languages; `_LANGUAGES` holds the few words in which they differ.

Shapes: N tokens, V vocabulary.
"""

import hashlib
from typing import Any

import mlx.core as mx

from mlxmath.models.kernels.portable import Kernels

NUM_THREADS = 256
"""Threads that share a row."""

BODY = """
    SHARED float tops[NUM_THREADS];
    SHARED float sums[NUM_THREADS];
    const int vocabulary = size[0];
    const int target = targets[row];
    const float weight = weights[row];
    const float cap = soft_cap[0];
    const size_t start = (size_t)row * (size_t)vocabulary;

    // largest logit and sum of exponentials in one pass, rescaled whenever a larger one comes
    float top = -3.0e38f, sum = 0.0f;
    for (int v = lane; v < vocabulary; v += NUM_THREADS) {
        float x = (float)logits[start + v];
        if (cap > 0.0f) x = cap * tanh(x / cap);
        if (x > top) {
            sum = sum * exp(top - x) + 1.0f;
            top = x;
        } else {
            sum += exp(x - top);
        }
    }
    tops[lane] = top;
    sums[lane] = sum;
    BARRIER;
    for (int half_ = NUM_THREADS / 2; half_ > 0; half_ /= 2) {
        if (lane < half_) {
            const float a = tops[lane], b = tops[lane + half_], c = a > b ? a : b;
            sums[lane] = sums[lane] * exp(a - c) + sums[lane + half_] * exp(b - c);
            tops[lane] = c;
        }
        BARRIER;
    }
    top = tops[0];
    sum = sums[0];

    if (lane == 0) {
        float x = (float)logits[start + target];
        if (cap > 0.0f) x = cap * tanh(x / cap);
        losses[row] = weight * (log(sum) + top - x);
    }
    for (int v = lane; v < vocabulary; v += NUM_THREADS) {
        float x = (float)logits[start + v];
        if (cap > 0.0f) x = cap * tanh(x / cap);
        float d = weight * (exp(x - top) / sum - (v == target ? 1.0f : 0.0f));
        if (cap > 0.0f) d *= 1.0f - (x / cap) * (x / cap);
        gradient[start + v] = (T)d;
    }
"""

_LANGUAGES = {
    "metal": """
    #define SHARED threadgroup
    #define BARRIER threadgroup_barrier(mem_flags::mem_threadgroup)
    const int row = (int)threadgroup_position_in_grid.x;
    const int lane = (int)thread_position_in_threadgroup.x;
""",
    "cuda": """
    #define SHARED __shared__
    #define BARRIER __syncthreads()
    const int row = (int)blockIdx.x;
    const int lane = (int)threadIdx.x;
""",
}


class GpuKernels(Kernels):
    """MLX's operations, but for `softmax_gradient`.

    Args:
        language: "metal" or "cuda".
    """

    def __init__(self, language: str) -> None:
        make: Any = {"metal": mx.fast.metal_kernel, "cuda": mx.fast.cuda_kernel}[language]
        source = _LANGUAGES[language] + BODY
        # MLX keeps compiled kernels on disk by their names, also when another version of this text comes
        version = hashlib.sha256(source.encode()).hexdigest()[:8]
        self._kernel = make(
            name=f"mlxmath_softmax_gradient_{version}",
            input_names=["logits", "targets", "weights", "soft_cap", "size"],
            output_names=["losses", "gradient"],
            source=source,
        )

    def softmax_gradient(
        self, logits_NV: mx.array, targets_N: mx.array, weights_N: mx.array, soft_cap: float | None
    ) -> tuple[mx.array, mx.array]:
        """In float32, whatever the logits' type; the gradient has theirs."""
        num_tokens, vocabulary = logits_NV.shape
        losses_N, gradient_NV = self._kernel(
            inputs=[
                logits_NV,
                targets_N.astype(mx.int32),
                weights_N.astype(mx.float32),
                mx.array([soft_cap or 0.0], mx.float32),
                mx.array([vocabulary], mx.int32),
            ],
            template=[("T", logits_NV.dtype), ("NUM_THREADS", NUM_THREADS)],
            grid=(num_tokens * NUM_THREADS, 1, 1),
            threadgroup=(NUM_THREADS, 1, 1),
            output_shapes=[(num_tokens,), logits_NV.shape],
            output_dtypes=[mx.float32, logits_NV.dtype],
        )
        return losses_N, gradient_NV


class FastKernels(Kernels):
    """MLX's operations, with its own fused cross-entropy for `softmax_gradient`."""

    def softmax_gradient(
        self, logits_NV: mx.array, targets_N: mx.array, weights_N: mx.array, soft_cap: float | None
    ) -> tuple[mx.array, mx.array]:
        """In float32 within the kernel, whatever the logits' type; the gradient has theirs."""

        def losses(logits: mx.array) -> mx.array:
            if soft_cap is not None:
                logits = soft_cap * mx.tanh(logits.astype(mx.float32) / soft_cap)
            return mx.fast.cross_entropy(logits, targets_N)

        (losses_N,), (gradient_NV,) = mx.vjp(losses, [logits_NV], [weights_N.astype(mx.float32)])
        return losses_N * weights_N, gradient_NV


def works(kernels: Kernels) -> bool:
    """Whether the kernel compiles on this device and agrees with MLX's own operations there."""
    logits_NV = mx.random.normal((3, 1000), key=mx.random.key(0)) * 5
    targets_N, weights_N = mx.array([0, 999, 17]), mx.array([1.0, 0.5, 0.0])
    for soft_cap in (None, 4.0):
        expected = Kernels().softmax_gradient(logits_NV, targets_N, weights_N, soft_cap)
        try:
            found = kernels.softmax_gradient(logits_NV, targets_N, weights_N, soft_cap)
            mx.eval(found)
        except (RuntimeError, ValueError):
            return False
        if not all(mx.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(found, expected, strict=True)):
            return False
    return True
