"""Cross-entropy of a frozen linear head without its logits.

Shapes: N target positions, D hidden width, V vocabulary, C positions in a chunk.
"""

from typing import Any

import mlx.core as mx

from mlxmath.kernels.base import Kernels
from mlxmath.models.memory import HEAD_CHUNK_BYTES
from mlxmath.models.split import Head

CHUNK_BYTES = HEAD_CHUNK_BYTES


def linear_cross_entropy(
    hidden_ND: mx.array, targets_N: mx.array, weights_N: mx.array, head: Head, kernels: Kernels
) -> mx.array:
    """Σ weight · cross-entropy(head(hidden), target), scalar in float32; differentiable in `hidden_ND` only.

    One pass: each chunk's logits give its loss and, as softmax − onehot, the gradient of its hidden states, and are
    forgotten. So the forward pass holds C·V logits instead of N·V, and the backward pass only scales (N, D).
    """
    chunk = max(1, CHUNK_BYTES // (4 * head.vocab_size))

    @mx.custom_function
    def loss_and_gradient(hidden: mx.array) -> tuple[mx.array, mx.array]:
        total = mx.array(0.0, mx.float32)
        gradients: list[mx.array] = []
        for start in range(0, hidden.shape[0], chunk):
            rows = slice(start, start + chunk)
            part = hidden[rows]
            if gradients:  # one chunk after the other, not all at once
                (part,) = mx.depends([part], [gradients[-1]])
            losses, d_logits = kernels.softmax_gradient(
                head.logits(part), targets_N[rows], weights_N[rows], head.soft_cap
            )
            gradients.append(head.hidden_gradient(d_logits.astype(hidden.dtype)))
            total = total + losses.sum()
            if not kernels.compiles:
                mx.eval(total, gradients[-1])
            del losses, d_logits  # before the next chunk's logits are made
        return total, mx.concatenate(gradients)

    @loss_and_gradient.vjp
    def loss_and_gradient_vjp(_: Any, cotangents: Any, outputs: Any) -> mx.array:
        return (cotangents[0] * outputs[1]).astype(outputs[1].dtype)

    total: mx.array = loss_and_gradient(hidden_ND)[0]
    return total
