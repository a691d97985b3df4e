"""What training asks of an objective: a loss SUM over a micro-batch; the loop divides by the window's targets once.

Shapes: N target positions, D hidden width, V vocabulary.
"""

from typing import Protocol

import mlx.core as mx

from mlxmath.data.batches import Batch
from mlxmath.kernels.base import Kernels
from mlxmath.models.split import Head


class Objective(Protocol):
    """A loss in two forms, which are equal. Both return a scalar, float32, differentiable in their first argument."""

    def from_hidden(self, hidden_ND: mx.array, batch: Batch, head: Head, kernels: Kernels) -> mx.array:
        """Of the hidden states at the batch's positions; the head is frozen."""

    def from_logits(self, logits_NV: mx.array, batch: Batch) -> mx.array:
        """Of the logits at the batch's positions, for models whose head cannot be split off."""
