"""Sets of real numbers that inequalities, intervals or words describe."""

import math
import re
from typing import NamedTuple

from mlxmath.grading.expression import Value
from mlxmath.grading.quantity import parse_quantity
from mlxmath.grading.structure import shape, split_items

_REALS = re.compile(
    r"^(?:\\mathbb\s*\{?\s*R\s*\}?|(?:the |set of )*(?:all )?(?:real numbers|reals)|all (?:real )?(?:numbers|values))$",
    re.IGNORECASE,
)
_SET_OF = re.compile(r"^\\\{\s*[a-zA-Z]\s*(?:\\in\s*\\mathbb\s*\{?\s*R\s*\}?\s*)?(?:\\mid|:|\|)\s*(.*?)\s*\\\}$")
_VARIABLE = r"(?P<variable>[a-zA-Z](?:_\w)?|\\[a-z]+)"
_BOUND = r"[^<>=\\]*(?:\\(?!le |ge |ne )[a-zA-Z][^<>=\\]*){0,6}"
_BETWEEN = re.compile(rf"^(?P<low>{_BOUND})(?P<left><|\\le )\s*{_VARIABLE}\s*(?P<right><|\\le )(?P<high>{_BOUND})$")
_ABOVE_OR_BELOW = re.compile(rf"^{_VARIABLE}\s*(?P<sign>[<>]|\\[lg]e )(?P<bound>{_BOUND})$")
_TURNED = re.compile(rf"^(?P<bound>{_BOUND})(?P<sign>[<>]|\\[lg]e )\s*{_VARIABLE}$")
_ABSOLUTE = re.compile(
    r"^(?:\||\\l?vert(?![A-Za-z]))\s*(?P<variable>[a-zA-Z](?:_\w)?|\\[a-z]+)\s*(?:(?P<sign>[-+])\s*(?P<center>[\w./]+|\\frac\{\w+\}\{\w+\})\s*)?"
    rf"(?:\||\\r?vert(?![A-Za-z]))\s*(?P<relation>[<>]|\\[lg]e )\s*(?P<bound>{_BOUND})$"
)
_AND = re.compile(r",?\s*(?:\band\b|\\land(?![A-Za-z])|\\wedge(?![A-Za-z])|\\cap(?![A-Za-z]))\s*")
_OR = re.compile(r",?\s*(?:\bor\b|\\lor(?![A-Za-z])|\\cup(?![A-Za-z]))\s*")
_ONE_SIDED = re.compile(r"^[^<>\\]*(?:\\(?![lg]e )[^<>\\]*)*(?:[<>]|\\[lg]e )[^<>\\]*(?:\\(?![lg]e )[^<>\\]*)*$")
_MAX_PARTS = 10


class Range(NamedTuple):
    """An interval: its brackets, its ends as they are written, and the variable of an inequality."""

    brackets: str
    low: str
    high: str
    variable: str = ""


def ranges(text: str) -> list[Range] | None:
    r"""The intervals of a normalized `0 < x \le 5`, `x < -1 or x > 1`, `(0, 1) \cup (2, 3]`, "all real numbers"."""
    if len(text) > 300:
        return None
    text = _SET_OF.sub(r"\1", text)
    if _REALS.match(text):
        return [Range("()", "-\\infty", "\\infty")]
    if absolute := _ABSOLUTE.match(text):
        found = _around(absolute)
    elif len(sides := _AND.split(text)) == 2 and all(map(_ONE_SIDED.search, sides)):
        found = [_between(*map(_range, sides))]
    else:
        pieces = _OR.split(text) if re.search(r"[<>]|\\[lg]e ", text) else text.split("\\cup")
        found = [_range(piece.strip()) for piece in pieces] if len(pieces) <= _MAX_PARTS + 1 else [None]
    return [part for part in found if part] if all(found) else None


