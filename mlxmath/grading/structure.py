"""Cuts an answer into what it is made of: assigned name, brackets, list items."""

import re
from dataclasses import dataclass
from typing import Literal

_OPEN, _CLOSE = "([{", ")]}"
_SEPARATOR = re.compile(r"\s*(?:[,;]\s*)?\b(?:and|or)\b\s*|\s*[,;]\s*|(?<=[)\]}\d])\s*\\(?:text\s*)?(?:and|or)\b\s*")
_WORD_SEPARATOR = re.compile(r"[,;]?\s*\b(?:and|or)\b\s*")
_GLUED = re.compile(r"(?<=[\d)\]}])(and|or)(?=[\d(\[{\\A-Za-z-])")
_NAME = re.compile(
    r"^(?:[A-Za-z]|\\[A-Za-z]+|[A-Z]{1,3})(?:_(?:\w|\{[\w,+ -]{1,10}\}))?'*"  # x, x_1, \theta, AB
    r"(?:\s*\(\s*[A-Za-z0-9](?:\s*,\s*[A-Za-z0-9])*\s*\))?$"  # f(x)
    r"|^\(\s*[A-Za-z](?:_\w)?(?:\s*[,;]\s*[A-Za-z](?:_\w)?)+\s*\)$"  # (x, y)
    r"|^[A-Za-z]{2,20}(?:\s[A-Za-z]{2,20}){0,5}$"  # total cost
    r"|^\|[A-Z]{1,2}\|$|^\\angle\s*[A-Z]{1,3}$"
)
_MEMBER = re.compile(r"^\s*(?:[A-Za-z](?:_\w)?|\\[A-Za-z]+|\([A-Za-z,; ]+\))\s*(?:\\in(?![A-Za-z])|:\s*(?=[\[(]))\s*")
_RELATION = re.compile(r"[<>]|\\(?:le|ge|ne|lt|gt|equiv|mid|implies|to|rightarrow|Rightarrow)(?![A-Za-z])")


@dataclass(frozen=True)
class Shape:
    """An answer's kind and parts."""

    kind: Literal["scalar", "list", "set", "tuple"]
    """`tuple` is anything in round or square brackets: tuple, vector, interval."""
    items: tuple[str, ...]
    brackets: str = ""


def split_name(text: str) -> tuple[str, str]:
    r"""`x = 5` as ("x", "5"), `x \\in [0, 1]` as ("x", "[0, 1]"); the name is empty where there is none.

    Of `x = 5 + 6 = 11` the last side counts, of `x = 1/3 \\approx 0.33` the one before the approximation.
    """
    member = _MEMBER.match(text)
    if member:
        return member[0].split("\\in")[0].strip(": "), text[member.end() :].strip()
    exact, approximate, rounded = text.partition("\\approx")
    if approximate and _NAME.match(exact.strip()):
        return exact.strip(), rounded.strip()
    sides = _split_top(exact if approximate else text, "=")
    if len(sides) > 2 and sum("=" in item for item in split_items(text)) > 1:
        return "", text
    if len(sides) < 2 or _RELATION.search(text):
        return "", exact.strip() if approximate and exact.strip() else text
    if not _NAME.match(sides[0].strip()):
        return "", text
    return sides[0].strip(), sides[-1].strip()


def is_equation(text: str) -> bool:
    """Whether an equals sign or another relation stands at the top level."""
    return len(_split_top(text, "=")) > 1 or bool(_RELATION.search(text))


def shape(text: str) -> Shape:
    """What a normalized answer is made of."""
    for opening, closing in (("\\{", "\\}"), ("\\lbrace", "\\rbrace")):
        if text.startswith(opening) and text.endswith(closing):
            inner = text[len(opening) : -len(closing)]
            if "\\{" not in inner:
                return Shape("set", tuple(split_items(inner)))
    if text[:1] in "([" and text[-1:] in ")]" and len(text) > 2 and _bracket_spans(text):
        items = split_items(text[1:-1])
        if len(items) > 1:
            return Shape("tuple", tuple(items), text[0] + text[-1])
    if text.startswith(("\\langle", "\\lbrack")) and text.endswith(("\\rangle", "\\rbrack")):
        return Shape("tuple", tuple(split_items(text[7:-7])), "()")
    items = split_items(text)
    return Shape("list", tuple(items)) if len(items) > 1 else Shape("scalar", (text,))


