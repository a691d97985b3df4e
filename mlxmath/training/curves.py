"""Pictures of a run, drawn from its events."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxmath.files import atomic_file
from mlxmath.objectives.pair_sums import REWARDS
from mlxmath.training.events import read_events

LOSS_PLOT, CURVES_PLOT = "loss.png", "curves.png"
PLOTTED_SPANS = 1000
"""A longer run's loss is drawn as this many spans of steps."""

Curves = dict[str, list[tuple[int, float]]]
"""(step, value) by name."""


def plot_loss(events: Path, path: Path) -> None:
    """Draw the loss of each step (in a long run its range over spans of steps), smoothed, and on held-out rows."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib.figure import Figure

    curves: Curves = {"step": [], "validation": []}
    for event in read_events(events):
        if event["event"] in curves and event.get("loss") is not None:
            curves[event["event"]].append((event["step"], event["loss"]))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    if curves["step"]:
        steps, losses = np.array(curves["step"]).T
        smoothed = _smooth(losses)
        starts = np.unique(np.linspace(0, len(steps), min(len(steps), PLOTTED_SPANS), endpoint=False, dtype=np.int64))
        ends = np.append(starts[1:], len(steps)) - 1
        low, high = np.minimum.reduceat(losses, starts), np.maximum.reduceat(losses, starts)
        if len(starts) == len(steps):
            axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=1, label="each step")
        else:
            axes.fill_between(steps[ends], low, high, color="tab:blue", alpha=0.2, linewidth=0, label="range of steps")
        axes.plot(steps[ends], smoothed[ends], color="tab:blue", linewidth=2, label="training, smoothed")
    if curves["validation"]:
        steps, losses = np.array(curves["validation"]).T
        best = int(losses.argmin())
        marker = "o" if len(steps) <= 50 else None
        axes.plot(steps, losses, color="tab:orange", marker=marker, markersize=4, linewidth=2, label="held-out rows")
        lowest = f"lowest: {losses[best]:.4f} at step {steps[best]:.0f}"
        axes.plot(steps[best], losses[best], "*", color="tab:red", markersize=12, label=lowest)
    axes.set(xlabel="optimizer step", ylabel="loss (nats a target token)", title="Loss")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120)


def plot_rollouts(events: Path, path: Path) -> None:
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


def _smooth(values: NDArray[np.float64], decay: float = 0.9) -> NDArray[np.float64]:
    """Exponential moving average, corrected for its start at zero."""
    smoothed, average = np.empty(len(values)), 0.0
    for i, value in enumerate(values.tolist()):
        average = decay * average + (1 - decay) * value
        smoothed[i] = average / (1 - decay ** (i + 1))
    return smoothed
