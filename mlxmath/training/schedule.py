"""Learning rates by step, over the planned steps or over those that the deadline allows, and marks in time.

Where the planned steps fit into the deadline, nothing here depends on time. Where they do not, the learning rate's
schedule is laid over the steps that fit. Their number is estimated from the speed early and late in the run and at
`MARKS` times spread over it, and nowhere else; each estimate becomes a checkpoint, which holds it. So a run that goes
on from a checkpoint repeats the learning rates of the run that wrote it up to that run's next estimate. Where the
schedule has come to its end and there is time for many more steps (a run that goes on after its deadline has a new
one), it is laid anew over those done and those that fit now: nothing is learned at a rate that has fallen to nothing.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from mlxmath.config.training import TrainingConfig
from mlxmath.runtime.console import duration, say
from mlxmath.runtime.ranks import Ranks
from mlxmath.training.checkpoint import Checkpoint, Part, Position
from mlxmath.training.deadline import Deadline


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


MARKS = 6
"""Times spread evenly over the deadline at which a run looks how far it will get, and saves."""
_EARLY = (0.04, 0.08)
_MARKS = tuple(n / (MARKS + 1) for n in range(1, MARKS + 1))
_LATE_LOOKS = (0.93, 0.97)
_LOOKS = (*_EARLY, *_MARKS, *_LATE_LOOKS)
"""When it looks, as shares of the deadline: early, when the first estimate may be far off, at the marks, and late."""
_NUM_EARLY = len(_EARLY)
_ENOUGH, _AT_LEAST, _FIRST_SHARE = 8, 3, 0.02
"""The very first look is after 8 steps, or after 3 if these took so large a share of the deadline."""
_RECENT = 16
"""Steps that an estimate is made of at least, where so many were done."""
_PAUSE = 4
"""Times the median step and a validation that a step counts at most: what takes longer is a process that was stopped,
or a machine that slept, and says nothing about the steps to come."""
_SURELY, _LATE = 1.25, 1.05
"""Times the time that is left which the planned steps must take to be too many: on a first look, and on later ones."""
_MANY = 0.05
"""So large a share of the steps done are many more."""
_NEARLY = 0.9
"""The schedule is nearly at its end."""
_SECTION = "pace"


class Pace(Part):
    """Counts how fast a run goes, and lays its schedule; see the module. A part of its checkpoints.

    All ranks hold the same schedule; rank 0's clock decides.

    Args:
        config: the schedule, and what `--max-steps` and the epochs come to is `total_steps`.
        total_steps: planned, in all.
        position: where this process starts.
        deadline: of this process.
        ranks: all of them.
        listener: told of each new estimate, on rank 0.
    """

    def __init__(
        self,
        config: TrainingConfig,
        total_steps: int,
        position: Position,
        deadline: Deadline,
        ranks: Ranks,
        listener: Callable[[int, int], object] = lambda *_: None,
    ) -> None:
        self._config, self._total, self._first = config, total_steps, position.step
        self._deadline, self._ranks, self.listener = deadline, ranks, listener
        self._start_s = deadline.elapsed_s
        self._schedule = Schedule.planned(config, total_steps)
        self.is_limited = False
        """Whether the deadline comes before the planned steps are done."""
        self._looked = False
        self._spent = [0.0]
        """Seconds that had passed at the last look, or `_RECENT` steps ago, and after each step since."""
        self._num_looks = 0
        self._step_s: float | None = None
        self._marked = self._changed = -1

    def begin(self) -> None:
        """The first step comes next: what was before it is not part of the speed."""
        self._start_s = self._deadline.elapsed_s
        self._spent = [0.0]
        if self.is_limited and self._step_s:
            if self._first >= self._schedule.end:  # by no clock, so that the checkpoint alone decides
                fitting = int(self._deadline.limit_s / self._step_s)
                self._schedule = self._schedule.laid_again(self._first, min(self._total, self._first + fitting))
            fitting = max(0, int(self._deadline.room_s / self._step_s))
            if self._first + fitting < self._total:
                self._tell(self._first + fitting)

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return self._schedule.rate(self._config, step)

    def is_mark(self, step: int) -> bool:
        """Whether one of the `MARKS` came with this step."""
        return step == self._marked

    def is_checkpoint(self, step: int) -> bool:
        """Whether what happened after this step belongs into a checkpoint: it is a mark, or there is a new estimate."""
        return step in (self._marked, self._changed)

    @property
    def expected_steps(self) -> int:
        """The steps that the run will have done at its end, as far as is known."""
        return self._schedule.end if self.is_limited else self._total

    def on_step(self, step: int) -> None:
        """Look at the clock if it is time to. Must come before what validates and saves."""
        elapsed = self._deadline.elapsed_s
        spent, done = elapsed - self._start_s, step - self._first
        looks = sum(elapsed >= share * self._deadline.limit_s for share in _LOOKS)
        is_first = not self._looked and (
            done >= _ENOUGH or (done >= _AT_LEAST and spent >= _FIRST_SHARE * self._deadline.limit_s)
        )
        self._spent.append(spent)
        is_next = looks > self._num_looks and (done >= _AT_LEAST or looks > _NUM_EARLY)
        is_over = self.is_limited and step >= self._schedule.end and self._has_time_for(_MANY * step)
        is_due = self._ranks.first and (is_first or is_next or is_over)
        if not self._ranks.any("time for an estimate", is_due):
            return
        found = [self._recent_step_s(), self._deadline.room_s, looks]
        step_s, room_s, looks = self._ranks.gather("estimate", found)[0]
        if min(looks, _NUM_EARLY + MARKS) > max(self._num_looks, _NUM_EARLY):
            self._marked = step
        margin = _LATE if self._looked else _SURELY
        self._looked, self._num_looks, self._step_s = True, looks, step_s
        self._spent = self._spent[-1 - _RECENT :]
        fitting = max(0, int(room_s / max(step_s, 1e-9)))
        if not self.is_limited and (self._total - step) <= margin * fitting:
            return
        was_limited, self.is_limited = self.is_limited, True
        end = min(self._total, step + fitting)
        left = self._schedule.end - step
        if was_limited and self._schedule.done(step) >= _NEARLY and fitting > max(_MANY * step, 2 * left):
            self._schedule, self._changed = self._schedule.laid_again(step, end), step
        else:
            self._schedule, self._changed = self._schedule.with_end(self._config, step, end), step
        if self._ranks.first:
            self.listener(step, end)
            if not was_limited:
                self._tell(end)

    def _has_time_for(self, steps: float) -> bool:
        return self._recent_step_s() * steps < self._deadline.room_s

    def _recent_step_s(self) -> float:
        """Mean seconds a step; of the very first ones the later half: graphs are compiled before."""
        spent = self._spent[0 if self._looked else (len(self._spent) - 1) // 2 :]
        took = [after - before for before, after in pairwise(spent)]
        most = _PAUSE * median(took) + self._deadline.validation_s
        return fmean(min(seconds, most) for seconds in took)

    def _tell(self, expected: int) -> None:
        falls = self._config.schedule != "constant"
        say(
            f"the deadline comes first: at {duration(self._step_s or 0)} a step, about {expected:,} of "
            f"{self._total:,} planned steps are done within {duration(self._deadline.limit_s)}"
            + ("; the learning rate falls over these" if falls else "")
        )

    def summary(self) -> dict[str, Any]:
        """For run.json."""
        return {"planned_steps": self._total, "expected_steps": self.expected_steps, "deadline_first": self.is_limited}

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it: nothing as long as the planned steps fit."""
        if not self.is_limited:
            return {}
        return {_SECTION: {"schedule": asdict(self._schedule), "step_s": self._step_s}}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where the checkpoint was. The next estimate comes at the next mark, not before."""
        saved = checkpoint.state.get(_SECTION)
        if saved is None:
            return
        self._schedule, self._step_s = Schedule(**saved["schedule"]), saved["step_s"]
        if self._schedule.end > self._total:  # fewer steps are planned than then
            self._schedule = self._schedule.with_end(self._config, checkpoint.position.step, self._total)
        self.is_limited = self._looked = True
        self._num_looks = _NUM_EARLY
