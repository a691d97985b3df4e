"""What programs learn of a run: its result, and events.jsonl, out of which the curves are drawn as well."""

import contextlib
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxmath.evaluation.benchmarks import LoadedBenchmark
from mlxmath.runtime.console import warn
from mlxmath.runtime.files import atomic_file
from mlxmath.runtime.sealed import sealed_line
from mlxmath.training.checkpoint import Ending, Position
from mlxmath.training.event_file import EVENTS, SMOOTHED, number, read_events
from mlxmath.training.held_out import LOSS, Best, Measurement

DECAY = 0.9

Callback = Callable[[dict[str, Any]], object]
"""Given an event: a dictionary with "event", "step" and figures."""


@dataclass(frozen=True)
class StepReport:
    """One finished step. `loss` is nats a target token; loss and norm are not finite if it was skipped."""

    position: Position
    loss: float
    grad_norm: float
    learning_rate: float
    num_tokens: int
    num_targets: int
    seconds: float
    applied: bool
    metric_sums: tuple[float, ...] = ()
    """Over the targets, what the loss reports besides."""

    @property
    def step(self) -> int:
        """Its number, from 1."""
        return self.position.step

    def figures(self, more: Mapping[str, Any]) -> dict[str, Any]:
        """As events.jsonl has them, `more` after the loss."""
        return {
            "step": self.step, "epoch": self.position.epoch, "loss": self.loss, **more, "grad_norm": self.grad_norm,
            "learning_rate": self.learning_rate, "tokens": self.num_tokens, "targets": self.num_targets,
            "seconds": round(self.seconds, 4),
        }  # fmt: skip

    @property
    def metrics(self) -> tuple[float, ...]:
        """The means of `metric_sums`."""
        return tuple(value / self.num_targets for value in self.metric_sums)


COMPLETE: tuple[Ending, ...] = ("finished", "early_stopped")
"""Endings that leave nothing to resume."""


@dataclass(frozen=True)
class TrainResult:
    """What became of a run; `folder` holds the adapters, curves and checkpoints."""

    ending: Ending
    folder: Path
    steps: int
    """Optimizer steps done, over all resumptions."""
    seconds: float
    loss: float | None
    """Of the last step, in nats a target token (a pair; for GRPO the policy's objective)."""
    best: Best | None
    """The best validation, whose adapters are in `folder/best`."""
    peak_bytes: int
    signal: int | None = None
    """The signal that ended it, if one did."""
    exam: LoadedBenchmark | None = field(default=None, repr=False)
    """What `--judge` is about to ask; nothing afterwards."""
    verdict: dict[str, Any] | None = None
    """What `--judge` found, as run.json has it."""

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing to resume."""
        return self.ending in COMPLETE

    @property
    def exit_code(self) -> int:
        """What a command exits with: 0; 1 if it diverged or found no signal; 128 + the signal's number."""
        if self.ending == "stopped":  # the signal may have come to another rank
            return 128 + (self.signal or SIGTERM)
        return int(self.ending in ("diverged", "no_signal"))

    @property
    def events(self) -> list[dict[str, Any]]:
        """All steps, validations and rollouts, as events.jsonl has them."""
        return list(read_events(self.folder / EVENTS))


class Smoothing:
    """Exponential moving averages over the steps, corrected for their start at zero (Kingma and Ba 2015, section 3).

    After n values the average is Σ 0.1 · 0.9^(n−i) v_i / (1 − 0.9^n). Steps that were not applied do not count.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, value: Any) -> None:
        """Take a step's value in, if it is a number."""
        value = number(value)
        if value is not None:
            self._sums[name] = DECAY * self._sums.get(name, 0.0) + (1 - DECAY) * value
            self._counts[name] = self._counts.get(name, 0) + 1

    def __getitem__(self, name: str) -> float:
        """The average; not a number before there was a value."""
        return self._sums[name] / (1 - DECAY ** self._counts[name]) if name in self._sums else math.nan


def smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The averages after each of `values`."""
    average, found = Smoothing(), np.empty(len(values))
    for i, value in enumerate(values.tolist()):
        average.add("", value)
        found[i] = average[""]
    return found


class EventLog:
    """events.jsonl: one JSON object a line, flushed as it is written.

    A disk that is full does not end the run: the lines wait in memory until one can be written.

    Args:
        path: the file.
        from_step: a resumed run drops the events after this step, which are about to happen again (None: all; the
            run begins anew).
        metrics: names of what the objective reports beside the loss.
        smooth: names of what is also recorded smoothed, over a resumed run's earlier steps too.
        callback: given each event as it is written.
    """

    def __init__(
        self, path: Path, from_step: int | None = None, metrics: Sequence[str] = (), smooth: Sequence[str] = ("loss",),
        callback: Callback | None = None,
    ) -> None:  # fmt: skip
        self.path, self._callback = path, callback
        self._metrics, self._smooth = metrics, smooth
        self._smoothing = Smoothing()
        self._waiting: list[bytes] = []
        with atomic_file(path) as file:
            for event in read_events(path) if from_step is not None else ():
                if event.get("step", 0) <= (from_step or 0):
                    file.write(sealed_line(event))
                    for name in smooth if event["event"] == "step" and event.get("applied", True) else ():
                        self._smoothing.add(name, event.get(name))

    def write(self, kind: str, **fields: Any) -> None:
        """Append an event with the time of day in seconds since 1970. Numbers that JSON lacks become null."""
        event = {"event": kind, "time": round(time.time(), 3), **{k: _plain(v) for k, v in fields.items()}}
        self._waiting.append(sealed_line(event))
        length = None
        try:
            with self.path.open("ab") as file:
                length = file.tell()
                file.write(b"".join(self._waiting))
        except OSError as error:
            if len(self._waiting) == 1:
                warn(f"{self.path} cannot be written now ({error.strerror}); its lines wait in memory")
            if length is not None:
                with contextlib.suppress(OSError):  # half a line may have fitted
                    os.truncate(self.path, length)
        else:
            self._waiting.clear()
        if self._callback:
            self._callback(event)

    def on_step(self, step: StepReport) -> None:
        """Record a training step."""
        metrics = dict(zip(self._metrics, step.metrics, strict=False))
        for name in self._smooth if step.applied else ():
            self._smoothing.add(name, {"loss": step.loss, **metrics}.get(name))
        smooth = {SMOOTHED + name: value for name, value in self.smoothed().items()}
        self.write("step", **step.figures(smooth), applied=step.applied, **metrics)

    def on_validation(self, measurement: Measurement) -> None:
        """Record a measurement on what is held out."""
        names = self._metrics if measurement.metric == LOSS else (LOSS.name, *self._metrics)
        self.write(
            "validation", step=measurement.step, epoch=measurement.epoch,
            **{measurement.metric.name: measurement.value},
            targets=measurement.num_targets, seconds=round(measurement.seconds, 4), best=measurement.is_best,
            **dict(zip(names, measurement.metrics, strict=False)),
        )  # fmt: skip

    def smoothed(self) -> dict[str, float]:
        """The smoothed values after the last step, by the name of what they smooth."""
        return {name: self._smoothing[name] for name in self._smooth}


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