def _around(match: re.Match[str]) -> list[Range | None]:
    r"""`|x - c| < r` as (c - r, c + r), `|x - c| \ge r` as (-\infty, c - r] and [c + r, \infty)."""
    center = f"{'-' if match['sign'] == '+' else ''}{match['center']}" if match["center"] else ""
    bound, variable = match["bound"].strip(), match["variable"]
    low, high = (f"{center}-({bound})", f"{center}+({bound})") if center else (f"-{bound}", bound)
    left, right = "[]" if match["relation"].startswith("\\") else "()"
    if match["relation"] in ("<", "\\le "):
        return [_bounded(left + right, low, high, variable)]
    return [_bounded("(" + right, "-\\infty", low, variable), _bounded(left + ")", high, "\\infty", variable)]


def _between(first: Range | None, second: Range | None) -> Range | None:
    """`x > 1 and x < 3` as one interval."""
    if not first or not second or first.variable != second.variable:
        return None
    low, high = (first, second) if second.low == "-\\infty" else (second, first)
    if high.low != "-\\infty" or low.high != "\\infty":
        return None
    return Range(low.brackets[0] + high.brackets[1], low.low, high.high, low.variable)


def _range(piece: str) -> Range | None:
    parts = shape(piece)
    if parts.kind == "tuple":
        return Range(parts.brackets, *parts.items) if len(parts.items) == 2 else None
    if match := _BETWEEN.match(piece):
        brackets = ("(" if match["left"] == "<" else "[") + (")" if match["right"] == "<" else "]")
        return _bounded(brackets, match["low"], match["high"], match["variable"])
    match, turned = _ABOVE_OR_BELOW.match(piece), _TURNED.match(piece)
    if not (found := match or turned):
        return None
    left, right = "[]" if found["sign"].startswith("\\") else "()"
    if (found["sign"] in ("<", "\\le ")) == bool(match):
        return _bounded("(" + right, "-\\infty", found["bound"], found["variable"])
    return _bounded(left + ")", found["bound"], "\\infty", found["variable"])


def _bounded(brackets: str, low: str, high: str, variable: str) -> Range | None:
    ends = low.strip(), high.strip()
    return Range(brackets, *ends, variable) if all(len(split_items(end)) == 1 for end in ends) else None


def same_sets(first: list[Range], second: list[Range]) -> bool | None:
    """Whether intervals with numbers at their ends make up the same set; None where roots may differ in a bit."""
    sets = _union(first), _union(second)
    if sets[0] is None or sets[1] is None:
        return None
    is_exact = not any(isinstance(end, float) and math.isfinite(end) for span in sets[0] + sets[1] for end in span)
    return sets[0] == sets[1] or (False if is_exact else None)


def _union(parts: list[Range]) -> list[tuple[Value, bool, Value, bool]] | None:
    """The same set in as few intervals as possible: low, whether that is in it, high, whether that is in it.

    None where an end is no number or a pair is no interval.
    """
    spans: list[tuple[Value, bool, Value, bool]] = []
    for part in parts:
        low, high = _end(part.low), _end(part.high)
        if low is None or high is None or low >= high:
            return None
        spans.append((low, part.brackets[0] == "[", high, part.brackets[1] == "]"))
    merged: list[tuple[Value, bool, Value, bool]] = []
    for low, has_low, high, has_high in sorted(spans, key=lambda span: (span[0], not span[1])):
        start, has_start, end, has_end = merged[-1] if merged else (low, has_low, low, False)
        if low < end or (low == end and (has_low or has_end)):
            merged[-1:] = [(start, has_start, *max((end, has_end), (high, has_high)))]
        else:
            merged.append((low, has_low, high, has_high))
    return merged


def _end(text: str) -> Value | None:
    text = text.replace(" ", "")
    if text.lstrip("+-") in ("\\infty", "infinity"):
        return -math.inf if text.startswith("-") else math.inf
    quantity = parse_quantity(text)
    return quantity.value if quantity and not quantity.percent else None
