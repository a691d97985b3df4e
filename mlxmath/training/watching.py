"""What runs show beside their loss: GRPO's live view on a terminal and lines in a log; events, curves."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from mlxmath.console import duration, say
from mlxmath.files import atomic_file
from mlxmath.grading import grade
from mlxmath.objectives.grpo import METRICS
from mlxmath.objectives.pair_sums import REWARDS
from mlxmath.training.deadline import Deadline
from mlxmath.training.events import EventLog, read_events
from mlxmath.training.fit import StepReport
from mlxmath.training.live import LiveView
from mlxmath.training.rollouts import RolloutReport
from mlxmath.training.validation import Measurement

CURVES = "curves.png"
_EXAMPLE_CHARACTERS = 300
_EXAMPLE_EVERY = 10
"""Rollouts between two completions that are shown in a log."""

Curves = dict[str, list[tuple[int, float]]]
"""(step, value) by name."""


class Watch:
    """Writes a run's events and tells of each rollout and what was learned from it.

    As a context manager it holds the live view, if there is a terminal.

    Args:
        events: the log.
        total_steps: planned.
        first_step: steps done before.
        deadline: of the run, just begun.
        console: a terminal for the live view; without it, there are lines on standard error.
    """

    def __init__(
        self, events: EventLog, total_steps: int, first_step: int, deadline: Deadline, console: Console | None = None
    ) -> None:
        self._events, self._total, self._first, self._deadline = events, total_steps, first_step, deadline
        self._view = None if console is None else LiveView(console, total_steps)
        self.num_timed_out = 0

    def __enter__(self) -> "Watch":
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
        self._events.write(
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
        self._events.write(
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
        accuracy = 1 - measurement.loss
        self._events.write(
            "validation", step=measurement.step, epoch=measurement.epoch, accuracy=accuracy,
            problems=measurement.num_targets, seconds=round(measurement.seconds, 4), best=measurement.is_best,
        )  # fmt: skip
        say(
            f"step {measurement.step}/{self._total}: {accuracy:.1%} of {measurement.num_targets:,} held-out problems "
            f"right, in {duration(measurement.seconds)}{', the best so far' if measurement.is_best else ''}"
        )

    def _progress(self, step: int, last: str) -> str:
        left_s = self._left_s(step)
        left = "" if left_s is None else f", {duration(left_s)} left"
        return f"{step}/{self._total} steps, {last}{left}"

    def _left_s(self, step: int) -> float | None:
        """Seconds to the last step at the pace so far, or to the deadline; None before the first step is done."""
        done = step - self._first
        if not done:
            return None
        return max(0.0, min(self._deadline.left_s, self._deadline.elapsed_s / done * (self._total - step)))


def plot_curves(events: Path, path: Path) -> None:
    """Draw rewards, lengths, groups without variance, entropy, KL and clipping over the steps."""
    curves: Curves = {}

    def add(name: str, event: dict[str, Any], value: float | None) -> None:
        if value is not None:
            curves.setdefault(name, []).append((event["step"], value))

    rewards: set[str] = set()
    for event in read_events(events):
        if event["event"] == "validation":
            add("held-out accuracy", event, event["accuracy"])
        for name in ("reward", "zero_variance", "truncated", "mean_length") if event["event"] == "rollout" else ():
            add(name, event, event[name])
        for name, value in event["rewards"].items() if event["event"] == "rollout" else ():
            rewards.add(f"reward: {name}")
            add(f"reward: {name}", event, value)
        for name in ("clipped", "kl", "entropy") if event["event"] == "step" else ():
            add(name, event, event[name])
    panels = (
        ("reward", ["reward", *sorted(rewards), "held-out accuracy"]),
        ("tokens", ["mean_length"]),
        ("share", ["zero_variance", "truncated", "clipped"]),
        ("nats a token", ["entropy", "kl"]),
    )
    _draw(curves, panels, path)


def plot_pairs(events: Path, path: Path) -> None:
    """Draw the loss, the rewards and how often the chosen completion is ahead, of training and held-out pairs."""
    curves: Curves = {}
    for event in read_events(events):
        prefix = {"step": "", "validation": "held-out "}.get(event["event"])
        for name in ("loss", *REWARDS) if prefix is not None else ():
            if event.get(name) is not None:
                curves.setdefault(f"{prefix}{name}", []).append((event["step"], event[name]))
    panels = [
        (label, [f"{prefix}{name}" for name in names for prefix in ("", "held-out ")])
        for label, names in (
            ("loss (nats a pair)", ["loss"]), ("reward", ["chosen_reward", "rejected_reward"]), ("margin", ["margin"]),
            ("share of pairs", ["accuracy"]),
        )
    ]  # fmt: skip
    _draw(curves, panels, path)


def _draw(curves: Curves, panels: Sequence[tuple[str, Sequence[str]]], path: Path) -> None:
    """Four panels: the label and the curves of each."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    for axes, (label, names) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for name in names:
            if name in curves:
                axes.plot(*zip(*curves[name], strict=True), label=name.replace("_", " "), linewidth=1.5)
        axes.set(xlabel="optimizer step", ylabel=label)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120)
