"""The second half of a run: from the first step to the last file."""

import shlex
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import mlx.nn as nn

from mlxmath.config.load import RUN_FILE
from mlxmath.config.schema import ModelConfig, RunConfig
from mlxmath.data.render import adds_bos, load_tokenizer
from mlxmath.runtime.console import duration, fail, say, size
from mlxmath.runtime.files import atomic_write
from mlxmath.session.course import Course, CourseOf
from mlxmath.session.opening import Adapters, Session
from mlxmath.session.paths import absolute_settings
from mlxmath.training import run
from mlxmath.training.checkpoint import Saver, Stateful, check_settings, restore, share_state
from mlxmath.training.deadline import Deadline, StopRequest
from mlxmath.training.fit import MAX_BAD_WINDOWS, Ending, Hook, Position, fit
from mlxmath.training.gradients import Gradients
from mlxmath.training.optimizers import make_optimizer
from mlxmath.training.pace import Pace
from mlxmath.training.validation import BEST, Validation
from mlxmath.training.watching import Watch
from mlxmath.training.workers import Workers

_COMPLETE: tuple[Ending, ...] = ("finished", "early_stopped")
"""Endings that leave nothing to resume."""


class Outcome(NamedTuple):
    """How a run ended."""

    ending: Ending
    exit_code: int
    """0; 1 if it diverged or found no signal; 128 + the signal's number if one ended it (saved, to be resumed)."""


def train(
    session: Session[Any], adapters: Adapters, gradients_of: Callable[[nn.Module], Gradients], course_of: CourseOf
) -> Outcome:
    """Train the session's model, from its checkpoint on if there is one.

    Afterwards the adapters are in rank 0's `training.adapter_path`.

    Args:
        session: opened; the model's trainable parameters are those that train.
        adapters: what trains.
        gradients_of: makes the loss and gradients of a replica of the model.
        course_of: makes the course of the run, given the workers, the deadline and what may ask to stop.

    Raises:
        MlxmathError: see the parts.
    """
    running = _Run(session, adapters, gradients_of, course_of)
    with running.stop.listening():
        if not session.ranks.first:
            ending, position = running.loop()
            running.close(ending, position)
            return Outcome(ending, run.exit_code(ending, running.stop))
        record, watch = running.start()
        with watch:
            ending, position = running.loop(watch.on_step)
            running.close(ending, position)
    running.finish(ending, position, record, watch)
    return Outcome(ending, run.exit_code(ending, running.stop))


def try_it(config: RunConfig) -> str:
    """A command that asks what was trained a question."""
    adapter = shlex.quote(config.training.adapter_path)
    return f'try: python -m mlxmath.infer{at_mlx_path(config)} --adapter-path {adapter} --prompt "What is 12 + 7?"'


def at_mlx_path(config: RunConfig) -> str:
    """The option that finds the run's model, where it is not in the default folder."""
    path = config.model.mlx_path
    return "" if path == ModelConfig().mlx_path else f" --mlx-path {shlex.quote(path)}"


