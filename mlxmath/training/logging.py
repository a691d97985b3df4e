"""What a run tells people: a progress line, lines on what is measured, and curves, drawn from its events.

Importing matplotlib takes a second: so only when something is drawn.
"""

import os
from collections.abc import Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np

from mlxmath.runtime.console import Progress, duration, say, size
from mlxmath.runtime.device import Backend
from mlxmath.runtime.files import atomic_file
from mlxmath.training.checkpoint import Position
from mlxmath.training.deadline import Deadline
from mlxmath.training.event_file import EVENTS, SMOOTHED, number, read_events
from mlxmath.training.events import Callback, EventLog, StepReport, smoothed
from mlxmath.training.held_out import ANSWERS, LOSS, Best, Measurement, Metric
from mlxmath.training.pairs import REWARDS

LOSS_PLOT, CURVES_PLOT = "loss.png", "curves.png"
PLOTTED_SPANS = 1000
"""A longer run's loss is drawn as this many spans of steps."""
MARKED_POINTS = 50
"""Of a curve with fewer points, each is marked: one alone would make no line."""

Curves = dict[str, list[tuple[float, float]]]
"""(step, value) by name."""


class ProgressBar:
    """Shows how far a run of `total_steps` is, and what it has come to."""

    def __init__(
        self, total_steps: int, first_step: int, deadline: Deadline, backend: Backend, metrics: Sequence[str] = (),
        unit: str = "tokens",
    ) -> None:  # fmt: skip
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
        metric, unit, values = measurement.metric, self._unit, measurement.metrics
        value = shown(metric, measurement.value)
        self._validation = f", validation {value}"
        found, best, most = "", measurement.best, extreme(metric)
        if best is not None:
            found = f", the {most} so far" if measurement.is_best else (
                f"; the {most}: {shown(metric, best.value)} at step {best.step}"
            )  # fmt: skip
        if metric == ANSWERS:
            unit, value, values = "problems", f"{value}, loss {values[0]:.4f}", values[1:]
        metrics = _named(self._metrics, values)
        say(
            f"step {measurement.step}/{self._total}: {SAID[metric.name]} {value}{', ' if metrics else ''}{metrics} on "
            f"{measurement.num_targets:,} {unit} in {duration(measurement.seconds)}{found}"
        )

    def close(self) -> None:
        """Remove the bar."""
        self._progress.close()


SAID = {LOSS.name: "validation loss", ANSWERS.name: "right answers"}
"""What is measured, in words."""


def shown(metric: Metric, value: float) -> str:
    """A measured value, as people read it."""
    return f"{100 * value:.1f} %" if metric == ANSWERS else f"{value:.4f}"


