"""What runs tell of themselves: a line on rows, a live view or lines on GRPO's rollouts; events and curves of both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from mlxmath.grading import grade
from mlxmath.objectives.grpo import METRICS
from mlxmath.objectives.pair_sums import REWARDS
from mlxmath.runtime.console import duration, say
from mlxmath.training.curves import CURVES_PLOT, LOSS_PLOT, plot_loss, plot_pairs, plot_rollouts
from mlxmath.training.deadline import Deadline
from mlxmath.training.events import EventLog, ProgressBar
from mlxmath.training.fit import StepReport
from mlxmath.training.live import LiveView
from mlxmath.training.rollouts import RolloutReport
from mlxmath.training.validation import Best, Measurement

_EXAMPLE_CHARACTERS = 300
_EXAMPLE_EVERY = 10
"""Rollouts between two completions that are shown in a log."""


class Watch(Protocol):
    """Tells people and programs how a run goes, on rank 0; as a context manager it holds the terminal."""

    events: EventLog
    advice: str
    """What helps when the run diverges."""

    def __enter__(self) -> object: ...

    def __exit__(self, *_: object) -> None: ...

    def on_step(self, report: StepReport) -> None:
        """Record an optimizer step."""

    def on_validation(self, measurement: Measurement) -> None:
        """Record a measurement on what is held out."""

    def best(self, best: Best, folder: Path) -> str:
        """A sentence on the best adapters, which are in `folder`."""

    def plot(self, folder: Path) -> None:
        """Draw the curves into the run's folder."""

    def facts(self) -> dict[str, Any]:
        """What run.json is to hold at the end."""


@dataclass(frozen=True)
class Display:
    """What is shown of a run on rows."""

    plot: Callable[[Path, Path], None]
    """Draws the curves of a run's events into a file."""
    picture: str
    """The name of that file."""
    metrics: Sequence[str] = ()
    """Names of what the gradients report beside the loss."""
    shown: Sequence[str] = ()
    """The first of them, which the terminal shows too."""


LOSS = Display(plot_loss, LOSS_PLOT)


def pair_rewards(metrics: Sequence[str]) -> Display:
    """For pairs: `metrics` begin with `mlxmath.objectives.pair_sums.REWARDS`."""
    return Display(plot_pairs, CURVES_PLOT, metrics, REWARDS)


class RowWatch:
    """Of a run on rows: its events and its progress line; see `Watch`."""

    def __init__(self, events: EventLog, progress: ProgressBar, display: Display, advice: str) -> None:
        self.events, self._progress, self._display, self.advice = events, progress, display, advice

    def __enter__(self) -> "RowWatch":
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.close()

    def on_step(self, report: StepReport) -> None:
        """See `Watch`."""
        self.events.on_step(report)
        self._progress.on_step(report, self.events.smoothed())

    def on_validation(self, measurement: Measurement) -> None:
        """See `Watch`."""
        self.events.on_validation(measurement)
        self._progress.on_validation(measurement)

    def best(self, best: Best, folder: Path) -> str:
        """See `Watch`."""
        where = f"at step {best.step}" if best.step else "that of the start, before any training"
        return f"the lowest validation loss, {best.value:.4f}, was {where}: --adapter-path {folder}"

    def plot(self, folder: Path) -> None:
        """See `Watch`."""
        self._display.plot(self.events.path, folder / self._display.picture)

    def facts(self) -> dict[str, Any]:
        """Nothing."""
        return {}


