"""The kernels' interface.

Shapes: B rows, L positions, H query heads, K key and value heads (H a multiple of K), D head width, F feed-forward
width, N tokens, V vocabulary.
"""

from typing import Protocol

import mlx.core as mx


class Kernels(Protocol):
    """The operations of a training step that have a form of their own on some device."""

    compiles: bool
    """Whether they may run inside `mx.compile` and build a graph; if not, they look at values."""

    def swiglu(self, gate_BLF: mx.array, up_BLF: mx.array) -> mx.array:
        """silu(gate) · up (Shazeer 2020, arXiv:2002.05202)."""

    def swiglu_backward(self, gate_BLF: mx.array, up_BLF: mx.array, d_BLF: mx.array) -> tuple[mx.array, mx.array]:
        """d gate = d · up · σ (1 + gate (1 − σ)) and d up = d · gate · σ, with σ = sigmoid(gate)."""

    def attention(
        self, q_BHLD: mx.array, k_BKLD: mx.array, v_BKLD: mx.array, scale: float, mask: mx.array | None
    ) -> tuple[mx.array, mx.array]:
        """softmax(scale · q kᵀ) v where `mask` (1 or B, 1, L, keys) is True; causal if it is None.

        With a mask there may be more keys than queries.

        Returns:
            The result (B, H, L, D), and what the backward pass needs besides the arguments.
        """

    def attention_backward(
        self,
        q_BHLD: mx.array,
        k_BKLD: mx.array,
        v_BKLD: mx.array,
        scale: float,
        mask: mx.array | None,
        output: tuple[mx.array, mx.array],
        d_BHLD: mx.array,
    ) -> tuple[mx.array, mx.array, mx.array]:
        """The gradients of q, k and v (Dao et al. 2022, arXiv:2205.14135, appendix B)."""

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
