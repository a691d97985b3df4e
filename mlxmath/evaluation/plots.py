"""PNG charts of the results."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from mlxmath.evaluation.measures import CATEGORIES
from mlxmath.runtime.files import atomic_write

COLORS = ("#6b7280", "#2457d6", "#c26a00", "#0b7a4b", "#8b3fd1", "#c22f6b")
"""Of contestants; these and the next are the colors of the page's style sheet."""
ENDINGS = {
    "right": "#1f9d66", "wrong": "#8a93a3", "slip": "#e09a2d", "none": "#c4c9d1", "truncated": "#8b6fd1",
    "loop": "#c22f2f",
}  # fmt: skip


def write_plots(results: Mapping[str, Any], folder: Path) -> None:
    """Write accuracy.png and answers.png, and groups.png where problems fall into groups."""
    from matplotlib.figure import Figure

    contestants = results["contestants"]
    labels = list(contestants)
    figure = Figure(figsize=(7, 1.2 + 0.5 * len(labels)), layout="constrained")
    axes = figure.subplots()
    for i, label in enumerate(labels):
        _interval(axes, i, contestants[label]["accuracy"], COLORS[i % len(COLORS)])
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    _percent_axis(axes, "accuracy with its 95 % interval")
    _save(figure, folder / "accuracy.png")

    figure = Figure(figsize=(7, 1.6 + 0.5 * len(labels)), layout="constrained")
    axes = figure.subplots()
    lefts = [0.0] * len(labels)
    for key, name in CATEGORIES.items():
        shares = [
            contestants[label]["categories"][key] / sum(contestants[label]["categories"].values()) for label in labels
        ]
        axes.barh(labels, shares, left=lefts, color=ENDINGS[key], label=name)
        lefts = [left + share for left, share in zip(lefts, shares, strict=True)]
    axes.invert_yaxis()
    _percent_axis(axes, "answers by how they ended")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    _save(figure, folder / "answers.png")

    rows = [
        (f"{grouping}: {value}", grouping, value)
        for grouping, values in next(iter(contestants.values()))["by"].items()
        for value in values
    ]
    if not rows:
        return
    figure = Figure(figsize=(7, 1.2 + 0.35 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for i, label in enumerate(labels):
        offset = (i - (len(labels) - 1) / 2) * 0.2
        for y, (_, grouping, value) in enumerate(rows):
            found = contestants[label]["by"][grouping][value]
            _interval(axes, y + offset, found, COLORS[i % len(COLORS)], label if y == 0 else None)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    _percent_axis(axes, "accuracy by group")
    figure.legend(loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
    _save(figure, folder / "groups.png")


def _interval(axes: Any, y: float, found: Mapping[str, float], color: str, label: str | None = None) -> None:
    axes.plot([found["low"], found["high"]], [y, y], color=color, linewidth=2, solid_capstyle="round")
    axes.plot([found["value"]], [y], "o", color=color, label=label)


def _percent_axis(axes: Any, title: str) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)


def _save(figure: Any, path: Path) -> None:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    atomic_write(path, buffer.getvalue())
