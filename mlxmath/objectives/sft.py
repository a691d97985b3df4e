"""Supervised fine-tuning: next-token cross-entropy on the target positions.

Shapes: N target positions, D hidden width, V vocabulary.
"""

import mlx.core as mx

from mlxmath.data.batching import Batch
from mlxmath.models.kernels.base import Kernels
from mlxmath.models.linear_ce import linear_cross_entropy
from mlxmath.models.lm_head import Head


class SupervisedFineTuning:
    """Σ weight · (logsumexp(logits) − logits[target]); see `Objective`."""

    def from_hidden(self, hidden_ND: mx.array, batch: Batch, head: Head, kernels: Kernels) -> mx.array:
        """In one pass, without the logits."""
        return linear_cross_entropy(hidden_ND, batch.targets_N, batch.weights_N, head, kernels)

    def from_logits(self, logits_NV: mx.array, batch: Batch) -> mx.array:
        """In float32 whatever the logits' type."""
        logits_NV = logits_NV.astype(mx.float32)
        chosen_N = mx.take_along_axis(logits_NV, batch.targets_N[:, None], axis=-1).squeeze(-1)
        return ((mx.logsumexp(logits_NV, axis=-1) - chosen_N) * batch.weights_N).sum()
