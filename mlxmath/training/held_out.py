"""What is held out of training, and how it is measured: rows and pairs by their loss, problems by their answers."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np

from mlxmath.config.schema import RunConfig
from mlxmath.config.training import TrainingConfig
from mlxmath.data.batching import BatchSampler, StepBatch
from mlxmath.errors import InputError
from mlxmath.tools.run import check as check_tool
from mlxmath.training.accumulate import Workers

_TOGETHER = 32
"""Micro-batches of a worker that go through blocks on the disk together."""
Prepare = Callable[[Sequence[StepBatch], Callable[[], bool]], Sequence[StepBatch] | None]
"""Steps as their losses need them, given `stopped`; None if `stopped()` came true."""
Found = tuple[float, int, *tuple[float, ...]]
"""What is measured, how many items it is the mean of, and means of other things."""


@dataclass(frozen=True)
class Metric:
    """What is measured on the held-out items, by its name in run.json and in the kept adapters."""

    name: str
    higher_is_better: bool = False

    def is_better(self, one: float, other: float, by: float = 0.0) -> bool:
        """Whether `one` is better than `other` by more than `by`; nothing that is not finite is better."""
        return (one > other + by) if self.higher_is_better else (one < other - by)

    @property
    def worst(self) -> float:
        """What everything finite is better than."""
        return -math.inf if self.higher_is_better else math.inf


LOSS = Metric("loss")
"""Nats an item that counts: a target token, or a pair."""
ACCURACY = Metric("accuracy", higher_is_better=True)
"""Share of problems answered rightly, by reinforcement learning."""
ANSWERS = Metric("answers", higher_is_better=True)
"""The same of fine-tuning, which measures its loss too (`--validation-metric answers`)."""
Stopped = Callable[[], bool]


@dataclass(frozen=True)
class Best:
    """A measured value that was the best when it was measured."""

    step: int
    value: float


@dataclass(frozen=True)
class Measurement:
    """What was measured after `step`: of the loss, nats a target token. Not finite if the model's output is not."""

    step: int
    epoch: int
    value: float
    num_targets: int
    seconds: float
    best: Best | None
    """The best so far, this one included."""
    metrics: tuple[float, ...] = ()
    """Means of what the objective reports beside the loss; of answers, the loss before them."""
    metric: Metric = LOSS
    """What `value` is."""

    @property
    def is_best(self) -> bool:
        """Whether this is the best so far."""
        return self.best is not None and self.best.step == self.step


@dataclass(frozen=True)
class HeldOut:
    """What a run is measured on, in a seeded order.

    All ranks measure together, and get the same.
    """

    num_items: int
    unit: str
    """What the items are, for people: "sequences", "pairs", "problems"."""
    measure: Callable[[int, Callable[[], bool]], Found | None]
    """On the first so many items, given `stopped`; None if `stopped()` came true."""
    step_items: float
    """An optimizer step takes about as long as measuring so many items."""
    at_once: int = 1
    """Items that are computed together: fewer take as long."""
    metric: Metric = LOSS
    measure_rows: Callable[[int, Callable[[], bool]], list[tuple[int, float, int]] | None] | None = None
    """Of each of the first so many items its number, its sum and how many it is the sum of, given `stopped`; None where
    items are not measured one by one."""


def mean_loss(
    workers: Workers, steps: Iterable[StepBatch], stopped: Callable[[], bool] = lambda: False
) -> Found | None:
    """Mean loss over all target tokens of `steps`, each token counting the same.

    Returns:
        The mean, the number of target tokens and the means of what the objective reports besides; None as `loss_sums`.
    """
    found = loss_sums(workers, steps, stopped)
    if found is None:
        return None
    num_targets = sum(targets for targets, _ in found)
    columns = zip(*(sums for _, sums in found), strict=True)
    loss, *metrics = (
        (math.fsum(column) if all(map(math.isfinite, column)) else math.nan) / num_targets for column in columns
    )
    return loss, num_targets, *metrics