_MATRIX = re.compile(r"^\\begin\{[pbB]?matrix\}(.*)\\end\{[pbB]?matrix\}$", re.DOTALL)


def vector(text: str) -> tuple[str, ...] | None:
    r"""Entries of a matrix of one row or one column, or of `3\hat{i} - 2\hat{j}`."""
    if "\\hat{" in text:
        return _unit_vectors(text)
    match = _MATRIX.match(text)
    rows = [row for row in match[1].split("\\\\") if row.strip()] if match else []
    columns = rows[0].split("&") if len(rows) == 1 else rows
    return tuple(entry.strip() for entry in columns) if columns and not any("&" in entry for entry in columns) else None


_TERM = re.compile(
    r"\s*(?P<sign>[-+]?)\s*(?P<factor>(?:[^-+(){}]|\{[^{}]*\}|\([^()]*\))*?)\s*(?:\*|\\cdot|\\times)?\s*\\hat\{(?P<axis>[ijk])\}"
)


def _unit_vectors(text: str) -> tuple[str, ...] | None:
    """Entries along i, j and, where it occurs, k."""
    entries: dict[str, str] = {}
    end = 0
    while end < len(text):
        match = _TERM.match(text, end)
        if not match or match["axis"] in entries or (entries and not match["sign"]):
            return None
        entries[match["axis"]] = match["sign"].replace("+", "") + (match["factor"] or "1")
        end = match.end()
    return tuple(entries.get(axis, "0") for axis in ("ijk" if "k" in entries else "ij"))


def split_items(text: str) -> list[str]:
    """Items between top-level commas, semicolons, "and", "or"."""
    text = _GLUED.sub(r" \1 ", text)
    items: list[str] = []
    for part in _split_top(text, ",;"):
        items.extend(_split_words(part))
    return [item.strip() for item in items if item.strip()]


def union_parts(text: str) -> list[str]:
    r"""Sets between top-level `\\cup`."""
    return [part.strip() for part in text.split("\\cup")]


def _split_words(text: str) -> list[str]:
    parts, start = [], 0
    for match in _WORD_SEPARATOR.finditer(text):
        if _depth(text[: match.start()]) == 0:
            parts.append(text[start : match.start()])
            start = match.end()
    return [*parts, text[start:]]


def _depth(text: str) -> int:
    return sum((sign in _OPEN) - (sign in _CLOSE) for sign in text)


def _split_top(text: str, separators: str) -> list[str]:
    """Cut at separators outside brackets. A comma between digits that groups thousands does not cut."""
    parts, depth, start = [], 0, 0
    for i, sign in enumerate(text):
        if sign in _OPEN:
            depth += 1
        elif sign in _CLOSE:
            depth -= 1
        elif depth == 0 and sign in separators and not (sign == "," and _groups_thousands(text, i)):
            if sign == "=" and text[i - 1 : i] in ("<", ">", "!", ":"):
                continue
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]]


def _groups_thousands(text: str, comma: int) -> bool:
    """Whether the run of digits and commas around this comma is one number such as 12,345,678."""
    begin, end = comma, comma
    while begin and (text[begin - 1].isdigit() or text[begin - 1] == ","):
        begin -= 1
    while end < len(text) and (text[end].isdigit() or text[end] == ","):
        end += 1
    return bool(re.fullmatch(r"[1-9]\d{0,2}(?:,\d{3})+", text[begin:end]))


def _bracket_spans(text: str) -> bool:
    """Whether the first bracket closes with the last sign; round and square ones may pair, as in [0, 1)."""
    depth = 0
    for i, sign in enumerate(text):
        depth += (sign in _OPEN) - (sign in _CLOSE)
        if depth == 0:
            return i == len(text) - 1
    return False
