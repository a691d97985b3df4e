"""Learning rates by step, over the planned steps or over those that fit into the time."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from mlxmath.config.schema import TrainingConfig


def warmup_steps(config: TrainingConfig, total_steps: int) -> int:
    """Steps of warm-up: `warmup_steps`, or `warmup_ratio` of the planned steps, rounded up."""
    return config.warmup_steps or math.ceil(config.warmup_ratio * total_steps)


@dataclass(frozen=True)
class Schedule:
    """Where a run is on its way from the peak of the learning rate to its floor.

    The way is done to the share `progress` at step `since`, and from there on falls evenly upon the steps up to `end`.
    So another `end` bends the way where the run is, and never makes the rate jump.
    """

    warmup: int
    end: int
    """The first step that is not taken."""
    since: int
    progress: float = 0.0

    @classmethod
    def planned(cls, config: TrainingConfig, total_steps: int) -> "Schedule":
        """Over all planned steps."""
        warmup = warmup_steps(config, total_steps)
        return cls(warmup, total_steps, warmup)

    def with_end(self, config: TrainingConfig, step: int, end: int) -> "Schedule":
        """The same way up to `step`, the next one to be taken, and from there to `end`."""
        if step > self.warmup:
            return replace(self, end=end, since=step, progress=self.done(step))
        warmup = max(step, warmup_steps(config, end))
        return Schedule(warmup, end, warmup)

    def laid_again(self, step: int, end: int) -> "Schedule":
        """A way that is at its end at `step`, laid anew over all steps up to `end`: the rate rises once."""
        return replace(self, end=end, since=step, progress=max(0, step - self.warmup) / max(1, end - self.warmup))

    def done(self, step: int) -> float:
        """The share of the way from the peak to the floor that lies behind at `step`."""
        return self.progress + (1.0 - self.progress) * min(1.0, (step - self.since) / max(1, self.end - self.since))

    def rate(self, config: TrainingConfig, step: int) -> float:
        """The learning rate of optimizer step 0, 1, …: linear warm-up, then the schedule.

        The warm-up rises as (s + 1) / warm-up steps, so that the first step already moves. Linear and cosine fall from
        the peak to `min_learning_rate_ratio` of it, which step `end` would have.
        """
        peak, floor = config.learning_rate, config.min_learning_rate_ratio
        if step < self.warmup:
            return peak * (step + 1) / self.warmup
        done = self.done(step)
        if config.schedule == "linear":
            return peak * (floor + (1 - floor) * (1 - done))
        if config.schedule == "cosine":
            return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))
        return peak


def learning_rates(config: TrainingConfig, total_steps: int) -> Callable[[int], float]:
    """The learning rate of each step where all planned steps are taken; see `Schedule.rate`."""
    schedule = Schedule.planned(config, total_steps)
    return lambda step: schedule.rate(config, step)
