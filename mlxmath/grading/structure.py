"""What an answer is made of: assigned name, brackets, list items, and which names may be others."""

import re
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from mlxmath.grading.normal import is_enclosed, squeeze

_OPEN, _CLOSE = "([{", ")]}"
_ITEMS = re.compile(r"(?P<number>(?<![\d,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,]))|[,;]?\s*\b(?:and|or)\b\s*|[,;]")
"""What separates items. A comma between digits that groups thousands does not."""
_EQUALS = re.compile(r"(?<![<>!:])=")
_GLUED = re.compile(r"(?<=[\d)\]}])(and|or)(?=[\d(\[{\\A-Za-z-])")
_NAME = re.compile(
    r"^(?:[A-Za-z]|\\[A-Za-z]+|[A-Z]{1,3})(?:_(?:\w|\{[\w,+ -]{1,10}\}))?'*"  # x, x_1, \theta, AB
    r"(?:\s*\(\s*[A-Za-z0-9](?:\s*,\s*[A-Za-z0-9])*\s*\))?$"  # f(x)
    r"|^\(\s*[A-Za-z](?:_\w)?(?:\s*[,;]\s*[A-Za-z](?:_\w)?)+\s*\)$"  # (x, y)
    r"|^[A-Za-z]{2,20}(?:\s[A-Za-z]{2,20}){0,5}$"  # total cost
    r"|^\|[A-Z]{1,2}\|$|^\\angle\s*[A-Z]{1,3}$"
)
_MEMBER = re.compile(r"^\s*(?:[A-Za-z](?:_\w)?|\\[A-Za-z]+|\([A-Za-z,; ]+\))\s*(?:\\in(?![A-Za-z])|:\s*(?=[\[(]))\s*")
_MATRIX = re.compile(r"^\\begin\{[pbB]?matrix\}(.*)\\end\{[pbB]?matrix\}$", re.DOTALL)
_TERM = re.compile(
    r"\s*(?P<sign>[-+]?)\s*(?P<factor>(?:[^-+(){}]|\{[^{}]*\}|\([^()]*\))*?)\s*(?:\*|\\cdot|\\times)?\s*\\hat\{(?P<axis>[ijk])\}"
)
_RELATION = re.compile(r"[<>]|\\(?:le|ge|ne|lt|gt|equiv|mid|implies|to|rightarrow|Rightarrow)(?![A-Za-z])")
LETTERS = re.compile(
    r"(?<![\\A-Za-z])(?!(?:sin|cos|tan|log|exp|ln|max|min|gcd|lcm|lim)(?![A-Za-z]))[A-Za-z]{1,3}(?![A-Za-z])"
)
"""Variables, also several as a product."""
_VARIABLE = re.compile(r"^(?:[A-Za-z]|\\[a-z]+)(?:_\{?\w\}?)?'?$")
_FUNCTION = re.compile(r"^(?P<name>[A-Za-z](?:_\{?\w\}?)?'?)\s*\(\s*(?P<argument>[a-z])\s*\)$")
_OF_INTEGRATION = re.compile(r"\s*\+\s*(?P<name>[A-DKck]|C_\{?\w\}?|const(?:ant)?)$")
_PARAMETERS = frozenset("abcdkmnABCDK")
_CONSTANTS = frozenset("ABCDK")
_MAX_PARAMETERS = 3


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
    sides = _cut(exact if approximate else text, _EQUALS)
    if len(sides) > 2 and sum("=" in item for item in split_items(text)) > 1:
        return "", text
    if len(sides) < 2 or _RELATION.search(text):
        return "", exact.strip() if approximate and exact.strip() else text
    if not _NAME.match(sides[0].strip()):
        return "", text
    return sides[0].strip(), sides[-1].strip()


def shape(text: str) -> Shape:
    """What a normalized answer is made of."""
    for opening, closing in (("\\{", "\\}"), ("\\lbrace", "\\rbrace")):
        inner = text[len(opening) : -len(closing)]
        if text.startswith(opening) and text.endswith(closing) and "\\{" not in inner:
            return Shape("set", tuple(split_items(inner)))
    if text[:1] in "([" and text[-1:] in ")]" and len(text) > 2 and is_enclosed(text, _OPEN, _CLOSE):
        items = split_items(text[1:-1])
        if len(items) > 1:
            return Shape("tuple", tuple(items), text[0] + text[-1])
    if text.startswith(("\\langle", "\\lbrack")) and text.endswith(("\\rangle", "\\rbrack")):
        return Shape("tuple", tuple(split_items(text[7:-7])), "()")
    items = split_items(text)
    return Shape("list", tuple(items)) if len(items) > 1 else Shape("scalar", (text,))


