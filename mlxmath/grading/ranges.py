"""Sets of real numbers that inequalities, intervals or words describe."""

import re
from typing import NamedTuple

from mlxmath.grading.structure import shape, split_items, union_parts

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
_TURN = {"<": ">", ">": "<", "\\le ": "\\ge ", "\\ge ": "\\le "}
_OR = re.compile(r",?\s*(?:\bor\b|\\lor(?![A-Za-z])|\\cup(?![A-Za-z]))\s*")
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
    pieces = _OR.split(text) if re.search(r"[<>]|\\[lg]e ", text) else union_parts(text)
    found = [_range(piece.strip()) for piece in pieces[: _MAX_PARTS + 1]]
    complete = [part for part in found if part]
    return complete if len(complete) == len(pieces) else None


def _range(piece: str) -> Range | None:
    parts = shape(piece)
    if parts.kind == "tuple":
        return Range(parts.brackets, *parts.items) if len(parts.items) == 2 else None
    if match := _BETWEEN.match(piece):
        brackets = ("(" if match["left"] == "<" else "[") + (")" if match["right"] == "<" else "]")
        return _bounded(brackets, match["low"], match["high"], match["variable"])
    match = _ABOVE_OR_BELOW.match(piece)
    turned = None if match else _TURNED.match(piece)
    if found := match or turned:
        sign = _TURN[found["sign"]] if turned else found["sign"]
        closed = sign.startswith("\\")
        if "l" in sign or sign == "<":
            return _bounded("(]" if closed else "()", "-\\infty", found["bound"], found["variable"])
        return _bounded("[)" if closed else "()", found["bound"], "\\infty", found["variable"])
    return None


def _bounded(brackets: str, low: str, high: str, variable: str) -> Range | None:
    ends = low.strip(), high.strip()
    return Range(brackets, *ends, variable) if all(ends) and all(len(split_items(end)) == 1 for end in ends) else None
