"""Sums of losses and gradients over the micro-batches of a step, over all workers and ranks.

MLX computes element-wise operations on one thread, and a matrix product of a few hundred rows is no faster on two cores
than two of them on one core each. So on a CPU each worker takes whole micro-batches: a thread, with MLX's own stream
for it, the products' threads limited to that one. Workers share the weights, which nobody changes meanwhile. On a GPU
there is one worker, which is the calling thread.

Where several processes train together (`Ranks`), a step is shared out among all workers of all of them.
"""

import copy
import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map, tree_map_with_path, tree_unflatten

from mlxmath.data.batch import Batch
from mlxmath.data.batching import StepBatch
from mlxmath.models.threads import computing_threads
from mlxmath.runtime.blas import limit_threads
from mlxmath.runtime.ranks import Ranks
from mlxmath.training.gradients import Gradients, Tree
from mlxmath.training.offloaded import OffloadedGradients, Together

Share = TypeVar("Share")
Result = TypeVar("Result")
_DIGIT = 4096
"""Counts travel as two digits of this base: float32 holds integers to 2**24 only."""


class Workers:
    """Computes shares of a window side by side.

    Args:
        model: its arrays are shared, also those that training replaces later.
        gradients_of: makes the loss and gradients of a model; called for `model` and for each replica.
        count: shares at a time.
        ranks: the processes that train together; each may have another `count`.
    """

    def __init__(
        self,
        model: nn.Module,
        gradients_of: Callable[[nn.Module], Gradients],
        count: int = 1,
        ranks: Ranks | None = None,
    ) -> None:
        self.model, self.ranks = model, ranks or Ranks()
        counts: list[int] = self.ranks.gather("workers", count)
        self.num_in_all = sum(counts)
        """Shares at a time on all ranks together."""
        self._before = sum(counts[: self.ranks.rank])
        self._replicas = [replica(model) for _ in range(count - 1)]
        self._gradients = [gradients_of(each) for each in (model, *self._replicas)]
        self._threads = [computing_threads(1) for _ in self._replicas]  # the same for the whole run
        mx.eval([each.state for each in (model, *self._replicas)])  # a thread cannot evaluate another's graph

    @property
    def count(self) -> int:
        """Shares at a time."""
        return len(self._gradients)

    @functools.cached_property
    def cannot_share(self) -> str | None:
        """Why rows cannot go on from prompts that are computed once; None if they can."""
        return self._on_any_rank(self._gradients[0].cannot_share())

    @functools.cached_property
    def cannot_pack(self) -> str | None:
        """Why rows cannot be packed; None if they can."""
        return self._on_any_rank(self._gradients[0].cannot_pack())

    def _on_any_rank(self, reason: str | None) -> str | None:
        """The first rank's reason that has one: windows are the same on all."""
        return next((each for each in self.ranks.gather("gradients", reason) if each), None)

    @property
    def takes_parts(self) -> bool:
        """See `Gradients`."""
        return self._gradients[0].takes_parts

    @property
    def how(self) -> str:
        """The way in which gradients are computed and why, for people."""
        at_once = f", {self.num_in_all} micro-batches at once" if self.num_in_all > 1 else ""
        return self._gradients[0].how + at_once + (f" on {self.ranks.size} ranks" if self.ranks.size > 1 else "")

    def own(self, shares: Sequence[Share]) -> Sequence[Share]:
        """Those of `shares`, of which there are at most `num_in_all`, that this rank's workers take."""
        return shares[self._before : self._before + self.count]

    def together(self, num_shares: int, stopped: Callable[[], bool], *, backward: bool) -> Together | None:
        """How that many of this rank's workers go through the blocks, where these are on the disk; else None."""
        gradients = self._gradients[0]
        if not isinstance(gradients, OffloadedGradients) or not num_shares:
            return None
        return Together(gradients.offloaded, gradients.order(backward=backward), num_shares, stopped)

    def close(self) -> None:
        """End the threads. The workers can no longer be used."""
        for thread in self._threads:
            thread.shutdown()

    def run(self, work: Callable[[Gradients, Share], Result], shares: Sequence[Share]) -> list[Result]:
        """`work(gradients, share)` for each of at most `count` shares, at once; the results must be evaluated.

        Raises:
            Exception: one that any of them raised, after all have ended.
        """
        assert len(shares) <= self.count
        if not shares:
            return []
        for other in self._replicas:
            other.update(self.model.trainable_parameters())
            other.train(self.model.training)
        if not self._threads:
            return [work(self._gradients[0], shares[0])]
        with limit_threads(1):
            futures = [
                thread.submit(work, gradients, share)
                for thread, gradients, share in zip(self._threads, self._gradients[1:], shares[1:], strict=False)
            ]
            try:
                first = work(self._gradients[0], shares[0])
            finally:
                wait(futures)
        return [first, *(future.result() for future in futures)]


