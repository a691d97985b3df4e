"""What a run tells people and programs as it goes on: events.jsonl and a progress line."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mlxmath.backends.base import Backend
from mlxmath.console import duration, say, size, warn
from mlxmath.files import atomic_file
from mlxmath.records import parse_json
from mlxmath.training.deadline import Deadline
from mlxmath.training.fit import StepReport
from mlxmath.training.validation import Measurement

EVENTS = "events.jsonl"


class EventLog:
    """events.jsonl: one JSON object a line, flushed as it is written.

    A disk that is full does not end the run: the lines wait in memory until one can be written.

    Args:
        path: the file.
        from_step: a resumed run drops the events after this step; they are about to happen again.
        metrics: names of what the objective reports beside the loss.
    """

    def __init__(self, path: Path, from_step: int = 0, metrics: Sequence[str] = ()) -> None:
        self.path = path
        self._metrics = metrics
        self._waiting: list[str] = []
        with atomic_file(path) as file:
            for event in read_events(path) if from_step else ():
                if event.get("step", 0) <= from_step:
                    file.write(_line(event).encode())

    def write(self, kind: str, **fields: Any) -> None:
        """Append an event with the time of day in seconds since 1970. Numbers that JSON lacks become null."""
        event = {"event": kind, "time": round(time.time(), 3), **{k: _plain(v) for k, v in fields.items()}}
        self._waiting.append(_line(event))
        length = None
        try:
            with self.path.open("ab") as file:
                length = file.tell()
                file.write("".join(self._waiting).encode())
        except OSError as error:
            if len(self._waiting) == 1:
                warn(f"{self.path} cannot be written now ({error.strerror}); its lines wait in memory")
            if length is not None:
                with contextlib.suppress(OSError):  # half a line may have fitted
                    os.truncate(self.path, length)
        else:
            self._waiting.clear()

    def on_step(self, report: StepReport) -> None:
        """Record a training step."""
        self.write(
            "step",
            step=report.position.step,
            epoch=report.position.epoch,
            loss=report.loss,
            grad_norm=report.grad_norm,
            learning_rate=report.learning_rate,
            tokens=report.num_tokens,
            targets=report.num_targets,
            seconds=round(report.seconds, 4),
            applied=report.applied,
            **dict(zip(self._metrics, report.metrics, strict=False)),
        )

    def on_validation(self, measurement: Measurement) -> None:
        """Record a validation."""
        self.write(
            "validation",
            step=measurement.step,
            epoch=measurement.epoch,
            loss=measurement.loss,
            targets=measurement.num_targets,
            seconds=round(measurement.seconds, 4),
            best=measurement.is_best,
            **dict(zip(self._metrics, measurement.metrics, strict=False)),
        )


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events in a log, one after the other; a last line cut off by a kill, and anything else, is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                event = parse_json(line)
                if isinstance(event, dict) and "event" in event and isinstance(event.get("step", 0), int):
                    yield event


class ProgressBar:
    """A tqdm bar on a terminal; elsewhere a plain line every `interval_s` seconds, and for the last step."""

    def __init__(
        self,
        total_steps: int,
        first_step: int,
        deadline: Deadline,
        backend: Backend,
        interval_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        metrics: Sequence[str] = (),
        unit: str = "tokens",
    ) -> None:
        self._total, self._deadline, self._backend = total_steps, deadline, backend
        self._interval_s, self._clock, self._last_s = interval_s, clock, -math.inf
        self._metrics, self._unit = metrics, unit
        self._tokens = 0
        self._smoothed: list[float] = []
        self._validation = ""
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total_steps, initial=first_step, unit="step", disable=not self._terminal, dynamic_ncols=True
        )

    def on_step(self, report: StepReport) -> None:
        """Show a finished step."""
        self._tokens += report.num_tokens
        if report.applied:  # shown smoothed; events.jsonl has every value
            values = [report.loss, *report.metrics]
            self._smoothed = [0.9 * old + 0.1 * new for old, new in zip(self._smoothed or values, values, strict=True)]
        rate = self._tokens / max(self._deadline.elapsed_s, 1e-9)
        memory = size(self._backend.memory().peak_bytes)
        shown = _named(("loss", *self._metrics), self._smoothed or [math.nan])
        status = f"{shown}{self._validation}, {rate:,.0f} tok/s, peak {memory}"
        if self._terminal:
            self._bar.set_postfix_str(f"{status}, deadline in {duration(self._deadline.left_s)}", refresh=False)
            self._bar.update()
        elif (now := self._clock()) - self._last_s >= self._interval_s or report.position.step == self._total:
            self._last_s = now
            say(
                f"step {report.position.step}/{self._total}: {status}, lr {report.learning_rate:.2g}, "
                f"elapsed {duration(self._deadline.elapsed_s)}, deadline in {duration(self._deadline.left_s)}"
            )

    def on_validation(self, measurement: Measurement) -> None:
        """Tell a validation loss, and show it with the steps that follow."""
        loss = f"{measurement.loss:.4f}"
        self._validation = f", validation {loss}"
        found, lowest = "", measurement.lowest
        if lowest is not None:
            found = (
                ", the lowest so far"
                if measurement.is_best
                else f"; the lowest: {lowest.loss:.4f} at step {lowest.step}"
            )
        metrics = _named(self._metrics, measurement.metrics)
        say(
            f"step {measurement.step}/{self._total}: validation loss {loss}{', ' if metrics else ''}{metrics} on "
            f"{measurement.num_targets:,} {self._unit} in {duration(measurement.seconds)}{found}"
        )

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


def _named(names: Sequence[str], values: Sequence[float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in zip(names, values, strict=False))


def _line(event: dict[str, Any]) -> str:
    return json.dumps(event) + "\n"


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
