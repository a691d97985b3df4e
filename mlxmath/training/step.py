"""One optimizer step: sums over the window's micro-batches, one division, one check, one update."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map

from mlxmath.data.batches import Batch, Window
from mlxmath.training.gradients import Gradients

Tree = Any


@dataclass(frozen=True)
class WindowSum:
    """Loss and gradient SUMS of a window and what they are to be divided by."""

    loss_sum: float
    grad_sum: Tree
    num_targets: int
    num_tokens: int
    bad_rows: tuple[int, ...]
    """Rows of the micro-batches whose loss was not finite."""


def accumulate(gradients: Gradients, window: Window, stopped: Callable[[], bool] = lambda: False) -> WindowSum | None:
    """Sum loss and gradient over the window, evaluating after each micro-batch so that memory stays one micro-batch's.

    Returns:
        The sums, or None if `stopped()` came true before the last micro-batch.
    """
    grad_sum: Tree = None
    losses: list[tuple[mx.array, Batch]] = []
    for batch in window.batches():
        if stopped():
            return None
        loss, grad = gradients.loss_and_gradients(batch)
        grad = tree_map(lambda g: g.astype(mx.float32), grad)  # 16-bit sums would lose small gradients
        grad_sum = grad if grad_sum is None else tree_map(mx.add, grad_sum, grad)
        mx.eval(loss, grad_sum, mx.random.state)
        losses.append((loss, batch))
    values = [loss.item() for loss, _ in losses]
    return WindowSum(
        loss_sum=math.fsum(values) if all(map(math.isfinite, values)) else math.nan,
        grad_sum=grad_sum,
        num_targets=sum(batch.num_targets for _, batch in losses),
        num_tokens=sum(batch.num_tokens for _, batch in losses),
        bad_rows=tuple(
            row
            for value, (_, batch) in zip(values, losses, strict=True)
            if not math.isfinite(value)
            for row in batch.row_ids
        ),
    )


def global_norm(tree: Tree) -> mx.array:
    """√Σ g² over all arrays of a tree."""
    return mx.sqrt(sum(mx.square(array.astype(mx.float32)).sum() for _, array in tree_flatten(tree)))


def update(
    model: nn.Module, optimizer: optim.Optimizer, sums: WindowSum, learning_rate: float, max_grad_norm: float
) -> float:
    """Divide by the window's targets, clip to `max_grad_norm` (as torch's clip_grad_norm_ does) and step.

    Returns:
        The gradient's norm before clipping. If it is not finite, nothing was changed.
    """
    norm = global_norm(sums.grad_sum) / sums.num_targets
    norm_value: float = norm.item()
    if not math.isfinite(norm_value):
        return norm_value
    factor = min(1.0, max_grad_norm / (norm_value + 1e-6)) / sums.num_targets
    optimizer.learning_rate = mx.array(learning_rate, mx.float32)
    optimizer.update(model, tree_map(lambda g: g * factor, sums.grad_sum))
    mx.eval(model.trainable_parameters(), optimizer.state)
    return norm_value


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception means that the allocator (MLX's on any device, or NumPy's) had nothing left."""
    text = str(error).lower()
    signs = ("unable to allocate", "out of memory", "outofmemory", "attempting to allocate", "insufficient memory")
    return isinstance(error, MemoryError) or any(sign in text for sign in signs)