def replica(model: nn.Module) -> nn.Module:
    """Another tree of modules with the same arrays: assigning to one of its parameters leaves `model` alone."""
    made: dict[int, Any] = {}

    def copied(value: Any) -> Any:
        if id(value) in made:
            return made[id(value)]
        if isinstance(value, nn.Module):
            made[id(value)] = twin = copy.copy(value)
            for name, child in value.items():
                dict.__setitem__(twin, name, copied(child))
            for name, attribute in vars(value).items():
                twin.__dict__[name] = set(attribute) if isinstance(attribute, set) else attribute
            return twin
        if isinstance(value, list | tuple):
            return type(value)(map(copied, value))
        if isinstance(value, dict):
            return {name: copied(child) for name, child in value.items()}
        return value

    return copied(model)


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

    Each micro-batch is evaluated before the next, so that memory stays one's (together with the next, where the base's
    blocks are on the disk). Dropout draws from a key of each micro-batch's own, so that it does not matter which worker
    takes it.

    Returns:
        The sums, or None if `stopped()` came true before the last micro-batch.
    """
    keys = mx.random.split(mx.array(mx.random.state[0]), len(step.micro_batches) + 1)
    mx.eval(keys)
    shares = workers.own(step.shares(workers.num_in_all))
    together = workers.together(len(shares), stopped, backward=True)

    def computed(gradients: Any, share: tuple[int, ...]) -> Iterator[tuple[Batch, tuple[mx.array, Tree]] | None]:
        if together:
            states = [keys[index] for index in share]
            yield from together.results(map(step.batch, share), gradients.passes, states) or (None,)
            return
        for index in share:
            mx.random.state[0][:] = keys[index]
            yield None if stopped() else (batch := step.batch(index), gradients.loss_and_gradients(batch))

    def work(gradients: Gradients, share: tuple[int, ...]) -> StepSums | None:
        sums: StepSums | None = None
        for one in computed(gradients, share):
            if one is None:
                return None
            batch, (loss, grad) = one
            grad = tree_map(lambda g: g.astype(mx.float32), grad)  # 16-bit sums would lose small gradients
            if sums is not None:
                grad = tree_map(mx.add, sums.grad_sum, grad)
                sums = replace(sums, grad_sum={})  # so that the addition can take place in its memory
            mx.eval(loss, grad, mx.random.state)  # the only time that the device is waited for
            value, *metrics = loss.reshape(-1).tolist()
            bad_rows = () if math.isfinite(value) else batch.row_ids
            counted = StepSums(value, {}, batch.num_targets, batch.num_tokens, bad_rows, tuple(metrics))
            sums = replace(sums + counted if sums else counted, grad_sum=grad)
        return sums

    parts = workers.run(work, shares)
    mx.random.state[0][:] = keys[-1]
    whole = [part for part in parts if part is not None]
    if len(whole) < len(parts):
        return None
    if whole:
        return functools.reduce(operator.add, whole)
    arrays = tree_flatten(workers.model.trainable_parameters())  # what gradients have: none of its empty containers
    return StepSums(0.0, tree_unflatten([(name, mx.zeros(one.shape, mx.float32)) for name, one in arrays]), 0, 0, ())


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
