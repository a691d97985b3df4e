"""What the training loop knows of an objective: a loss SUM over a micro-batch."""

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlxmath.data.batches import Batch


@dataclass(frozen=True)
class LossSum:
    """Sum of a loss over a micro-batch; the loop divides by the window's total weight once.

    total: scalar, float32.
    """

    total: mx.array


Objective = Callable[[nn.Module, Batch], LossSum]
