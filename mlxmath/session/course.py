"""What the steps of a run are: windows of rows here, of drawn completions in `mlxmath.session.rollouts`."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from typing import Protocol

from mlxmath.config.schema import TrainingConfig
from mlxmath.data.batching import Window
from mlxmath.runtime.console import say
from mlxmath.session.material import RowMaterial
from mlxmath.session.opening import Session
from mlxmath.training.checkpoint import Stateful
from mlxmath.training.deadline import Deadline, StopRequest
from mlxmath.training.events import EVENTS, EventLog, ProgressBar
from mlxmath.training.fit import Ending, Hook, Position
from mlxmath.training.validation import HeldOut, held_out_rows
from mlxmath.training.watching import LOSS, Display, RowWatch, Watch
from mlxmath.training.workers import Workers


class Course(Protocol):
    """The steps of a run, what is measured between them, and who watches.

    Attributes:
        steps_per_epoch: from one epoch's end to the next.
        total_steps: of the run.
        held_out: what is measured; None if nothing is held out.
        hooks: called after each step, on every rank, before all others.
        parts: what goes into the checkpoints.
        ending: why there are no more windows, if not because all were taken.
        reason: more on that, for people.
    """

    steps_per_epoch: int
    total_steps: int
    held_out: HeldOut | None
    hooks: Sequence[Hook]
    parts: Sequence[Stateful]

    @property
    def ending(self) -> Ending | None: ...

    @property
    def reason(self) -> str: ...

    def windows(self, position: Position) -> Iterator[Window]:
        """From `position` on."""

    def watch(self, position: Position, deadline: Deadline) -> Watch:
        """Who tells of it from `position` on, on rank 0."""


CourseOf = Callable[[Workers, Deadline, StopRequest], Course]


def planned_steps(training: TrainingConfig, steps_per_epoch: int) -> int:
    """`max_steps`, over as many epochs as that takes; or the steps of all epochs."""
    steps = training.max_steps or training.num_epochs * steps_per_epoch
    if steps > training.num_epochs * steps_per_epoch:
        say(
            f"--max-steps {steps:,} are {steps / steps_per_epoch:.1f} epochs of {steps_per_epoch:,} steps, and count "
            f"more than --num-epochs {training.num_epochs}"
        )
    return steps


class RowCourse:
    """Over the rows of a dataset, epoch by epoch; see `Course`.

    Args:
        session: its rows, and how they are batched.
        workers: compute losses.
        display: what is shown.
        parts: what goes into the checkpoints.
        hooks: called after each step, on every rank.
    """

    ending: Ending | None = None
    reason = ""

    def __init__(
        self,
        session: Session[RowMaterial],
        workers: Workers,
        display: Display,
        parts: Sequence[Stateful],
        hooks: Sequence[Hook],
    ) -> None:
        training, material = session.config.training, session.material
        if training.batching == "pack" and (reason := workers.cannot_pack):
            say(f"--batching pack: buckets take its place, since with this model {reason}")
            training, material = training.model_copy(update={"batching": "bucket"}), material.unpacked()
        plan = partial(material.plan, config=training, max_tokens=session.max_tokens, shape=session.shape)
        self._plan = plan(material.rows, num_workers=workers.num_in_all)
        self.steps_per_epoch = self._plan.windows_per_epoch
        self.total_steps = planned_steps(training, self.steps_per_epoch)
        self.held_out: HeldOut | None = None
        if material.held_out:
            self.held_out = held_out_rows(workers, plan(material.held_out), training, material.unit)
        self.parts, self.hooks = parts, hooks
        self._session, self._material, self._display = session, material, display
        say(
            f"{len(material.rows):,} {material.unit}, {material.num_tokens:,} tokens an epoch; {self.total_steps:,} "
            f"steps of {training.batch_size} x {training.grad_accumulation_steps} {material.unit}, micro-batches of up "
            f"to {session.max_tokens:,} tokens; {workers.how}"
        )

    def windows(self, position: Position) -> Iterator[Window]:
        """See `Course`."""
        for epoch in count(position.epoch):
            yield from self._plan.epoch(epoch, position.window if epoch == position.epoch else 0)

    def watch(self, position: Position, deadline: Deadline) -> Watch:
        """See `Course`."""
        session, display, unit = self._session, self._display, self._material.unit
        counted, named = ("tokens", "rows") if self._material.rows_each == 1 else (unit, unit)
        events = EventLog(
            session.folder / EVENTS, from_step=position.step, metrics=display.metrics, smooth=("loss", *display.shown)
        )
        progress = ProgressBar(
            self.total_steps, position.step, deadline, session.backend, metrics=display.shown, unit=counted
        )
        advice = f"Lower --learning-rate, or look at the {named} named above."
        return RowWatch(events, progress, display, advice)


def over_rows(
    session: Session[RowMaterial], display: Display = LOSS, parts: Sequence[Stateful] = (), hooks: Sequence[Hook] = ()
) -> CourseOf:
    """Makes the course over the session's rows; see `RowCourse`."""
    return lambda workers, *_: RowCourse(session, workers, display, parts, hooks)
