"""What a GRPO run tells people and programs."""

import sys
from collections import deque
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mlxmath.grading import grade
from mlxmath.runtime.console import duration, is_shown, printable, say
from mlxmath.runtime.device import Backend
from mlxmath.training.checkpoint import Position
from mlxmath.training.deadline import Deadline
from mlxmath.training.event_file import EVENTS
from mlxmath.training.events import Callback, EventLog, StepReport
from mlxmath.training.grpo.report import RolloutReport
from mlxmath.training.held_out import Best, Measurement
from mlxmath.training.logging import CURVES_PLOT, RunLogger, plot_rollouts

_EXAMPLE_CHARACTERS = 300
Figures = dict[str, tuple[float, str]]
"""A value, and how it is written."""
_EXAMPLE_EVERY = 10
"""Rollouts between two completions that are shown in a log."""


class RolloutLogger(RunLogger):
    """Tells of each rollout and what was learned from it, on rank 0; on a terminal in a live view."""

    def __init__(self, callback: Callback | None = None) -> None:
        super().__init__(callback=callback)
        self.advice = "Lower --learning-rate."
        self.num_timed_out = 0
        self._view: LiveView | None = None
        self._before_s = 0.0
        """What came before the first step, and is not part of the speed."""

    def begin(
        self, folder: Path, position: Position, total_steps: int, deadline: Deadline, _: Backend, *, resumed: bool
    ) -> None:
        """See `RunLogger`."""
        from_step = position.step if resumed else None
        self.folder, self.events = folder, EventLog(folder / EVENTS, from_step, callback=self._callback)
        self._total, self._first, self._step, self._deadline = total_steps, position.step, position.step, deadline
        console = terminal()
        self._view = None if console is None else LiveView(console, total_steps)

    def __enter__(self) -> "RolloutLogger":
        if self._view:
            self._view.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._view:
            self._view.__exit__()

    def rollout(self, report: RolloutReport) -> None:
        """Tell of what was drawn."""
        if not self.events:
            return
        self.num_timed_out += report.num_timed_out
        question, gold, completion, reward = report.example
        found = grade(completion, gold, truncated=report.example_truncated)
        rate = report.num_tokens / report.seconds
        self.events.write(
            "rollout", step=self._step + 1, rollout=report.rollout, reward=report.reward,
            rewards=dict(report.rewards), completions=report.num_completions, tokens=report.num_tokens,
            zero_variance=report.zero_variance, truncated=report.truncated, mean_length=report.mean_length,
            timed_out=report.num_timed_out, seconds=round(report.seconds, 4), tokens_per_second=round(rate, 1),
            example={"question": question, "gold": gold, "completion": completion, "reward": reward,
                     "correct": found.correct, "extracted": found.extracted},
        )  # fmt: skip
        verdict = f"{found.extracted or 'no answer'}{'' if found.correct else f' instead of {gold}'}, reward {reward:g}"
        if self._view:
            rewards = {f"reward {name}": (value, f"{value:.3f}") for name, value in report.rewards.items()}
            total = {"reward": (report.reward, f"{report.reward:.3f}")} if len(rewards) > 1 else {}
            late = {"not graded in time": (self.num_timed_out, f"{self.num_timed_out:,}")}
            same = report.zero_variance
            self._view.show_example(question, completion, verdict, right=found.correct)
            self._view.show(
                rewards
                | total
                | ({} if same is None else {"groups all the same": (same, f"{same:.0%}")})
                | {
                    "completion length": (report.mean_length, f"{report.mean_length:.0f} tokens"),
                    "cut off": (report.truncated, f"{report.truncated:.0%}"),
                    "rollout": (rate, f"{rate:,.0f} tokens/s"),
                }
                | (late if self.num_timed_out else {}),
                self._progress_line(f"rollout {report.rollout + 1} drawn"),
            )  # fmt: skip
            return
        parts = ", ".join(f"{name} {value:.3f}" for name, value in report.rewards.items())
        more = f", {report.num_timed_out} answers not graded in time" if report.num_timed_out else ""
        alike = "" if report.zero_variance is None else f"{report.zero_variance:.0%} of groups all the same, "
        say(
            f"rollout {report.rollout + 1} (step {self._step + 1}/{self._total}): reward {report.reward:.3f} "
            f"({parts}), {alike}{report.mean_length:.0f} tokens, {report.truncated:.0%} cut off, {rate:,.0f} tok/s"
            f"{more}"
        )
        if report.rollout % _EXAMPLE_EVERY == 0:
            say(f"  for example ({verdict}): {' '.join(completion.split())[:_EXAMPLE_CHARACTERS]}")

    def step(self, step: StepReport) -> None:
        """Tell of an optimizer step."""
        if not self.events:
            return
        figures = self.figures(step)
        self._step, rate = step.step, step.num_tokens / step.seconds
        left_s = self._left_s()
        self.events.write(
            "step", **step.figures({}), tokens_per_second=round(rate, 1), applied=step.applied,
            **{name.lower(): value for name, (value, _) in figures.items()},
            left_s=None if left_s is None else round(left_s, 1),
        )  # fmt: skip
        if self._view:
            of_step = {
                "gradient": (step.grad_norm, f"{step.grad_norm:.3f}"),
                "update": (rate, f"{rate:,.0f} tokens/s"),
            }
            self._view.show(figures | of_step, self._progress_line("learned"))
            return
        say(
            f"step {step.step}/{self._total}: {rate:,.0f} tok/s, gradient {step.grad_norm:.3f}, "
            f"{', '.join(f'{name} {text}' for name, (_, text) in figures.items())}, lr "
            f"{step.learning_rate:.2g}{'' if left_s is None else f', {duration(left_s)} left'}"
        )

    def figures(self, step: StepReport) -> Figures:
        """What a step tells besides, by its name for people; in the events the names are in small letters."""
        clipped, kl, surprise = step.metrics
        return {
            "clipped": (clipped, f"{clipped:.1%}"),
            "KL": (kl, f"{kl:.4f}"),
            "entropy": (surprise, f"{surprise:.3f}"),
        }

    def validation(self, measurement: Measurement) -> None:
        """Tell of the share of right answers to the held-out problems."""
        accuracy = measurement.value
        if measurement.step == self._first:
            self._before_s = self._deadline.elapsed_s
        self.write(
            "validation", step=measurement.step, epoch=measurement.epoch, accuracy=accuracy,
            problems=measurement.num_targets, seconds=round(measurement.seconds, 4), best=measurement.is_best,
        )  # fmt: skip
        say(
            f"step {measurement.step}/{self._total}: {accuracy:.1%} of {measurement.num_targets:,} held-out problems "
            f"right, in {duration(measurement.seconds)}{', the best so far' if measurement.is_best else ''}"
        )

    def best(self, best: Best, folder: Path) -> str:
        """See `RunLogger`."""
        where = f"at step {best.step}" if best.step else "that of the start, before any training"
        return f"the best, {best.value:.1%} of the held-out problems, was {where}: --adapter-path {folder}"

    def plot(self) -> None:
        """See `RunLogger`."""
        plot_rollouts(self.folder / EVENTS, self.folder / CURVES_PLOT)

    def facts(self) -> dict[str, Any]:
        """See `RunLogger`."""
        return {"answers_timed_out": self.num_timed_out}

    def _progress_line(self, last: str) -> str:
        left_s = self._left_s()
        left = "" if left_s is None else f", {duration(left_s)} left"
        return f"{self._step}/{self._total} steps, {last}{left}"

    def _left_s(self) -> float | None:
        """Seconds to the last step at the pace so far, or to the deadline; None before the first step is done."""
        done = self._step - self._first
        if not done:
            return None
        pace = (self._deadline.elapsed_s - self._before_s) / done
        return max(0.0, min(self._deadline.left_s, pace * (self._total - self._step)))


