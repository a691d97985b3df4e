"""PNG charts of the results."""

import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any

from mlxmath.evaluation.score import CATEGORIES
from mlxmath.runtime.console import printable
from mlxmath.runtime.files import atomic_write

COLORS = ("#6b7280", "#2457d6", "#c26a00", "#0b7a4b", "#8b3fd1", "#c22f6b")
"""Of contestants; these and the next are the colors of the page's style sheet."""
ENDINGS = dict(zip(CATEGORIES, ("#1f9d66", "#8a93a3", "#e09a2d", "#c4c9d1", "#8b6fd1", "#c22f2f"), strict=True))
_LONGEST = 48
"""Characters of a name."""


def write_plots(results: Mapping[str, Any], folder: Path) -> None:
    """Write accuracy.png and answers.png, and groups.png where problems fall into groups."""
    contestants = results["contestants"]
    labels = list(contestants)
    figure, axes = _bars(labels, "accuracy with its 95 % interval", 1.2, 0.5)
    for i, found in enumerate(contestants.values()):
        _interval(axes, i, found["accuracy"], i)
    save(figure, folder / "accuracy.png")

    figure, axes = _bars(labels, "answers by how they ended", 1.6, 0.5)
    for i, found in enumerate(contestants.values()):
        shares = [found["categories"][key] / sum(found["categories"].values()) for key in CATEGORIES]
        lefts = [0.0, *accumulate(shares)]
        for (key, name), left, share in zip(CATEGORIES.items(), lefts, shares, strict=False):
            axes.barh(i, share, left=left, color=ENDINGS[key], label=None if i else name)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    save(figure, folder / "answers.png")

    rows = [(grouping, value) for grouping, values in contestants[labels[0]]["by"].items() for value in values]
    if not rows:
        return
    figure, axes = _bars([f"{grouping}: {value}" for grouping, value in rows], "accuracy by group", 1.2, 0.35)
    for i, (label, found) in enumerate(contestants.items()):
        for y, (grouping, value) in enumerate(rows):
            shifted = y + (i - (len(labels) - 1) / 2) * 0.2
            _interval(axes, shifted, found["by"][grouping][value], i, None if y else label)
    figure.legend(loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
    save(figure, folder / "groups.png")


def _bars(names: Sequence[str], title: str, height: float, each: float) -> tuple[Any, Any]:
    """A figure with a row for each name, from 0 to 100 %; heights in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, height + each * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.set_yticks(range(len(names)), map(plain, names))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
    return figure, axes


def _interval(axes: Any, y: float, found: Mapping[str, float], color: int, label: str | None = None) -> None:
    shade = COLORS[color % len(COLORS)]
    axes.plot([found["low"], found["high"]], [y, y], color=shade, linewidth=2, solid_capstyle="round")
    axes.plot([found["value"]], [y], "o", color=shade, label=None if label is None else plain(label))


def plain(text: str) -> str:
    """A name of the user's as matplotlib shows it as it is: no formula in it, and no longer than leaves room."""
    text = printable(text)
    return (text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…").replace("$", "\\$")


def save(figure: Any, path: Path) -> None:
    """Write a figure, as its name ends: the same bytes for the same figure."""
    buffer, is_pdf = BytesIO(), path.suffix == ".pdf"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # a box stands for it
        figure.savefig(buffer, format=path.suffix[1:], dpi=150, metadata={"CreationDate": None} if is_pdf else None)
    atomic_write(path, buffer.getvalue())
