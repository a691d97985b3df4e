"""Cross-entropy and log-probabilities of a frozen linear head without its logits.

Shapes: N target positions, D hidden width, V vocabulary, C positions in a chunk.
"""

from typing import Any

import mlx.core as mx

from mlxmath.models.kernels.base import Kernels
from mlxmath.models.kernels.cpu import view
from mlxmath.models.lm_head import Head
from mlxmath.models.memory import HEAD_CHUNK_BYTES

CHUNK_BYTES = HEAD_CHUNK_BYTES


def linear_cross_entropy(
    hidden_ND: mx.array, targets_N: mx.array, weights_N: mx.array, head: Head, kernels: Kernels
) -> mx.array:
    """Σ weight · cross-entropy(head(hidden), target), scalar in float32; differentiable in `hidden_ND` only.

    One pass: each chunk's logits give its loss and, as softmax − onehot, the gradient of its hidden states, and are
    forgotten. So the forward pass holds C·V logits instead of N·V, and the backward pass only scales (N, D).
    """

    @mx.custom_function
    def loss_and_gradient(hidden: mx.array) -> tuple[mx.array, mx.array]:
        losses_N, gradient_ND = _one_pass(hidden, targets_N, weights_N, head, kernels, 1.0)
        return losses_N.sum(), gradient_ND

    @loss_and_gradient.vjp
    def loss_and_gradient_vjp(_: Any, cotangents: Any, outputs: Any) -> mx.array:
        return (cotangents[0] * outputs[1]).astype(outputs[1].dtype)

    total: mx.array = loss_and_gradient(hidden_ND)[0]
    return total


def linear_logprobs(
    hidden_ND: mx.array, targets_N: mx.array, head: Head, kernels: Kernels, temperature: float = 1.0
) -> mx.array:
    """log softmax(head(hidden) / temperature)[target] of each position, (N,) in float32; differentiable in `hidden_ND`.

    One pass, as in `linear_cross_entropy`: what the backward pass has to scale differs from position to position.
    """

    @mx.custom_function
    def logprobs_and_gradient(hidden: mx.array) -> tuple[mx.array, mx.array]:
        ones_N = mx.ones(targets_N.shape, mx.float32)
        losses_N, gradient_ND = _one_pass(hidden, targets_N, ones_N, head, kernels, temperature)
        return -losses_N, gradient_ND

    @logprobs_and_gradient.vjp
    def logprobs_and_gradient_vjp(_: Any, cotangents: Any, outputs: Any) -> mx.array:
        return (-cotangents[0][:, None] * outputs[1]).astype(outputs[1].dtype)

    logprobs_N: mx.array = logprobs_and_gradient(hidden_ND)[0]
    return logprobs_N


def _one_pass(
    hidden_ND: mx.array, targets_N: mx.array, weights_N: mx.array, head: Head, kernels: Kernels, temperature: float
) -> tuple[mx.array, mx.array]:
    """weight · cross-entropy of each position (N,), and the gradient of their sum (N, D)."""
    chunk = max(1, CHUNK_BYTES // (4 * head.vocab_size))
    cap = None if head.soft_cap is None else head.soft_cap / temperature  # the temperature divides capped logits
    losses: list[mx.array] = []
    gradients: list[mx.array] = []
    if not kernels.compiles and hidden_ND.dtype == mx.float32:
        hidden_ND = mx.array(view(hidden_ND))  # under autodiff, an array that is traced would keep every chunk's logits
    for start in range(0, hidden_ND.shape[0], chunk):
        rows = slice(start, start + chunk)
        part = hidden_ND[rows]
        if gradients:  # one chunk after the other, not all at once
            (part,) = mx.depends([part], [gradients[-1]])
        logits_CV = head.logits(part)
        if temperature != 1:
            logits_CV = logits_CV / temperature
        losses_C, d_logits_CV = kernels.softmax_gradient(logits_CV, targets_N[rows], weights_N[rows], cap)
        gradient_CD = head.hidden_gradient(d_logits_CV.astype(hidden_ND.dtype))
        gradients.append(gradient_CD if temperature == 1 else gradient_CD / temperature)
        losses.append(losses_C)
        if not kernels.compiles:
            mx.eval(losses[-1], gradients[-1])
        del logits_CV, d_logits_CV  # before the next chunk's logits are made
    return mx.concatenate(losses), mx.concatenate(gradients)
