"""The kernels in MLX's own operations: for every device, and the reference for the others."""

import mlx.core as mx


class PortableKernels:
    """See `Kernels`."""

    compiles = True

    def swiglu(self, gate_BLF: mx.array, up_BLF: mx.array) -> mx.array:
        """silu(gate) · up."""
        return gate_BLF * mx.sigmoid(gate_BLF) * up_BLF

    def swiglu_backward(self, gate_BLF: mx.array, up_BLF: mx.array, d_BLF: mx.array) -> tuple[mx.array, mx.array]:
        """By autodiff."""
        d_gate, d_up = mx.vjp(self.swiglu, [gate_BLF, up_BLF], [d_BLF])[1]
        return d_gate, d_up

    def attention(
        self, q_BHLD: mx.array, k_BKLD: mx.array, v_BKLD: mx.array, scale: float, mask: mx.array | None
    ) -> tuple[mx.array, mx.array]:
        """MLX's fused attention where the device has it."""
        out_BHLD = mx.fast.scaled_dot_product_attention(
            q_BHLD, k_BKLD, v_BKLD, scale=scale, mask="causal" if mask is None else mask
        )
        return out_BHLD, out_BHLD

    def attention_backward(
        self,
        q_BHLD: mx.array,
        k_BKLD: mx.array,
        v_BKLD: mx.array,
        scale: float,
        mask: mx.array | None,
        output: tuple[mx.array, mx.array],  # noqa: ARG002 (autodiff computes it again)
        d_BHLD: mx.array,
    ) -> tuple[mx.array, mx.array, mx.array]:
        """By autodiff."""
        d_q, d_k, d_v = mx.vjp(
            lambda q, k, v: self.attention(q, k, v, scale, mask)[0], [q_BHLD, k_BKLD, v_BKLD], [d_BHLD]
        )[1]
        return d_q, d_k, d_v

    def softmax_gradient(
        self, logits_NV: mx.array, targets_N: mx.array, weights_N: mx.array, soft_cap: float | None
    ) -> tuple[mx.array, mx.array]:
        """softmax(logits) − onehot(target), times the weight; times 1 − (logits / cap)² under a cap."""
        logits_NV = logits_NV.astype(mx.float32)
        if soft_cap is not None:
            logits_NV = soft_cap * mx.tanh(logits_NV / soft_cap)
        log_sum_N1 = mx.logsumexp(logits_NV, axis=-1, keepdims=True)
        at_target_N1 = mx.take_along_axis(logits_NV, targets_N[:, None], axis=-1)
        losses_N = (log_sum_N1 - at_target_N1).squeeze(-1) * weights_N
        is_target_NV = mx.arange(logits_NV.shape[-1])[None] == targets_N[:, None]
        gradient_NV = (mx.exp(logits_NV - log_sum_N1) - is_target_NV) * weights_N[:, None]
        if soft_cap is not None:
            gradient_NV = gradient_NV * (1 - mx.square(logits_NV / soft_cap))
        return losses_N, gradient_NV
