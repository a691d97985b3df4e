"""What training asks of an objective: a loss SUM over a micro-batch; the loop divides by the window's targets once.

Shapes: N target positions, D hidden width, V vocabulary.
"""

from typing import Protocol

import mlx.core as mx

from mlxmath.data.batching import Batch
from mlxmath.models.kernels.base import Kernels
from mlxmath.models.lm_head import Head


class Objective(Protocol):
    """A loss in two forms, which are equal.

    Both return the loss sum, float32 and differentiable in their first argument: a scalar, or the first element of a
    vector whose other elements are sums to be reported.
    """

    def from_hidden(self, hidden_ND: mx.array, batch: Batch, head: Head, kernels: Kernels) -> mx.array:
        """Of the hidden states at the batch's positions; the head is frozen."""

    def from_logits(self, logits_NV: mx.array, batch: Batch) -> mx.array:
        """Of the logits at the batch's positions, for models whose head cannot be split off."""
