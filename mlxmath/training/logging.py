"""What a run tells people: a progress line, lines on what is measured, and curves at its end."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlxmath.runtime.console import Progress, duration, say, size
from mlxmath.runtime.device import Backend
from mlxmath.training.checkpoint import Position
from mlxmath.training.curves import CURVES_PLOT, LOSS_PLOT, plot_loss, plot_pairs
from mlxmath.training.deadline import Deadline
from mlxmath.training.events import EVENTS, Callback, EventLog, StepReport
from mlxmath.training.pairs import REWARDS
from mlxmath.training.validation import Best, Measurement


class ProgressBar:
    """Shows how far a run of `total_steps` is, and what it has come to."""

    def __init__(
        self,
        total_steps: int,
        first_step: int,
        deadline: Deadline,
        backend: Backend,
        metrics: Sequence[str] = (),
        unit: str = "tokens",
    ) -> None:
        self._total, self._first, self._deadline, self._backend = total_steps, first_step, deadline, backend
        self._metrics, self._unit = metrics, unit
        self._tokens = 0
        self._start_s: float | None = None
        self._validation = ""
        self._progress = Progress("step", total_steps, first_step)

    def on_step(self, report: StepReport, smoothed: Mapping[str, float]) -> None:
        """Show a finished step: its own loss, and what is smoothed by its name."""
        step, elapsed_s = report.position.step, self._deadline.elapsed_s
        is_first = self._start_s is None
        if self._start_s is None:  # what came before the first step is not part of the speed
            self._start_s = elapsed_s - report.seconds
        self._tokens += report.num_tokens
        took_s = max(elapsed_s - self._start_s, 1e-9)
        self._progress.update(
            1,
            f"loss {report.loss:.4f}, smoothed {_named(list(smoothed), list(smoothed.values()))}{self._validation}, "
            f"{self._tokens / took_s:,.0f} tok/s, peak {size(self._backend.memory().peak_bytes)}, lr "
            f"{report.learning_rate:.2g}, elapsed {duration(elapsed_s)}, deadline in {duration(self._deadline.left_s)}",
            left_s=max(0.0, min(self._deadline.left_s, took_s / (step - self._first) * (self._total - step))),
            now=is_first or step == self._total,
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
        self._progress.close()


def _named(names: Sequence[str], values: Sequence[float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in zip(names, values, strict=False))


class RunLogger:
    """Tells people and programs how a run on rows goes, on rank 0; as a context manager it holds the terminal.

    Args:
        metrics: names of what the loss reports besides; `REWARDS` first, for pairs.
        unit: what the items of the loss are, for people.
        rows: what the items of a step are.
        callback: given each event as it is written.
    """

    events: EventLog | None = None
    """None on other ranks than 0."""

    def __init__(
        self, metrics: Sequence[str] = (), unit: str = "tokens", rows: str = "rows", callback: Callback | None = None
    ) -> None:
        self._callback = callback
        self._metrics, self._shown, self._unit = metrics, REWARDS if metrics else (), unit
        self.advice = f"Lower --learning-rate, or look at the {rows} named above."

    def begin(self, folder: Path, position: Position, total_steps: int, deadline: Deadline, backend: Backend) -> None:
        """Rank 0 is about to go on from `position`."""
        self.folder = folder
        smooth = ("loss", *self._shown)
        self.events = EventLog(
            folder / EVENTS, from_step=position.step, metrics=self._metrics, smooth=smooth, callback=self._callback
        )
        self._progress = ProgressBar(
            total_steps, position.step, deadline, backend, metrics=self._shown, unit=self._unit
        )

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.close()

    def write(self, kind: str, **fields: Any) -> None:
        """Append an event to events.jsonl."""
        if self.events:
            self.events.write(kind, **fields)

    def step(self, step: StepReport) -> None:
        """Tell of an optimizer step."""
        if self.events:
            self.events.on_step(step)
            self._progress.on_step(step, self.events.smoothed())

    def validation(self, measurement: Measurement) -> None:
        """Tell of a measurement on what is held out."""
        if self.events:
            self.events.on_validation(measurement)
            self._progress.on_validation(measurement)

    def best(self, best: Best, folder: Path) -> str:
        """A sentence on the best adapters, which are in `folder`."""
        where = f"at step {best.step}" if best.step else "that of the start, before any training"
        return f"the lowest validation loss, {best.value:.4f}, was {where}: --adapter-path {folder}"

    def plot(self) -> None:
        """Draw the curves into the run's folder."""
        draw, name = (plot_pairs, CURVES_PLOT) if self._metrics else (plot_loss, LOSS_PLOT)
        draw(self.folder / EVENTS, self.folder / name)

    def facts(self) -> dict[str, Any]:
        """What run.json is to hold at the end."""
        return {}
