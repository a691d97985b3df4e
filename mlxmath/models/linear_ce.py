"""Cross-entropy and log-probabilities of a frozen linear head without its logits.

Shapes: N target positions, D hidden width, V vocabulary, X either of them, C positions in a chunk.
"""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlxmath.errors import MlxmathError
from mlxmath.models.kernels.cpu import view
from mlxmath.models.kernels.portable import Kernels, log_sum_exp
from mlxmath.models.lm_head import Head
from mlxmath.models.memory import HEAD_CHUNK_BYTES

CHUNK_BYTES = HEAD_CHUNK_BYTES


@dataclass(frozen=True)
class FusedHead:
    """Outputs are hidden states, whose logits are never all there at once; see `LossHead`."""

    head: Head
    kernels: Kernels

    def cross_entropy(self, outputs_NX: mx.array, targets_N: mx.array, weights_N: mx.array) -> mx.array:
        """See `linear_cross_entropy`."""
        return linear_cross_entropy(outputs_NX, targets_N, weights_N, self.head, self.kernels)

    def logprobs(self, outputs_NX: mx.array, targets_N: mx.array, temperature: float = 1.0) -> mx.array:
        """See `linear_logprobs`."""
        return linear_logprobs(outputs_NX, targets_N, self.head, self.kernels, temperature)

    def hidden(self, outputs_NX: mx.array) -> mx.array:
        """(N, D) the hidden states, as they are."""
        return outputs_NX


class FullLogits:
    """Outputs are logits, of a model whose head cannot be split off; see `LossHead`."""

    def cross_entropy(self, outputs_NX: mx.array, targets_N: mx.array, weights_N: mx.array) -> mx.array:
        """Σ weight · (logsumexp(logits) − logits[target]), in float32 whatever the logits' type."""
        return (-self.logprobs(outputs_NX, targets_N) * weights_N).sum()

    def logprobs(self, outputs_NX: mx.array, targets_N: mx.array, temperature: float = 1.0) -> mx.array:
        """(N,) log softmax(logits / temperature)[target], likewise."""
        logits_NV = outputs_NX.astype(mx.float32) / temperature
        chosen_N = mx.take_along_axis(logits_NV, targets_N[:, None], axis=-1).squeeze(-1)
        return chosen_N - log_sum_exp(logits_NV)

    def hidden(self, outputs_NX: mx.array) -> mx.array:  # noqa: ARG002
        """Logits do not tell the hidden states.

        Raises:
            MlxmathError: always.
        """
        raise MlxmathError(
            "the hidden states of this model cannot be had apart from its logits; choose another for a reward model."
        )


LossHead = FusedHead | FullLogits
"""What a loss asks of a model's outputs (N, X) at the target positions, differentiable in them; float32."""


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