def vector(text: str) -> tuple[str, ...] | None:
    r"""Entries of a matrix of one row or one column, or of `3\hat{i} - 2\hat{j}`."""
    if "\\hat{" in text:
        return _unit_vectors(text)
    match = _MATRIX.match(text)
    rows = [row for row in match[1].split("\\\\") if row.strip()] if match else []
    columns = rows[0].split("&") if len(rows) == 1 else rows
    return tuple(entry.strip() for entry in columns) if columns and "&" not in "".join(columns) else None


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
    return [item.strip() for item in _cut(_GLUED.sub(r" \1 ", text), _ITEMS) if item.strip()]


def _cut(text: str, separator: re.Pattern[str]) -> list[str]:
    """Cut at separators outside brackets; what matches as a number is none."""
    depths = [0, *accumulate((sign in _OPEN) - (sign in _CLOSE) for sign in text)]
    cuts = [match.span() for match in separator.finditer(text) if match.lastgroup is None and not depths[match.start()]]
    starts, ends = [0, *(end for _, end in cuts)], [*(start for start, _ in cuts), len(text)]
    return [text[start:end] for start, end in zip(starts, ends, strict=True)]


def renamed(answer: str, gold: str) -> tuple[str, str] | None:
    r"""Both answers with the gold's names for what may be called otherwise; None if that is not it.

    Constants and parameters may have other names (`\ln x + K`, `2k\pi`, `f(x) = kx`, `Ae^x`), and so may the variable
    of a function: `f(t) = t^2`. Another variable may not: `z = x^2` is not `y = x^2`.
    """
    a, g = map(_OF_INTEGRATION.search, (answer, gold))
    if a and g and a["name"] != g["name"]:
        bare = answer[: a.start()], gold[: g.start()]
        if not any(m["name"] in _letters(text) for m, text in zip((a, g), bare, strict=True)):
            return bare
    first, second = functions = [_FUNCTION.match(split_name(text)[0]) for text in (answer, gold)]
    if first and second and first["name"] == second["name"] and first["argument"] != second["argument"]:
        if second["argument"] in _letters(answer):
            return None
        return _with(answer, {first["argument"]: second["argument"]}), gold
    are_constants = all(re.search(r"(?:e|\\exp)\s*[\^({\\]", text) for text in (answer, gold))
    if not all(functions) and not ("\\pi" in answer and "\\pi" in gold) and not are_constants:
        return None
    sides = _letters(answer), _letters(gold)
    extra, missing = ([name for name in x if name not in y] for x, y in (sides, sides[::-1]))
    allowed = _PARAMETERS if all(functions) or not are_constants else _CONSTANTS
    if not 0 < len(extra) == len(missing) <= _MAX_PARAMETERS or not {*extra, *missing} <= allowed:
        return None
    if any(match and name in (match["argument"], match["name"]) for match in functions for name in extra):
        return None
    return _with(answer, dict(zip(extra, missing, strict=True))), gold


def names_another(answer_name: str, gold_name: str) -> bool:
    """Whether both name a variable or a function, not the same one: `x = 3` is another line than `y = 3`."""
    names = squeeze(answer_name).casefold(), squeeze(gold_name).casefold()
    if all(map(_VARIABLE.match, names)):
        return names[0] != names[1]
    first, second = _FUNCTION.match(answer_name), _FUNCTION.match(gold_name)
    return bool(first and second and first["name"].casefold() != second["name"].casefold())


def solved_for_another(answer: tuple[str, str], gold: tuple[str, str]) -> bool:
    """Whether each side's name stands in the other's value: `F = ma`, `a = F/m`. They may be one equation."""
    return gold[0] in _letters(answer[1]) and answer[0] in _letters(gold[1])


def _letters(text: str) -> dict[str, None]:
    """All single letters that are variables, in their order."""
    return dict.fromkeys("".join(LETTERS.findall(text)))


def _with(text: str, names: dict[str, str]) -> str:
    table = str.maketrans("".join(names), "".join(names.values()))
    return LETTERS.sub(lambda match: match[0].translate(table), text)