_BARS = "▁▂▃▄▅▆▇█"
_HISTORY = 24
"""Values that a trend shows."""
_QUESTION, _COMPLETION = 200, 500
"""Characters of the example."""
_TICKS_PER_S = 2


class LiveView:
    """A panel of figures, with their trends, and one completion with its grade.

    Lines that are printed meanwhile stand above it.

    Args:
        console: a terminal.
        total_steps: planned.
    """

    def __init__(self, console: Console, total_steps: int) -> None:
        self._progress = f"0/{total_steps} steps"
        self._figures: dict[str, tuple[str, deque[float]]] = {}
        self._example: RenderableType = ""
        self._live = Live(
            console=console, get_renderable=self.render, refresh_per_second=_TICKS_PER_S, redirect_stdout=False
        )

    def __enter__(self) -> "LiveView":
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the last panel on the terminal."""
        self._live.__exit__(None, None, None)

    def show(self, figures: Figures, progress: str) -> None:
        """New figures: of each its value, for the trend, and how it is written; and how far the run is."""
        for name, (value, text) in figures.items():
            _, history = self._figures.get(name, ("", deque[float](maxlen=_HISTORY)))
            history.append(value)
            self._figures[name] = (text, history)
        self._progress = progress
        self._live.refresh()

    def show_example(self, question: str, completion: str, verdict: str, *, right: bool) -> None:
        """A completion and its grade."""
        self._example = Group(
            Text(_cut(question, _QUESTION), style="dim"),
            Text(_cut(completion, _COMPLETION)),
            Text(f"{'✓' if right else '✗'} {printable(verdict)}", style="green" if right else "red"),
        )

    def render(self) -> RenderableType:
        """The panel as it is now."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold")
        table.add_column(justify="right")
        table.add_column(style="cyan")
        for name, (text, history) in self._figures.items():
            table.add_row(escape(name), text, trend(history))
        return Panel(Group(table, "", self._example), title=self._progress, title_align="left")


def trend(values: "deque[float]") -> str:
    """A value as a bar each, from the lowest to the highest."""
    known = [value for value in values if value == value]
    if len(known) < 2 or min(known) == max(known):
        return ""
    low, height = min(known), max(known) - min(known)
    return "".join(_BARS[min(7, int(8 * (value - low) / height))] for value in known)


def terminal() -> Console | None:
    """Standard error, where it is a terminal and what is said is printed."""
    return Console(stderr=True) if is_shown() and sys.stderr.isatty() else None


def _cut(text: str, length: int) -> str:
    text = " ".join(printable(text).split())
    return text if len(text) <= length else text[: length - 1] + "…"
