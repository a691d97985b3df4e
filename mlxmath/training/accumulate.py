"""Sums of losses and gradients over the micro-batches of a step, over all workers and ranks."""

import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map, tree_map_with_path, tree_unflatten

from mlxmath.data.batch import Batch
from mlxmath.data.batching import StepBatch
from mlxmath.runtime.ranks import Ranks
from mlxmath.training.gradients import Gradients
from mlxmath.training.workers import Workers

Tree = Any
_DIGIT = 4096
"""Counts travel as two digits of this base: float32 holds integers to 2**24 only."""


@dataclass(frozen=True)
class StepSums:
    """Loss and gradient SUMS of a step and what they are to be divided by."""

    loss_sum: float
    grad_sum: Tree
    num_targets: int
    num_tokens: int
    bad_rows: tuple[int, ...]
    """Rows of the micro-batches whose loss was not finite."""
    metric_sums: tuple[float, ...] = ()
    """What the objective reports beside the loss."""

    def __add__(self, other: "StepSums") -> "StepSums":
        return StepSums(
            self.loss_sum + other.loss_sum,
            tree_map(mx.add, self.grad_sum, other.grad_sum),
            self.num_targets + other.num_targets,
            self.num_tokens + other.num_tokens,
            self.bad_rows + other.bad_rows,
            tuple(map(operator.add, self.metric_sums, other.metric_sums)),
        )


def accumulate(workers: Workers, step: StepBatch, stopped: Callable[[], bool] = lambda: False) -> StepSums | None:
    """Sum loss and gradient over this rank's part of the step.

    Each micro-batch is evaluated before the next, so that memory stays one's. Dropout draws from a key of each
    micro-batch's own, so that it does not matter which worker takes it.

    Returns:
        The sums, or None if `stopped()` came true before the last micro-batch.
    """
    keys = mx.random.split(mx.array(mx.random.state[0]), len(step.micro_batches) + 1)
    mx.eval(keys)

    def work(gradients: Gradients, share: tuple[int, ...]) -> StepSums | None:
        sums: StepSums | None = None
        for index in share:
            if stopped():
                return None
            mx.random.state[0][:] = keys[index]
            batch = step.batch(index)
            loss, grad = gradients.loss_and_gradients(batch)
            grad = tree_map(lambda g: g.astype(mx.float32), grad)  # 16-bit sums would lose small gradients
            if sums is not None:
                grad = tree_map(mx.add, sums.grad_sum, grad)
                sums = replace(sums, grad_sum=None)  # so that the addition can take place in its memory
            mx.eval(loss, grad, mx.random.state)  # the only time that the device is waited for
            sums = _counted(sums, loss, grad, batch)
        return sums

    parts = workers.run(work, workers.own(step.shares(workers.num_in_all)))
    mx.random.state[0][:] = keys[-1]
    whole = [part for part in parts if part is not None]
    if len(whole) < len(parts):
        return None
    return functools.reduce(operator.add, whole) if whole else _nothing(workers.model)


def _nothing(model: nn.Module) -> StepSums:
    """The sums over no rows."""
    zeros = [(name, mx.zeros(array.shape, mx.float32)) for name, array in tree_flatten(model.trainable_parameters())]
    return StepSums(0.0, tree_unflatten(zeros), 0, 0, ())


def over_ranks(sums: StepSums, ranks: Ranks, num_metrics: int) -> StepSums:
    """The sums of all ranks' parts, by one all-reduce of a flat float32 vector; to be called right after a vote.

    Args:
        sums: of this rank.
        ranks: all of them.
        num_metrics: what the objective reports beside the loss, also where a rank had no rows.
    """
    if ranks.size == 1:
        return sums
    counts = (*divmod(sums.num_targets, _DIGIT), *divmod(sums.num_tokens, _DIGIT))
    numbers = mx.array([sums.loss_sum, *counts, *(sums.metric_sums or [0.0] * num_metrics)], mx.float32)
    gradients = sorted(tree_flatten(sums.grad_sum))
    total = ranks.sum(mx.concatenate([numbers, *(array.reshape(-1) for _, array in gradients)]))
    loss, *rest = total[: numbers.size].tolist()
    targets, tokens = (int(high) * _DIGIT + int(low) for high, low in (rest[:2], rest[2:4]))
    found, start = {}, numbers.size
    for name, array in gradients:
        found[name] = total[start : start + array.size].reshape(array.shape)
        start += array.size
    grad_sum = tree_map_with_path(lambda name, _: found[name], sums.grad_sum)
    bad_rows = sums.bad_rows
    if not math.isfinite(loss):
        bad_rows = tuple(row for rows in ranks.gather("bad rows", sums.bad_rows) for row in rows)
    return StepSums(loss, grad_sum, targets, tokens, bad_rows, tuple(rest[4:]))


def _counted(before: StepSums | None, loss: mx.array, grad_sum: Tree, batch: Batch) -> StepSums:
    """The sums with one more micro-batch, whose gradients are in `grad_sum` already."""
    value, *metrics = loss.reshape(-1).tolist()
    bad_rows = () if math.isfinite(value) else batch.row_ids
    if before is None:
        return StepSums(value, grad_sum, batch.num_targets, batch.num_tokens, bad_rows, tuple(metrics))
    return StepSums(
        before.loss_sum + value,
        grad_sum,
        before.num_targets + batch.num_targets,
        before.num_tokens + batch.num_tokens,
        before.bad_rows + bad_rows,
        tuple(map(operator.add, before.metric_sums, metrics)),
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception means that the allocator (MLX's on any device, or NumPy's) had nothing left."""
    text = str(error).lower()
    signs = ("unable to allocate", "out of memory", "outofmemory", "attempting to allocate", "insufficient memory")
    return isinstance(error, MemoryError) or any(sign in text for sign in signs)
