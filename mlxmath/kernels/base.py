"""The kernels' interface.

Shapes: B rows, L positions, H query heads, K key and value heads, D head width, F feed-forward width, N tokens,
V vocabulary.
"""

from typing import Protocol

import mlx.core as mx


class Kernels(Protocol):
    """Operations with a form of their own on some device."""

    compiles: bool
    """Whether they may run inside `mx.compile`."""

    def swiglu(self, gate_BLF: mx.array, up_BLF: mx.array) -> mx.array:
        """silu(gate) · up (Shazeer 2020, arXiv:2002.05202). Differentiable in both."""

    def attention(self, q_BHLD: mx.array, k_BKLD: mx.array, v_BKLD: mx.array, scale: float) -> mx.array:
        """softmax(scale · q kᵀ, causal) v, with H a multiple of K. Differentiable in all three; (B, H, L, D)."""

    def softmax_gradient(
        self, logits_NV: mx.array, targets_N: mx.array, weights_N: mx.array, soft_cap: float | None
    ) -> tuple[mx.array, mx.array]:
        """Cross-entropy and its gradient in one pass over the logits, in float32.

        Args:
            logits_NV: before the cap. They may be overwritten.
            targets_N: token ids.
            weights_N: a factor for each token's loss.
            soft_cap: logits become cap · tanh(logits / cap) first (Gemma 2, arXiv:2408.00118).

        Returns:
            weight · loss of each token (N,), and d Σ weight · loss / d logits (N, V).
        """