class RolloutWatch:
    """Writes a GRPO run's events and tells of each rollout and what was learned from it; see `Watch`.

    As a context manager it holds the live view, if there is a terminal.

    Args:
        events: the log.
        total_steps: planned.
        first_step: steps done before.
        deadline: of the run, just begun.
        console: a terminal for the live view; without it, there are lines on standard error.
    """

    advice = "Lower --learning-rate."

    def __init__(
        self, events: EventLog, total_steps: int, first_step: int, deadline: Deadline, console: Console | None = None
    ) -> None:
        self.events, self._total, self._first, self._deadline = events, total_steps, first_step, deadline
        self._view = None if console is None else LiveView(console, total_steps)
        self.num_timed_out = 0
        self._before_s = 0.0
        """What came before the first step, and is not part of the speed."""

    def __enter__(self) -> "RolloutWatch":
        if self._view:
            self._view.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._view:
            self._view.__exit__()

    def on_rollout(self, report: RolloutReport) -> None:
        """Record what was drawn."""
        self.num_timed_out += report.num_timed_out
        question, gold, completion, reward = report.example
        found = grade(completion, gold, truncated=report.example_truncated)
        rate = report.num_tokens / report.seconds
        self.events.write(
            "rollout", step=report.step + 1, rollout=report.rollout, reward=report.reward,
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
            self._view.show_example(question, completion, verdict, right=found.correct)
            self._view.show(
                rewards
                | total
                | {
                    "groups all the same": (report.zero_variance, f"{report.zero_variance:.0%}"),
                    "completion length": (report.mean_length, f"{report.mean_length:.0f} tokens"),
                    "cut off": (report.truncated, f"{report.truncated:.0%}"),
                    "rollout": (rate, f"{rate:,.0f} tokens/s"),
                }
                | (late if self.num_timed_out else {}),
                self._progress(report.step, f"rollout {report.rollout + 1} drawn"),
            )  # fmt: skip
            return
        parts = ", ".join(f"{name} {value:.3f}" for name, value in report.rewards.items())
        more = f", {report.num_timed_out} answers not graded in time" if report.num_timed_out else ""
        say(
            f"rollout {report.rollout + 1} (step {report.step + 1}/{self._total}): reward {report.reward:.3f} "
            f"({parts}), {report.zero_variance:.0%} of groups all the same, {report.mean_length:.0f} tokens, "
            f"{report.truncated:.0%} cut off, {rate:,.0f} tok/s{more}"
        )
        if report.rollout % _EXAMPLE_EVERY == 0:
            say(f"  for example ({verdict}): {' '.join(completion.split())[:_EXAMPLE_CHARACTERS]}")

    def on_step(self, report: StepReport) -> None:
        """Record an optimizer step."""
        named = dict(zip(METRICS, report.metrics, strict=True))
        step, rate = report.position.step, report.num_tokens / report.seconds
        left_s = self._left_s(step)
        self.events.write(
            "step", step=step, epoch=report.position.epoch, loss=report.loss,
            grad_norm=report.grad_norm, learning_rate=report.learning_rate, tokens=report.num_tokens,
            targets=report.num_targets, seconds=round(report.seconds, 4), tokens_per_second=round(rate, 1),
            applied=report.applied, clipped=named["clipped"], kl=named["kl"], entropy=named["surprise"],
            left_s=None if left_s is None else round(left_s, 1),
        )  # fmt: skip
        if self._view:
            figures = {
                "clipped": (named["clipped"], f"{named['clipped']:.1%}"),
                "KL": (named["kl"], f"{named['kl']:.4f}"),
                "entropy": (named["surprise"], f"{named['surprise']:.3f}"),
                "gradient": (report.grad_norm, f"{report.grad_norm:.3f}"),
                "update": (rate, f"{rate:,.0f} tokens/s"),
            }
            self._view.show(figures, self._progress(step, "learned"))
            return
        say(
            f"step {step}/{self._total}: {rate:,.0f} tok/s, gradient {report.grad_norm:.3f}, clipped "
            f"{named['clipped']:.1%}, KL {named['kl']:.4f}, entropy {named['surprise']:.3f}, lr "
            f"{report.learning_rate:.2g}{'' if left_s is None else f', {duration(left_s)} left'}"
        )

    def on_validation(self, measurement: Measurement) -> None:
        """Record the share of right answers to the held-out problems."""
        accuracy = measurement.value
        if measurement.step == self._first:
            self._before_s = self._deadline.elapsed_s
        self.events.write(
            "validation", step=measurement.step, epoch=measurement.epoch, accuracy=accuracy,
            problems=measurement.num_targets, seconds=round(measurement.seconds, 4), best=measurement.is_best,
        )  # fmt: skip
        say(
            f"step {measurement.step}/{self._total}: {accuracy:.1%} of {measurement.num_targets:,} held-out problems "
            f"right, in {duration(measurement.seconds)}{', the best so far' if measurement.is_best else ''}"
        )

    def best(self, best: Best, folder: Path) -> str:
        """See `Watch`."""
        where = f"at step {best.step}" if best.step else "that of the start, before any training"
        return f"the best, {best.value:.1%} of the held-out problems, was {where}: --adapter-path {folder}"

    def plot(self, folder: Path) -> None:
        """See `Watch`."""
        plot_rollouts(self.events.path, folder / CURVES_PLOT)

    def facts(self) -> dict[str, Any]:
        """See `Watch`."""
        return {"answers_timed_out": self.num_timed_out}

    def _progress(self, step: int, last: str) -> str:
        left_s = self._left_s(step)
        left = "" if left_s is None else f", {duration(left_s)} left"
        return f"{step}/{self._total} steps, {last}{left}"

    def _left_s(self, step: int) -> float | None:
        """Seconds to the last step at the pace so far, or to the deadline; None before the first step is done."""
        done = step - self._first
        if not done:
            return None
        pace = (self._deadline.elapsed_s - self._before_s) / done
        return max(0.0, min(self._deadline.left_s, pace * (self._total - step)))
