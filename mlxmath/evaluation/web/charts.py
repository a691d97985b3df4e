"""Charts as HTML rows with inline SVG: widths in percent, so that they fit a phone; colors are the style sheet's."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from mlxmath.evaluation.measures import CATEGORIES
from mlxmath.evaluation.wording import interval, percent, points


def row(label: str, svg: str, value: str, note: str = "") -> str:
    """One line of a chart: name, picture, figure."""
    small = f"<small>{escape(note)}</small>" if note else ""
    return (
        f'<div class="row"><span class="name">{escape(label)}</span>{svg}'
        f'<span class="value">{escape(value)} {small}</span></div>'
    )


def interval_row(label: str, found: Mapping[str, float], color: int) -> str:
    """A share as a point on its interval, from 0 to 100 %."""
    low, high, value = (100 * found[key] for key in ("low", "high", "value"))
    title = f"{label}: {percent(found['value'])}, 95 % interval {interval(found)}"
    svg = (
        f'<svg class="bar" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>{_grid()}'
        f'<rect class="f{color} soft" x="{low:.2f}%" y="8" width="{max(high - low, 0.3):.2f}%" height="8" rx="4"/>'
        f'<circle class="f{color}" cx="{value:.2f}%" cy="12" r="6"/></svg>'
    )
    return row(label, svg, percent(found["value"]), interval(found))


def scale_row(labels: Sequence[str]) -> str:
    """What the axis of the rows above says, from its left end to its right end."""
    marks = "".join(
        f'<text x="{100 * i / (len(labels) - 1):.2f}%" y="13" text-anchor="middle">{escape(label)}</text>'
        for i, label in enumerate(labels)
    )
    return f'<div class="row scale" aria-hidden="true"><span></span><svg class="bar">{marks}</svg><span></span></div>'


def difference_row(label: str, found: Mapping[str, float], reach: float) -> str:
    """A difference as a point on its interval, around 0 in the middle; `reach` is the end of the axis."""
    low, high, value = (50 + 50 * found[key] / reach for key in ("low", "high", "difference"))
    color = "good" if found["low"] > 0 else "bad" if found["high"] < 0 else "even"
    title = f"{label}: {points(found['difference'])} points"
    svg = (
        f'<svg class="bar" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
        '<line class="axis strong" x1="50%" x2="50%" y1="0" y2="24"/>'
        f'<rect class="{color} soft" x="{low:.2f}%" y="8" width="{max(high - low, 0.3):.2f}%" height="8" rx="4"/>'
        f'<circle class="{color}" cx="{value:.2f}%" cy="12" r="6"/></svg>'
    )
    return row(label, svg, points(found["difference"]), f"{points(found['low'])} to {points(found['high'])}")


def ending_row(label: str, counts: Mapping[str, int]) -> str:
    """How answers ended, as one stacked bar."""
    total, left, parts = sum(counts.values()), 0.0, []
    for key, name in CATEGORIES.items():
        width = 100 * counts[key] / total
        if width:
            title = f"{name}: {counts[key]:,}"
            parts.append(
                f'<rect class="k-{key}" x="{left:.3f}%" y="2" width="{width:.3f}%" height="20">'
                f"<title>{escape(title)}</title></rect>"
            )
        left += width
    told = ", ".join(f"{counts[key]:,} {name}" for key, name in CATEGORIES.items() if counts[key])
    svg = f'<svg class="bar" role="img" aria-label="{escape(f"{label}: {told}")}">{"".join(parts)}</svg>'
    return row(label, svg, f"{counts['right']:,} of {total:,}", "right")


def legend() -> str:
    """What the colors of `ending_row` mean."""
    items = (f'<li><svg class="key"><rect class="k-{key}" width="12" height="12" rx="2"/></svg>{escape(name)}</li>'
             for key, name in CATEGORIES.items())  # fmt: skip
    return f'<ul class="legend">{"".join(items)}</ul>'


def histogram_row(label: str, values: Sequence[int], reach: int, color: int, num_bins: int = 30) -> str:
    """How numbers from 0 to `reach` are spread."""
    bins = [0] * num_bins
    for value in values:
        bins[min(num_bins - 1, value * num_bins // max(1, reach))] += 1
    most, width = max(bins), 100 / num_bins
    bars = "".join(
        f'<rect class="f{color}" x="{i * width:.2f}%" y="{48 - 46 * n / most:.1f}" width="{width * 0.88:.2f}%" '
        f'height="{46 * n / most:.1f}"><title>{reach * i // num_bins:,} to {reach * (i + 1) // num_bins:,}: {n:,}'
        "</title></rect>"
        for i, n in enumerate(bins)
        if n
    )
    middle = sorted(values)[len(values) // 2]
    svg = (
        f'<svg class="tall" role="img" aria-label="{escape(label)}: tokens an answer, median {middle:,}">'
        f'<line class="axis" x1="0" x2="100%" y1="48.5" y2="48.5"/>{bars}</svg>'
    )
    return row(label, svg, f"{middle:,}", "median")


def lines(series: Sequence[tuple[str, Mapping[str, float], int, bool]]) -> str:
    """Shares over k on a logarithmic axis: (name, share by k, color, dashed)."""
    ks = sorted({int(k) for _, values, _, _ in series for k in values})
    places = {k: 46 + (i * 400 / max(1, len(ks) - 1)) for i, k in enumerate(ks)}
    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = 190 - 170 * share
        parts.append(f'<line class="axis" x1="46" x2="446" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="40" y="{y + 4}" text-anchor="end">{100 * share:.0f} %</text>')
    parts += [f'<text x="{x}" y="210" text-anchor="middle">{k}</text>' for k, x in places.items()]
    for name, values, color, dashed in series:
        dots = [(places[int(k)], 190 - 170 * value, k, value) for k, value in values.items()]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in dots)
        parts.append(f'<polyline class="s{color}{" dashed" if dashed else ""}" points="{path}"/>')
        parts += [
            f'<circle class="f{color}" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{escape(name)} {k}: {percent(value)}'
            "</title></circle>"
            for x, y, k, value in dots
        ]
    told = "".join(
        f'<li><svg class="key"><line class="s{color}{" dashed" if dashed else ""}" x1="0" x2="12" y1="6" y2="6"/></svg>'
        f"{escape(name)}</li>"
        for name, _, color, dashed in series
    )
    return (
        f'<svg class="plot" viewBox="0 0 460 220" role="img" aria-label="shares over k">{"".join(parts)}</svg>'
        f'<ul class="legend">{told}</ul>'
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table whose first column is text and whose others are figures."""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>" for cells in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _grid() -> str:
    return "".join(f'<line class="axis" x1="{x}%" x2="{x}%" y1="0" y2="24"/>' for x in (0, 25, 50, 75, 100))
