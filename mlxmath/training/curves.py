"""Pictures of a run, drawn from its events."""

import os
from collections.abc import Sequence, Sized
from pathlib import Path

import numpy as np

from mlxmath.runtime.files import atomic_file
from mlxmath.training.events import SMOOTHED, read_events, smoothed
from mlxmath.training.pairs import REWARDS

LOSS_PLOT, CURVES_PLOT = "loss.png", "curves.png"
PLOTTED_SPANS = 1000
"""A longer run's loss is drawn as this many spans of steps."""
MARKED_POINTS = 50
"""Of a curve with fewer points, each is marked: one alone would make no line."""

Curves = dict[str, list[tuple[float, float]]]
"""(step, value) by name."""


def plot_loss(events: Path, path: Path) -> None:
    """Draw the loss of each step (in a long run its range over spans of steps), smoothed, and on held-out rows.

    The smoothed loss is the one in the events (of a log without it, what it would be).
    """
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib.figure import Figure

    curves: Curves = {"step": [], "validation": []}
    recorded: list[float | None] = []
    for event in read_events(events):
        if event["event"] in curves and event.get("loss") is not None:
            curves[event["event"]].append((event["step"], event["loss"]))
            if event["event"] == "step":
                recorded.append(event.get(SMOOTHED + "loss"))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
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
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120)


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

    def add(name: str, value: float | None) -> None:
        if value is not None:
            curves.setdefault(name, []).append((place, value))

    for event in log:
        if event["event"] == "rollout":
            rollouts, steps = rollouts + 1, 0
            place = float(rollouts)
            for name in ("reward", "zero_variance", "truncated", "mean_length"):
                add(name, event[name])
            for name, value in event["rewards"].items():
                rewards.add(f"reward: {name}")
                add(f"reward: {name}", value)
        elif event["event"] == "step":
            place = rollouts + steps / num_steps[rollouts]
            steps += 1
            for name in ("clipped", "kl", "entropy"):
                add(name, event[name])
        elif event["event"] == "validation":
            add("held-out accuracy", event["accuracy"])
    panels = (
        ("reward", ["reward", *sorted(rewards), "held-out accuracy"]),
        ("tokens", ["mean_length"]),
        ("share", ["zero_variance", "truncated", "clipped"]),
        ("nats a token", ["entropy", "kl"]),
    )
    _draw(curves, panels, path, "rollout")


def plot_pairs(events: Path, path: Path) -> None:
    """Draw the loss, the rewards and how often the chosen completion is ahead, of training and held-out pairs."""
    curves: Curves = {}
    for event in read_events(events):
        prefix = {"step": "", "validation": "held-out "}.get(event["event"])
        for name in ("loss", SMOOTHED + "loss", *REWARDS) if prefix is not None else ():
            if event.get(name) is not None:
                curves.setdefault(f"{prefix}{name}", []).append((event["step"], event[name]))
    panels = [
        (label, [f"{prefix}{name}" for name in names for prefix in ("", "held-out ")])
        for label, names in (
            ("loss (nats a pair)", ["loss", SMOOTHED + "loss"]), ("reward", ["chosen_reward", "rejected_reward"]),
            ("margin", ["margin"]), ("share of pairs", ["accuracy"]),
        )
    ]  # fmt: skip
    _draw(curves, panels, path)


def _draw(
    curves: Curves, panels: Sequence[tuple[str, Sequence[str]]], path: Path, over: str = "optimizer step"
) -> None:
    """Four panels: the label and the curves of each."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    for axes, (label, names) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for name in names:
            if name in curves:
                places, values = zip(*curves[name], strict=True)
                axes.plot(
                    places, values, label=name.replace("_", " "), linewidth=1.5, marker=_marker(places), markersize=4
                )
        axes.set(xlabel=over, ylabel=label)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120)


def _marker(places: Sized) -> str | None:
    return "o" if len(places) <= MARKED_POINTS else None
