"""What a run leaves for people and programs to look at: events.jsonl, run.json, loss.png, a progress line."""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mlxmath.backends.base import Backend
from mlxmath.console import duration, say, size
from mlxmath.files import atomic_file, atomic_write, disk_errors
from mlxmath.training.deadline import Deadline
from mlxmath.training.fit import StepReport

EVENTS = "events.jsonl"
RUN = "run.json"
PLOT = "loss.png"


class EventLog:
    """events.jsonl: one JSON object a line, flushed as it is written.

    Args:
        path: the file.
        from_step: a resumed run drops the events after this step; they are about to happen again.
    """

    def __init__(self, path: Path, from_step: int = 0) -> None:
        self.path = path
        kept = [event for event in read_events(path) if event.get("step", 0) <= from_step] if from_step else []
        atomic_write(path, "".join(json.dumps(event) + "\n" for event in kept))

    def write(self, kind: str, **fields: Any) -> None:
        """Append an event with the time of day in seconds since 1970. Numbers that JSON lacks become null."""
        event = {"event": kind, "time": round(time.time(), 3), **{k: _plain(v) for k, v in fields.items()}}
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

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
        )


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events in a log; a last line cut off by a kill is left out."""
    if not path.exists():
        return []
    events = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events


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
    ) -> None:
        self._total, self._deadline, self._backend = total_steps, deadline, backend
        self._interval_s, self._clock, self._last_s = interval_s, clock, -math.inf
        self._tokens = 0
        self._loss = math.nan
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total_steps, initial=first_step, unit="step", disable=not self._terminal, dynamic_ncols=True
        )

    def on_step(self, report: StepReport) -> None:
        """Show a finished step."""
        self._tokens += report.num_tokens
        if report.applied:  # shown smoothed; events.jsonl has every value
            self._loss = report.loss if math.isnan(self._loss) else 0.9 * self._loss + 0.1 * report.loss
        rate = self._tokens / max(self._deadline.elapsed_s, 1e-9)
        memory = size(self._backend.memory().peak_bytes)
        status = f"loss {self._loss:.4f}, {rate:,.0f} tok/s, peak {memory}"
        if self._terminal:
            self._bar.set_postfix_str(f"{status}, deadline in {duration(self._deadline.left_s)}", refresh=False)
            self._bar.update()
        elif (now := self._clock()) - self._last_s >= self._interval_s or report.position.step == self._total:
            self._last_s = now
            say(
                f"step {report.position.step}/{self._total}: {status}, lr {report.learning_rate:.2g}, "
                f"elapsed {duration(self._deadline.elapsed_s)}, deadline in {duration(self._deadline.left_s)}"
            )

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


def plot_loss(events: Path, path: Path) -> None:
    """Draw loss (each step and smoothed) and learning rate against steps."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib.figure import Figure

    steps = [event for event in read_events(events) if event["event"] == "step" and event.get("loss") is not None]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    x = [event["step"] for event in steps]
    y = [event["loss"] for event in steps]
    axes.plot(x, y, color="tab:blue", alpha=0.3, linewidth=1, label="each step")
    axes.plot(x, _smooth(y), color="tab:blue", linewidth=2, label="smoothed")
    axes.set(xlabel="optimizer step", ylabel="training loss (nats a target token)", title="Training loss")
    axes.grid(alpha=0.3)
    if steps:
        axes.legend()
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120)


def _smooth(values: list[float], decay: float = 0.9) -> list[float]:
    """Exponential moving average, corrected for its start at zero."""
    smoothed, average = [], 0.0
    for i, value in enumerate(values, start=1):
        average = decay * average + (1 - decay) * value
        smoothed.append(average / (1 - decay**i))
    return smoothed


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
