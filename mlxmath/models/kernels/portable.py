"""The kernels in MLX's own operations: for every device, and the reference for the forms that some devices have.

Shapes: B rows, L positions, H query heads, K key and value heads (H a multiple of K), D head width, F feed-forward
width, N tokens, V vocabulary.
"""

import mlx.core as mx

from mlxmath.models.kernels import long_rows
from mlxmath.models.masks import Mask

_BLOCK = 512
"""Terms that float32 adds up one after the other without losing any."""
LEAST_PROBABILITY = 1e-37
"""Of a mixture, so that its logarithm is finite; what is less weighs nothing."""


class Kernels:
    """A device's own form overrides what it computes otherwise."""

    compiles = True
    """Whether they may run inside `mx.compile` and build a graph; if not, they look at values."""
    attention_multiple = 1
    """Of positions, to which a model's own attention is padded; see `mlxmath.models.attention`."""

    def swiglu(self, gate_BLF: mx.array, up_BLF: mx.array) -> mx.array:
        """silu(gate) · up (Shazeer 2020, arXiv:2002.05202)."""
        return gate_BLF * mx.sigmoid(gate_BLF) * up_BLF

    def swiglu_backward(self, gate_BLF: mx.array, up_BLF: mx.array, d_BLF: mx.array) -> tuple[mx.array, mx.array]:
        """d gate = d · up · σ (1 + gate (1 − σ)) and d up = d · gate · σ, with σ = sigmoid(gate): here by autodiff."""
        d_gate, d_up = mx.vjp(self.swiglu, [gate_BLF, up_BLF], [d_BLF])[1]
        return d_gate, d_up

    def attention(
        self, q_BHLD: mx.array, k_BKLD: mx.array, v_BKLD: mx.array, scale: float, mask: Mask | None
    ) -> tuple[mx.array, mx.array]:
        """softmax(scale · q kᵀ) v where the mask lets a query see; causal if it is None.

        With a mask there may be more keys than queries. Here it is MLX's own attention, and for long rows that by
        blocks.

        Returns:
            The result (B, H, L, D), and what the backward pass needs besides the arguments.
        """
        if q_BHLD.shape[2] > long_rows.block():
            return long_rows.attention(q_BHLD, k_BKLD, v_BKLD, scale, mask)
        out_BHLD = mx.fast.scaled_dot_product_attention(
            q_BHLD, k_BKLD, v_BKLD, scale=scale, mask="causal" if mask is None else mask.array
        )
        return out_BHLD, out_BHLD

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
        """The gradients of q, k and v (Dao et al. 2022, arXiv:2205.14135, appendix B): here by autodiff."""
        if q_BHLD.shape[2] > long_rows.block():
            return long_rows.attention_backward(q_BHLD, k_BKLD, v_BKLD, scale, mask, output, d_BHLD)
        d_q, d_k, d_v = mx.vjp(
            lambda q, k, v: self.attention(q, k, v, scale, mask)[0], [q_BHLD, k_BKLD, v_BKLD], [d_BHLD]
        )[1]
        return d_q, d_k, d_v

    def softmax_gradient(
        self, logits_NV: mx.array, targets_N: mx.array, weights_N: mx.array, soft_cap: float | None
    ) -> tuple[mx.array, mx.array]:
        """Cross-entropy and its gradient in one pass over the logits, in float32.

        The gradient is (softmax(logits) − onehot(target)) · weight, times 1 − (logits / cap)² under a cap.

        Args:
            logits_NV: before the cap. They may be overwritten.
            targets_N: token ids.
            weights_N: a factor for each token's loss.
            soft_cap: logits become cap · tanh(logits / cap) first (Gemma 2, arXiv:2408.00118).

        Returns:
            weight · loss of each token (N,), and d Σ weight · loss / d logits (N, V).
        """
        logits_NV = logits_NV.astype(mx.float32)
        if soft_cap is not None:
            logits_NV = soft_cap * mx.tanh(logits_NV / soft_cap)
        log_sum_N1 = log_sum_exp(logits_NV, keepdims=True)
        at_target_N1 = mx.take_along_axis(logits_NV, targets_N[:, None], axis=-1)
        losses_N = (log_sum_N1 - at_target_N1).squeeze(-1) * weights_N
        is_target_NV = mx.arange(logits_NV.shape[-1])[None] == targets_N[:, None]
        gradient_NV = (mx.exp(logits_NV - log_sum_N1) - is_target_NV) * weights_N[:, None]
        if soft_cap is not None:
            gradient_NV = gradient_NV * (1 - mx.square(logits_NV / soft_cap))
        return losses_N, gradient_NV

    def divergence_gradient(
        self, own_NV: mx.array, other_NV: mx.array, beta: float, temperature: float,
        own_cap: float | None = None, other_cap: float | None = None,
    ) -> tuple[mx.array, mx.array, mx.array]:  # fmt: skip
        """The generalized Jensen-Shannon divergence of a student's distribution p and a teacher's q, in float32.

        β KL(q ‖ m) + (1 − β) KL(p ‖ m) with m = (1 − β) p + β q; at β = 0 it is KL(q ‖ p), at β = 1 KL(p ‖ q) (Agarwal
        et al. 2024, arXiv:2306.13649, equation 1, with the ends that TRL gives it). With the logits z = logits /
        temperature its gradient is p − q at 0, p ∘ (log p − log q − KL(p ‖ q)) at 1, and between them
        (1 − β) p ∘ (log p − log m − KL(p ‖ m)); times 1 − (logits / cap)² under a cap.

        Args:
            own_NV: the student's logits, before the cap. They may be overwritten, as the teacher's may be.
            other_NV: the teacher's.
            beta: from 0 to 1.
            temperature: that capped logits are divided by.
            own_cap: logits become cap · tanh(logits / cap) first.
            other_cap: the teacher's.

        Returns:
            The divergence of each token (N,), the entropy of p (N,), and the gradient of the student's logits (N, V).
        """
        own_NV, other_NV = own_NV.astype(mx.float32), other_NV.astype(mx.float32)
        if own_cap is not None:
            own_NV = own_cap * mx.tanh(own_NV / own_cap)
        if other_cap is not None:
            other_NV = other_cap * mx.tanh(other_NV / other_cap)
        log_p_NV, log_q_NV = (
            x_NV / temperature - log_sum_exp(x_NV / temperature, keepdims=True) for x_NV in (own_NV, other_NV)
        )
        p_NV = mx.exp(log_p_NV)
        entropies_N = -(p_NV * log_p_NV).sum(axis=-1)
        if beta == 0:
            q_NV = mx.exp(log_q_NV)
            divergences_N, gradient_NV = (q_NV * (log_q_NV - log_p_NV)).sum(axis=-1), p_NV - q_NV
        else:
            log_m_NV, q_NV = log_q_NV, None
            if beta != 1:
                q_NV = mx.exp(log_q_NV)
                log_m_NV = mx.log(mx.maximum((1 - beta) * p_NV + beta * q_NV, LEAST_PROBABILITY))
            from_student_N = (p_NV * (log_p_NV - log_m_NV)).sum(axis=-1)
            gradient_NV = p_NV * (log_p_NV - log_m_NV - from_student_N[:, None])
            divergences_N = from_student_N
            if q_NV is not None:
                from_teacher_N = (q_NV * (log_q_NV - log_m_NV)).sum(axis=-1)
                divergences_N = beta * from_teacher_N + (1 - beta) * from_student_N
                gradient_NV = (1 - beta) * gradient_NV
        gradient_NV = gradient_NV / temperature
        if own_cap is not None:
            gradient_NV = gradient_NV * (1 - mx.square(own_NV / own_cap))
        return divergences_N, entropies_N, gradient_NV


def log_sum_exp(x_NV: mx.array, *, keepdims: bool = False) -> mx.array:
    """log Σ exp(x) over the last axis, differentiable.

    On a CPU MLX adds a row's terms one after the other, and those of a vocabulary's tail are rounded away: sums come
    out too low by some 1e-4 nats. So there the logarithms of blocks are summed first.
    """
    whole = x_NV.shape[-1] // _BLOCK * _BLOCK
    if whole and mx.default_device() == mx.Device(mx.cpu, 0):
        blocks = mx.logsumexp(mx.unflatten(x_NV[..., :whole], -1, (-1, _BLOCK)), axis=-1)
        rest = [mx.logsumexp(x_NV[..., whole:], axis=-1, keepdims=True)] if whole < x_NV.shape[-1] else []
        x_NV = mx.concatenate([blocks, *rest], axis=-1)
    return mx.logsumexp(x_NV, axis=-1, keepdims=keepdims)
