"""What a run tells people and programs as it goes on: events.jsonl and a progress line."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mlxmath.runtime.backend import Backend
from mlxmath.runtime.console import duration, say, size, warn
from mlxmath.runtime.files import atomic_file
from mlxmath.runtime.records import parse_json
from mlxmath.training.deadline import Deadline
from mlxmath.training.fit import StepReport
from mlxmath.training.validation import Measurement

EVENTS = "events.jsonl"
SMOOTHED = "smoothed_"
"""What the name of a smoothed value begins with, in events.jsonl."""
DECAY = 0.9


class Smoothing:
    """Exponential moving averages over the steps, corrected for their start at zero (Kingma and Ba 2015, section 3).

    After n values the average is Σ 0.1 · 0.9^(n−i) v_i / (1 − 0.9^n). Steps that were not applied do not count.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, value: float | None) -> None:
        """Take a step's value in."""
        if value is not None and math.isfinite(value):
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
        from_step: a resumed run drops the events after this step; they are about to happen again.
        metrics: names of what the objective reports beside the loss.
        smooth: names of what is also recorded smoothed, over a resumed run's earlier steps too.
    """

    def __init__(
        self, path: Path, from_step: int = 0, metrics: Sequence[str] = (), smooth: Sequence[str] = ("loss",)
    ) -> None:
        self.path = path
        self._metrics, self._smooth = metrics, smooth
        self._smoothing = Smoothing()
        self._waiting: list[str] = []
        with atomic_file(path) as file:
            for event in read_events(path) if from_step else ():
                if event.get("step", 0) <= from_step:
                    file.write(_line(event).encode())
                    for name in smooth if event["event"] == "step" and event.get("applied", True) else ():
                        self._smoothing.add(name, event.get(name))

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
        metrics = dict(zip(self._metrics, report.metrics, strict=False))
        for name in self._smooth if report.applied else ():
            self._smoothing.add(name, {"loss": report.loss, **metrics}.get(name))
        self.write(
            "step",
            step=report.position.step,
            epoch=report.position.epoch,
            loss=report.loss,
            **{SMOOTHED + name: value for name, value in self.smoothed().items()},
            grad_norm=report.grad_norm,
            learning_rate=report.learning_rate,
            tokens=report.num_tokens,
            targets=report.num_targets,
            seconds=round(report.seconds, 4),
            applied=report.applied,
            **metrics,
        )

    def smoothed(self) -> dict[str, float]:
        """The smoothed values after the last step, by the name of what they smooth."""
        return {name: self._smoothing[name] for name in self._smooth}

    def on_validation(self, measurement: Measurement) -> None:
        """Record a validation."""
        self.write(
            "validation",
            step=measurement.step,
            epoch=measurement.epoch,
            loss=measurement.value,
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
        self._total, self._first, self._deadline, self._backend = total_steps, first_step, deadline, backend
        self._interval_s, self._clock, self._last_s = interval_s, clock, -math.inf
        self._metrics, self._unit = metrics, unit
        self._tokens = 0
        self._start_s: float | None = None
        self._validation = ""
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total_steps, initial=first_step, unit="step", disable=not self._terminal, dynamic_ncols=True,
            bar_format="{n_fmt}/{total_fmt} {bar} {elapsed}, {rate_fmt}{postfix}",
        )  # fmt: skip

    def on_step(self, report: StepReport, smoothed: Mapping[str, float]) -> None:
        """Show a finished step: its own loss, and what is smoothed by its name."""
        step, elapsed_s = report.position.step, self._deadline.elapsed_s
        if self._start_s is None:  # what came before the first step is not part of the speed
            self._start_s = elapsed_s - report.seconds
        self._tokens += report.num_tokens
        took_s = max(elapsed_s - self._start_s, 1e-9)
        left_s = max(0.0, min(self._deadline.left_s, took_s / (step - self._first) * (self._total - step)))
        memory = size(self._backend.memory().peak_bytes)
        status = (
            f"loss {report.loss:.4f}, smoothed {_named(list(smoothed), list(smoothed.values()))}{self._validation}, "
            f"{self._tokens / took_s:,.0f} tok/s, peak {memory}"
        )
        times = f"{duration(left_s)} left, deadline in {duration(self._deadline.left_s)}"
        if self._terminal:
            self._bar.set_postfix_str(f"{status}, {times}", refresh=False)
            self._bar.update()
        elif (now := self._clock()) - self._last_s >= self._interval_s or step == self._total:
            self._last_s = now
            say(
                f"step {step}/{self._total}: {status}, lr {report.learning_rate:.2g}, elapsed {duration(elapsed_s)}, "
                f"{times}"
            )

    def on_validation(self, measurement: Measurement) -> None:
        """Tell a validation loss, and show it with the steps that follow."""
        loss = f"{measurement.value:.4f}"
        self._validation = f", validation {loss}"
        found, best = "", measurement.best
        if best is not None:
            found = (
                ", the lowest so far" if measurement.is_best else f"; the lowest: {best.value:.4f} at step {best.step}"
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
