"""Supervised fine-tuning: next-token cross-entropy on the target positions.

Shapes: B rows, L positions, V vocabulary.
"""

import mlx.core as mx
import mlx.nn as nn

from mlxmath.data.batches import Batch
from mlxmath.objectives.base import LossSum


def cross_entropy_sum(logits_BLV: mx.array, targets_BL: mx.array, weights_BL: mx.array) -> mx.array:
    """Σ weight · (logsumexp(logits) − logits[target]), in float32 whatever the logits' type."""
    logits_BLV = logits_BLV.astype(mx.float32)
    chosen_BL = mx.take_along_axis(logits_BLV, targets_BL[..., None], axis=-1).squeeze(-1)
    losses_BL = mx.logsumexp(logits_BLV, axis=-1) - chosen_BL
    return (losses_BL * weights_BL).sum()


def sft_loss(model: nn.Module, batch: Batch) -> LossSum:
    """Cross-entropy summed over the batch's target tokens."""
    return LossSum(cross_entropy_sum(model(batch.inputs_BL), batch.targets_BL, batch.weights_BL))