def loss_sums(
    workers: Workers, steps: Iterable[StepBatch], stopped: Callable[[], bool] = lambda: False
) -> list[tuple[int, list[float]]] | None:
    """The loss of each micro-batch of `steps`, in evaluation mode.

    Each rank computes a part; all get the same.

    Returns:
        Of each in their order the number of target tokens and the sums over them, the loss first; None if `stopped()`
        came true before the last.
    """
    random_state = mx.array(mx.random.state[0])
    mx.eval(random_state)
    model, training = workers.model, workers.model.training
    model.eval()

    def work(gradients: Any, share: tuple[tuple[int, StepBatch, int], ...]) -> list[tuple[int, int, list[float]]]:
        found: list[tuple[int, int, list[float]]] = []
        if together:
            batches = (step.batch(index) for _, step, index in share)
            losses = together.results(batches, gradients.loss_passes, [random_state] * len(share)) or ()
            numbers = (number for number, *_ in share)
            return [
                (number, batch.num_targets, loss.reshape(-1).tolist())
                for number, (batch, loss) in zip(numbers, losses, strict=False)
            ]
        for number, step, index in share:
            if stopped():
                break
            batch = step.batch(index)
            found.append((number, batch.num_targets, gradients.loss(batch).reshape(-1).tolist()))
        return found

    try:
        split = ((step, index) for step in steps for index in range(len(step.micro_batches)))
        micro_batches = [(number, step, index) for number, (step, index) in enumerate(split)]
        own: list[tuple[int, int, list[float]]] = []
        size = _TOGETHER * workers.num_in_all
        for start in range(0, len(micro_batches), size):
            taken = micro_batches[start : start + size]
            shares = workers.own(
                [tuple(taken[i :: workers.num_in_all]) for i in range(min(workers.num_in_all, len(taken)))]
            )
            together = workers.together(len(shares), stopped, backward=False)
            own += [one for part in workers.run(work, shares) for one in part]
    finally:
        model.train(training)
        mx.random.state[0][:] = random_state
    found = [one for part in workers.ranks.gather("validation", own) for one in part]
    if len(found) < len(micro_batches):
        return None
    return [(targets, sums) for _, targets, sums in sorted(found, key=lambda one: one[0])]


def seeded_order(num_items: int, seed: int) -> list[int]:
    """The order in which held-out items are taken."""
    found: list[int] = np.random.default_rng([seed, 1]).permutation(num_items).tolist()
    return found


def held_out_rows(
    workers: Workers, sampler: BatchSampler, config: TrainingConfig, unit: str, prepare: Prepare | None = None
) -> HeldOut:
    """Held-out rows (or pairs), of which the mean loss is measured.

    Args:
        workers: compute it.
        sampler: of all held-out rows; its steps are not used, only how rows share micro-batches.
        config: batch size and seed.
        unit: what the rows are.
        prepare: gives the steps what their losses need of all of them.
    """
    order = np.array(seeded_order(len(sampler.rows), config.seed), np.int64)
    per_window = config.batch_size * config.grad_accumulation_steps

    def measure(count: int, stopped: Callable[[], bool]) -> Found | None:
        chosen = order[:count]
        by_length = chosen[np.argsort(sampler.rows.lengths[chosen], kind="stable")]
        size = 64 * per_window
        parts = [by_length[start : start + size] for start in range(0, count, size)]
        steps: Sequence[StepBatch] | None = [sampler.step(part, 0, index) for index, part in enumerate(parts)]
        if prepare and steps:
            steps = prepare(steps, stopped)
        return None if steps is None else mean_loss(workers, steps, stopped)

    def measure_rows(count: int, stopped: Callable[[], bool]) -> list[tuple[int, float, int]] | None:
        rows = sorted(order[:count].tolist())
        steps: Sequence[StepBatch] | None
        steps = [replace(sampler.step(order[:count], 0, 0), micro_batches=tuple((row,) for row in rows))]
        if prepare:
            steps = prepare(steps, stopped)
        found = None if steps is None else loss_sums(workers, steps, stopped)
        return (
            None
            if found is None
            else [(row, sums[0], targets) for row, (targets, sums) in zip(rows, found, strict=True)]
        )

    return HeldOut(
        len(order), unit, measure, step_items=2.0 * per_window,  # a backward pass takes no less than a forward one
        at_once=workers.num_in_all, measure_rows=measure_rows,
    )  # fmt: skip


def check_metric(config: RunConfig, method: str) -> None:
    """Refuse `--validation-metric` where it has no meaning.

    Raises:
        InputError: it has none, or the tool that answers are to call cannot be had.
    """
    metric = config.training.validation_metric
    if metric == "loss" and method in ("grpo", "gkd"):
        raise InputError("--validation-metric loss: a run that draws is measured by its answers; leave it out.")
    if metric == "answers" and method == "reward-model":
        raise InputError("--validation-metric answers: a reward model gives no answers; leave it out.")
    if metric == "answers" and config.runtime.offload == "on":
        raise InputError(
            "--validation-metric answers draws answers between steps, which needs the model in memory; leave --offload "
            "or this out."
        )
    if metric == "answers":
        check_tool(config.data.tools)
