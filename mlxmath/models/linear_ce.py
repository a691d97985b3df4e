"""Cross-entropy, log-probabilities and entropies of a frozen linear head without its logits.

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

    def cross_entropy(
        self, outputs_NX: mx.array, targets_N: mx.array, weights_N: mx.array, smoothing: float = 0.0
    ) -> mx.array:
        """See `linear_cross_entropy`."""
        return linear_cross_entropy(outputs_NX, targets_N, weights_N, self.head, self.kernels, smoothing)

    def logprobs(self, outputs_NX: mx.array, targets_N: mx.array, temperature: float = 1.0) -> mx.array:
        """See `linear_logprobs`."""
        return linear_logprobs(outputs_NX, targets_N, self.head, self.kernels, temperature)

    def entropies(self, outputs_NX: mx.array, targets_N: mx.array, temperature: float = 1.0) -> mx.array:
        """See `linear_entropies`."""
        return linear_entropies(outputs_NX, targets_N, self.head, self.kernels, temperature)

    def hidden(self, outputs_NX: mx.array) -> mx.array:
        """(N, D) the hidden states, as they are."""
        return outputs_NX


class FullLogits:
    """Outputs are logits, of a model whose head cannot be split off; see `LossHead`."""

    def cross_entropy(
        self, outputs_NX: mx.array, targets_N: mx.array, weights_N: mx.array, smoothing: float = 0.0
    ) -> mx.array:
        """Σ weight · (logsumexp(logits) − (1 − ε) logits[target] − ε mean(logits)), in float32; ε is the smoothing."""
        losses_N = -self.logprobs(outputs_NX, targets_N)
        if smoothing:
            losses_N = losses_N + smoothing * _above_mean(outputs_NX.astype(mx.float32), targets_N)
        return (losses_N * weights_N).sum()

    def logprobs(self, outputs_NX: mx.array, targets_N: mx.array, temperature: float = 1.0) -> mx.array:
        """(N,) log softmax(logits / temperature)[target], likewise."""
        logits_NV = outputs_NX.astype(mx.float32) / temperature
        chosen_N = mx.take_along_axis(logits_NV, targets_N[:, None], axis=-1).squeeze(-1)
        return chosen_N - log_sum_exp(logits_NV)

    def entropies(self, outputs_NX: mx.array, targets_N: mx.array, temperature: float = 1.0) -> mx.array:  # noqa: ARG002
        """(N,) −Σ p log p of p = softmax(logits / temperature), likewise."""
        logits_NV = outputs_NX.astype(mx.float32) / temperature
        log_sum_N = log_sum_exp(logits_NV)
        return log_sum_N - (mx.exp(logits_NV - log_sum_N[:, None]) * logits_NV).sum(axis=-1)

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
    hidden_ND: mx.array, targets_N: mx.array, weights_N: mx.array, head: Head, kernels: Kernels, smoothing: float = 0.0
) -> mx.array:
    """Σ weight · cross-entropy(head(hidden), target), scalar in float32; differentiable in `hidden_ND` only.

    With a smoothing ε the target has the probability 1 − ε, and ε is spread over all tokens, it included (Szegedy et
    al. 2016, arXiv:1512.00567, section 7; torch's `label_smoothing`).

    One pass: each chunk's logits give its loss and, as softmax − onehot, the gradient of its hidden states, and are
    forgotten. So the forward pass holds C·V logits instead of N·V, and the backward pass only scales (N, D).
    """

    @mx.custom_function
    def loss_and_gradient(hidden: mx.array) -> tuple[mx.array, mx.array]:
        losses_N, gradient_ND = _one_pass(hidden, targets_N, weights_N, head, kernels, smoothing=smoothing)
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
        losses_N, gradient_ND = _one_pass(hidden, targets_N, ones_N, head, kernels, temperature=temperature)
        return -losses_N, gradient_ND

    @logprobs_and_gradient.vjp
    def logprobs_and_gradient_vjp(_: Any, cotangents: Any, outputs: Any) -> mx.array:
        return (-cotangents[0][:, None] * outputs[1]).astype(outputs[1].dtype)

    logprobs_N: mx.array = logprobs_and_gradient(hidden_ND)[0]
    return logprobs_N


def linear_entropies(
    hidden_ND: mx.array, targets_N: mx.array, head: Head, kernels: Kernels, temperature: float = 1.0
) -> mx.array:
    """−Σ p log p of p = softmax(head(hidden) / temperature) at each position, (N,) in float32; not differentiable.

    With z the logits and d = p − onehot(target) the gradient of the loss −log p[target], which the kernels give, it is
    loss − Σ d · z: so the exponentials are the kernels' own.
    """
    found: list[mx.array] = []
    for start in range(0, hidden_ND.shape[0], chunk := _chunk(head)):
        rows = slice(start, start + chunk)
        logits_CV = head.logits(hidden_ND[rows]).astype(mx.float32)
        logits_CV = _capped(logits_CV, head.soft_cap) / temperature
        kept_CV = logits_CV * 1  # the kernels may overwrite what they are given
        mx.eval(logits_CV, kept_CV)
        losses_C, d_CV = kernels.softmax_gradient(logits_CV, targets_N[rows], mx.ones(len(logits_CV)), None)
        found.append(losses_C - (d_CV * kept_CV).sum(axis=-1))
        mx.eval(found[-1])
    return mx.concatenate(found)


def _chunk(head: Head) -> int:
    """Positions whose logits are there at once."""
    return max(1, CHUNK_BYTES // (4 * head.vocab_size))


def _capped(logits_NV: mx.array, soft_cap: float | None) -> mx.array:
    return logits_NV if soft_cap is None else soft_cap * mx.tanh(logits_NV / soft_cap)


def _above_mean(logits_NV: mx.array, targets_N: mx.array) -> mx.array:
    """(N,) a target's logit less the mean of all."""
    return mx.take_along_axis(logits_NV, targets_N[:, None], axis=-1).squeeze(-1) - logits_NV.mean(axis=-1)


def _smoothed(
    losses_C: mx.array, d_logits_CV: mx.array, before_C: mx.array, slope_CV: mx.array | None, targets_C: mx.array,
    weights_C: mx.array, smoothing: float,
) -> tuple[mx.array, mx.array]:  # fmt: skip
    """Loss and gradient with what a smoothing ε adds: weight · ε (z[target] − mean(z)), and the gradient of that.

    Args:
        losses_C: without smoothing.
        d_logits_CV: likewise.
        before_C: z[target] − mean(z) of the capped logits z.
        slope_CV: of z in the logits; None: there is no cap.
        targets_C: token ids.
        weights_C: a factor for each loss.
        smoothing: ε.
    """
    each_C = smoothing * weights_C
    up_C, down_CV = each_C, each_C[:, None] / d_logits_CV.shape[-1]
    if slope_CV is not None:
        up_C = up_C * mx.take_along_axis(slope_CV, targets_C[:, None], axis=-1).squeeze(-1)
        down_CV = down_CV * slope_CV
    raised_CV = d_logits_CV.at[mx.arange(len(each_C)), targets_C].add(up_C.astype(d_logits_CV.dtype))
    return losses_C + each_C * before_C, raised_CV - down_CV


def _one_pass(
    hidden_ND: mx.array, targets_N: mx.array, weights_N: mx.array, head: Head, kernels: Kernels,
    *, temperature: float = 1.0, smoothing: float = 0.0,
) -> tuple[mx.array, mx.array]:  # fmt: skip
    """weight · cross-entropy of each position (N,), and the gradient of their sum (N, D)."""
    chunk = _chunk(head)
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
        if smoothing:
            capped_CV = _capped(logits_CV.astype(mx.float32), cap)
            before_C = _above_mean(capped_CV, targets_N[rows])
            slope_CV = None if cap is None else 1 - mx.square(capped_CV / cap)
            if not kernels.compiles:  # they overwrite what they are given
                mx.eval(before_C, slope_CV)
            del capped_CV
        losses_C, d_logits_CV = kernels.softmax_gradient(logits_CV, targets_N[rows], weights_N[rows], cap)
        if smoothing:
            losses_C, d_logits_CV = _smoothed(
                losses_C, d_logits_CV, before_C, slope_CV, targets_N[rows], weights_N[rows], smoothing
            )
        gradient_CD = head.hidden_gradient(d_logits_CV.astype(hidden_ND.dtype))
        gradients.append(gradient_CD if temperature == 1 else gradient_CD / temperature)
        losses.append(losses_C)
        if not kernels.compiles:
            mx.eval(losses[-1], gradients[-1])
        del logits_CV, d_logits_CV  # before the next chunk's logits are made
    return mx.concatenate(losses), mx.concatenate(gradients)