def extreme(metric: Metric) -> str:
    """What the best value is among all."""
    return "most" if metric.higher_is_better else "lowest"


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
    _metric = LOSS

    def __init__(
        self, metrics: Sequence[str] = (), unit: str = "tokens", rows: str = "rows", callback: Callback | None = None
    ) -> None:
        self._callback = callback
        self._metrics, self._shown, self._unit = metrics, REWARDS if metrics else (), unit
        self.advice = f"Lower --learning-rate, or look at the {rows} named above."

    def begin(
        self, folder: Path, position: Position, total_steps: int, deadline: Deadline, backend: Backend, *,
        resumed: bool,
    ) -> None:  # fmt: skip
        """Rank 0 is about to go on from `position`, or to begin anew."""
        self.folder = folder
        smooth = ("loss", *self._shown)
        self.events = EventLog(
            folder / EVENTS, position.step if resumed else None, self._metrics, smooth, callback=self._callback
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
        self._metric = measurement.metric
        if self.events:
            self.events.on_validation(measurement)
            self._progress.on_validation(measurement)

    def best(self, best: Best, folder: Path) -> str:
        """A sentence on the best adapters, which are in `folder`."""
        where = f"at step {best.step}" if best.step else "that of the start, before any training"
        what, value = SAID[self._metric.name], shown(self._metric, best.value)
        return f"the {extreme(self._metric)} {what}, {value}, was {where}: --adapter-path {folder}"

    def plot(self) -> None:
        """Draw the curves into the run's folder."""
        draw, name = (plot_pairs, CURVES_PLOT) if self._metrics else (plot_loss, LOSS_PLOT)
        draw(self.folder / EVENTS, self.folder / name)

    def facts(self) -> dict[str, Any]:
        """What run.json is to hold at the end."""
        return {}


def plot_loss(events: Path, path: Path) -> None:
    """Draw the loss of each step (in a long run its range over spans of steps), smoothed, and on held-out rows.

    The smoothed loss is the one in the events (of a log without it, what it would be).
    """
    curves: Curves = {"step": [], "validation": []}
    recorded: list[float | None] = []
    for event in read_events(events):
        loss, step = number(event.get("loss")), event.get("step")
        if event["event"] in curves and loss is not None and step is not None:
            curves[event["event"]].append((step, loss))
            if event["event"] == "step":
                recorded.append(number(event.get(SMOOTHED + "loss")))
    figure = _figure(8, 4.5)
    axes = figure.subplots()
    if curves["step"]:
        steps, losses = np.array(curves["step"]).T
        known = [value for value in recorded if value is not None]
        smooth = np.array(known) if len(known) == len(losses) else smoothed(losses)
        starts = np.unique(np.linspace(0, len(steps), min(len(steps), PLOTTED_SPANS), endpoint=False, dtype=np.int64))
        ends = np.append(starts[1:], len(steps)) - 1
        low, high = np.minimum.reduceat(losses, starts), np.maximum.reduceat(losses, starts)
        if len(starts) == len(steps):
            axes.plot(
                steps, losses, color="tab:blue", alpha=0.3, linewidth=1, marker=_marker(steps), markersize=4,
                label="each step",
            )  # fmt: skip
        else:
            axes.fill_between(steps[ends], low, high, color="tab:blue", alpha=0.2, linewidth=0, label="range of steps")
        axes.plot(
            steps[ends], smooth[ends], color="tab:blue", linewidth=2, marker="o" if len(ends) == 1 else None,
            markersize=4, label="smoothed",
        )  # fmt: skip
    if curves["validation"]:
        steps, losses = np.array(curves["validation"]).T
        best = int(losses.argmin())
        axes.plot(
            steps, losses, color="tab:orange", marker=_marker(steps), markersize=4, linewidth=2, label="held-out rows"
        )
        lowest = f"lowest: {losses[best]:.4f} at step {steps[best]:.0f}"
        axes.plot(steps[best], losses[best], "*", color="tab:red", markersize=12, label=lowest)
    axes.set(xlabel="optimizer step", ylabel="loss (nats a target token)", title="Loss")
    _save(figure, path)


def plot_rollouts(events: Path, path: Path) -> None:
    """Draw rewards, lengths, groups without variance, entropy, KL and clipping over the rollouts.

    A rollout may have several steps, which lie evenly between it and the next one, or none.
    """
    curves: Curves = {}
    rewards: set[str] = set()
    log = list(read_events(events))
    num_steps: list[int] = [0]
    for event in log:
        if event["event"] == "rollout":
            num_steps.append(0)
        num_steps[-1] += event["event"] == "step"
    rollouts, steps, place = 0, 0, 0.0

    def add(name: str, value: Any) -> None:
        if (value := number(value)) is not None:
            curves.setdefault(name, []).append((place, value))

    for event in log:
        if event["event"] == "rollout":
            rollouts, steps = rollouts + 1, 0
            place = float(rollouts)
            for name in ("reward", "zero_variance", "truncated", "mean_length"):
                add(name, event.get(name))
            found = event.get("rewards")
            for name, value in found.items() if isinstance(found, dict) else ():
                rewards.add(f"reward: {name}")
                add(f"reward: {name}", value)
        elif event["event"] == "step":
            place = rollouts + steps / num_steps[rollouts]
            steps += 1
            for name in ("clipped", "kl", "entropy"):
                add(name, event.get(name))
        elif event["event"] == "validation":
            add("held-out accuracy", event.get("accuracy"))
    panels = (
        ("reward", ["reward", *sorted(rewards), "held-out accuracy"]),
        ("tokens", ["mean_length"]),
        ("share", ["zero_variance", "truncated", "clipped"]),
        ("nats a token", ["entropy", "kl"]),
    )
    draw(curves, panels, path, "rollout")


def plot_pairs(events: Path, path: Path) -> None:
    """Draw the loss, the rewards and how often the chosen completion is ahead, of training and held-out pairs."""
    curves: Curves = {}
    for event in read_events(events):
        prefix = {"step": "", "validation": "held-out "}.get(event["event"])
        for name in ("loss", SMOOTHED + "loss", *REWARDS) if prefix is not None else ():
            value, step = number(event.get(name)), event.get("step")
            if value is not None and step is not None:
                curves.setdefault(f"{prefix}{name}", []).append((step, value))
    panels = [
        (label, [f"{prefix}{name}" for name in names for prefix in ("", "held-out ")])
        for label, names in (
            ("loss", ["loss", SMOOTHED + "loss"]), ("reward", ["chosen_reward", "rejected_reward"]),
            ("margin", ["margin"]), ("share ahead", ["accuracy"]),
        )
    ]  # fmt: skip
    draw(curves, panels, path)


def draw(curves: Curves, panels: Sequence[tuple[str, Sequence[str]]], path: Path, over: str = "optimizer step") -> None:
    """Four panels: the label and the curves of each."""
    figure = _figure(10, 7)
    for axes, (label, names) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for name in names:
            if name in curves:
                places, values = zip(*curves[name], strict=True)
                axes.plot(
                    places, values, label=name.replace("_", " "), linewidth=1.5, marker=_marker(places), markersize=4
                )
        axes.set(xlabel=over, ylabel=label)
    _save(figure, path)


def _figure(width: float, height: float) -> Any:
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120)


def _marker(places: Sized) -> str | None:
    return "o" if len(places) <= MARKED_POINTS else None
