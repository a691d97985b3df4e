"""Names that may be others and names that may not: constants and parameters, bound variables, what is solved for."""

import re

from mlxmath.grading.normal import squeeze
from mlxmath.grading.structure import split_name

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


def renamed(answer: str, gold: str) -> tuple[str, str] | None:
    r"""Both answers with the gold's names for what may be called otherwise; None if that is not it.

    Constants and parameters may have other names (`\ln x + K`, `2k\pi`, `f(x) = kx`, `Ae^x`), and so may the variable
    of a function: `f(t) = t^2`. Another variable may not: `z = x^2` is not `y = x^2`.
    """
    a, g = _OF_INTEGRATION.search(answer), _OF_INTEGRATION.search(gold)
    if a and g and a["name"] != g["name"]:
        bare = answer[: a.start()], gold[: g.start()]
        if not any(m["name"] in letters(text) for m, text in zip((a, g), bare, strict=True)):
            return bare
    functions = [_FUNCTION.match(split_name(text)[0]) for text in (answer, gold)]
    first, second = functions
    if first and second and first["name"] == second["name"] and first["argument"] != second["argument"]:
        if second["argument"] in letters(answer):
            return None
        return _with(answer, {first["argument"]: second["argument"]}), gold
    are_constants = re.search(r"(?:e|\\exp)\s*[\^({\\]", answer) and re.search(r"(?:e|\\exp)\s*[\^({\\]", gold)
    if not all(functions) and not ("\\pi" in answer and "\\pi" in gold) and not are_constants:
        return None
    extra, missing = (_in_order(x, letters(x) - letters(y)) for x, y in ((answer, gold), (gold, answer)))
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
    return gold[0] in letters(answer[1]) and answer[0] in letters(gold[1])


def letters(text: str) -> set[str]:
    """All single letters that are variables."""
    return set("".join(LETTERS.findall(text)))


def _in_order(text: str, names: set[str]) -> list[str]:
    return [name for name in dict.fromkeys("".join(LETTERS.findall(text))) if name in names]


def _with(text: str, names: dict[str, str]) -> str:
    table = str.maketrans("".join(names), "".join(names.values()))
    return LETTERS.sub(lambda match: match[0].translate(table), text)