class _Run:
    """What is there from the first step to the last."""

    def __init__(
        self,
        session: Session[Any],
        adapters: Adapters,
        gradients_of: Callable[[nn.Module], Gradients],
        course_of: CourseOf,
    ) -> None:
        self._session, self._adapters = session, adapters
        config, training, model = session.config, session.config.training, session.model
        fixed = session.fixed | adapters.fixed
        self._optimizer = make_optimizer(training, model, config.lora.plus_ratio)
        self._position = Position()
        if session.checkpoint:
            if session.ranks.first:
                check_settings(session.checkpoint, fixed)
                restore(session.checkpoint, model, self._optimizer)
            self._position = session.checkpoint.position
        share_state(model, self._optimizer, session.ranks)
        self._workers = Workers(model, gradients_of, session.batching.num_workers, session.ranks)
        self.stop, self._deadline = StopRequest(), Deadline(training.max_training_time_hours * 3600)
        self._course: Course = course_of(self._workers, self._deadline, self.stop)
        total = self._course.total_steps
        self._pace = Pace(training, total, self._position, self._deadline, session.ranks)
        self._validation = Validation(
            self._workers, self._course.held_out, session.folder, training,
            windows_per_epoch=self._course.steps_per_epoch, total_steps=total, deadline=self._deadline, stop=self.stop,
            is_marked=lambda step: self._pace.is_limited and self._pace.is_mark(step),
        )  # fmt: skip
        self._parts: list[Stateful] = [session, self._validation, self._pace, *self._course.parts]
        self._saver = Saver(
            session.folder, model, self._optimizer, fixed, training, self._deadline, parts=self._parts,
            is_marked=self._pace.is_checkpoint,
        )  # fmt: skip

    def start(self) -> tuple[run.Record, Watch]:
        """Rank 0: write what is known of the run before it begins, and begin to watch it."""
        session, config = self._session, self._session.config
        tokenizer = load_tokenizer(Path(config.model.mlx_path), config.model.trust_remote_code)
        chat = session.template.for_tokenizer(tokenizer).chat_template(bos=adds_bos(tokenizer))
        run.start(session.folder, self._adapters.config, chat, anew=session.checkpoint is None)
        exact = absolute_settings(config)
        exact |= {"model.revision": session.manifest.revision} if session.manifest.revision else {}
        exact = {name: value for name, value in exact.items() if name.split(".")[0] in session.sections}
        atomic_write(session.folder / RUN_FILE, session.resolved.as_toml(session.sections, exact))
        record = run.Record(
            session.folder, session.resolved, session.device, session.material.facts, self._adapters.injected
        )
        watch = self._course.watch(self._position, self._deadline)
        begins = "resume" if session.checkpoint else "start"
        watch.events.write(begins, step=self._position.step, total_steps=self._course.total_steps)
        self._validation.listeners = (
            watch.on_validation, lambda _: record.update(validation=self._validation.summary()),
        )  # fmt: skip
        self._pace.listener = lambda step, expected: watch.events.write("pace", step=step, expected_steps=expected)
        return record, watch

    def loop(self, *hooks: Hook) -> tuple[Ending, Position]:
        """All steps that are left; `hooks` are called after each, on rank 0 alone."""
        session, course, position, total = self._session, self._course, self._position, self._course.total_steps
        training, pace = session.config.training, self._pace
        if session.checkpoint:
            for part in self._parts:
                part.restore(session.checkpoint)
        session.backend.reset_peak()
        session.ranks.begin()
        if early := self._validation.begin(position):
            return early, position
        pace.begin()
        saving = [self._saver.on_step] if session.ranks.first else []
        ending, reached = fit(
            self._workers, islice(course.windows(position), max(0, total - position.step)), self._optimizer, pace.rate,
            max_grad_norm=training.max_grad_norm, deadline=self._deadline, stop=self.stop,
            hooks=[*course.hooks, *hooks, pace.on_step, self._validation.on_step, *saving], position=position,
        )  # fmt: skip
        return (course.ending or ending) if ending == "finished" else ending, reached

    def close(self, ending: Ending, position: Position) -> None:
        """Measure what the run has come to, if there is time, and save. What a signal ends is saved first of all."""
        first = self._session.ranks.first
        if ending == "stopped" and first:
            self._saver.save(position)
        is_measured = self._validation.close(ending, position)
        if first and (ending != "stopped" or is_measured):
            self._saver.save(position)

    def finish(self, ending: Ending, position: Position, record: run.Record, watch: Watch) -> None:
        """Rank 0: write and say how it ended."""
        session, folder, validation = self._session, self._session.folder, self._validation
        memory, seconds = session.backend.memory(), self._deadline.elapsed_s
        watch.events.write("end", step=position.step, status=ending, seconds=seconds, peak_bytes=memory.peak_bytes)
        watch.plot(folder)
        record.write(
            status=ending, steps=position.step, seconds=seconds, validation=validation.summary(),
            pace=self._pace.summary(), **watch.facts(),
            planned_bytes=session.planned_bytes, batching=vars(session.batching),
            ranks=session.ranks.summary(), **vars(memory),
        )  # fmt: skip
        planned = f" ({size(session.planned_bytes)} planned)" if session.planned_bytes else ""
        say(
            f"{ending} at step {position.step} of {self._course.total_steps} after {duration(seconds)}; peak memory "
            f"{size(memory.peak_bytes)}{planned}; adapters, curves and checkpoints are in {folder}"
        )
        if ending == "diverged":
            fail(
                f"the last {MAX_BAD_WINDOWS} steps were not finite; {folder} holds the last good adapters. "
                f"{watch.advice}"
            )
            return
        if ending == "no_signal":
            fail(f"GRPO found nothing to learn from: {self._course.reason}")
        if validation.best:
            say(watch.best(validation.best, folder / BEST))
        if ending not in (*_COMPLETE, "no_signal"):
            say("continue with the same command and --resume")
