"""The arithmetic before and behind an equals sign: where it begins and ends among words, and what it comes to."""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from mlxmath.grading.expression import NotArithmetic, evaluate

MAX_UNIT_WORDS = 8
TOKEN = re.compile(
    r"(?P<number>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"|(?P<word>[A-Za-z'’]+(?:&[A-Za-z]+)?(?:-[A-Za-z]+)*(?:\.(?=\s?[/a-z*]))?)"
    r"|(?P<relation>=|[<>]=?)|(?P<sign>[-+*/^()%])"
    r"|(?P<money>[$€£¥₹¢])|(?P<stop>[^\s])"
)
_TIMES_WORDS = {"x", "X", "of", "times"}
_LETTER_UNITS = {"m", "g", "h", "s", "L", "l"}
_VERBS = {
    "is", "are", "was", "were", "be", "because", "so", "then", "therefore", "since",
    "cost", "costs", "has", "have", "had",
}  # fmt: skip
OPERATORS = set("+-*/^")


class Token(NamedTuple):
    """A match of `TOKEN`."""

    kind: str
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Side:
    """An arithmetic expression and its value."""

    text: str
    value: Fraction
    operands: tuple[Fraction, ...]
    operations: int
    percent: bool
    decimals: int
    """Digits behind the point of its last number."""
    complete: bool
    """Whether nothing that belongs to the expression was left out: no operator before or behind it."""
    has_unit: bool


def suffix(tokens: list[Token], *, signed: bool = False) -> Side | None:
    """The longest run at the end that is arithmetic, read backwards.

    A minus sign right before its first number belongs to it if `signed` is set; it may also be a bullet.
    """
    i = start = len(tokens)
    words = depth = 0
    need_operand = complete = True
    while i > 0:
        token, before = tokens[i - 1], tokens[i - 2] if i > 1 else None
        if need_operand:
            if token.kind == "number":
                need_operand, words, start = False, 0, i - 1
            elif token.text == ")":
                depth += 1
            elif token.kind == "word" and words < MAX_UNIT_WORDS and _may_be_unit(token, before):
                words += 1
            elif token.text != "%" and token.kind != "money" and not (token.text == "/" and words):
                complete = False
                break
        elif token.kind == "money" or (token.text == "(" and depth):
            depth -= token.text == "("
            start = i - 1
        elif token.text in OPERATORS or (_is_times(tokens, i - 1) and _ends_operand(tokens, i - 1)):
            need_operand, words = True, 0
        elif token.text == ")" and tokens[start].text == "(":
            need_operand, depth = True, depth + 1
        elif token.kind == "number" and _joins_next(tokens, i - 1, start):
            start = i - 1
        elif token.kind == "word" and (operator := _adjectives(tokens, i - 1)):
            i = operator + 1
            continue
        else:
            break
        i -= 1
    if start == len(tokens):
        return None
    if signed and need_operand and i == start - 1 and tokens[i].text == "-" and tokens[i].end == tokens[start].start:
        return _side(tokens[i:], True)
    return _side(tokens[start:], complete and not need_operand)


def _may_be_unit(token: Token, before: Token | None) -> bool:
    """Any word but a lone letter, which is a variable unless it is a common unit set apart from its number."""
    if len(token.text) > 1 or token.text == "a":
        return token.text.lower() not in _VERBS
    return token.text in _LETTER_UNITS and before is not None and before.end < token.start


def _is_times(tokens: list[Token], i: int) -> bool:
    """Whether token `i` is "x", "of" or "times" in front of a number: a multiplication."""
    following = tokens[i + 1] if i + 1 < len(tokens) else None
    return tokens[i].text in _TIMES_WORDS and following is not None and _begins_operand(following)


def _begins_operand(token: Token) -> bool:
    return token.kind in ("number", "money") or token.text == "("


def _ends_operand(tokens: list[Token], i: int) -> bool:
    """Whether a number, with a unit or without, or a bracket ends before token `i`."""
    if tokens[i].text == "of":
        return i > 0 and (tokens[i - 1].kind == "number" or tokens[i - 1].text in (")", "%"))
    lowest = max(0, i - 2 * MAX_UNIT_WORDS)
    while i > lowest and (
        tokens[i - 1].text == "/"
        or (tokens[i - 1].kind == "word" and _may_be_unit(tokens[i - 1], tokens[i - 2] if i > 1 else None))
    ):
        i -= 1
    return i > 0 and (tokens[i - 1].kind == "number" or tokens[i - 1].text in (")", "%"))


def _joins_next(tokens: list[Token], i: int, start: int) -> bool:
    """`2(3)`: an implied product; `1 1/2`: a mixed number."""
    if tokens[start].text == "(":
        return tokens[i].end == tokens[start].start
    kinds = [token.text if token.kind == "sign" else token.kind for token in tokens[start : start + 3]]
    return kinds == ["number", "/", "number"] and "." not in tokens[i].text and tokens[i].end < tokens[start].start


def _adjectives(tokens: list[Token], i: int) -> int | None:
    """Of "+ Sam's remaining 8": from the last word back to the operator, None if there is none close by."""
    for j in range(i, max(-1, i - 4), -1):
        if tokens[j].text in ("+", "-", "*", "/"):
            if tokens[j].text == "/" and tokens[j].end == tokens[j + 1].start:
                return None
            return (
                j if j > 0 and (tokens[j - 1].kind in ("number", "word") or tokens[j - 1].text in (")", "%")) else None
            )
        if tokens[j].kind != "word" or not _may_be_unit(tokens[j], tokens[j - 1] if j else None):
            return None
    return None


def prefix(tokens: list[Token]) -> Side | None:
    """The longest run at the beginning that is arithmetic."""
    end = i = depth = 0
    need_operand = complete = True
    while i < len(tokens):
        token = tokens[i]
        after = tokens[i + 1] if i + 1 < len(tokens) else None
        if need_operand:
            if token.kind == "number":
                need_operand, end = False, i + 1
            elif token.text == "(":
                depth += 1
            elif token.kind != "money" and token.text not in ("-", "+"):
                complete = False
                break
        elif token.text == "%" or token.kind == "money":
            end = i + 1
        elif token.text == ")" and depth:
            depth -= 1
            end = i + 1
        elif token.kind == "number" and _joins_next(tokens, i - 1, i):
            end = i + 3
            i += 2
        elif token.text == "(" and tokens[i - 1].end == token.start:
            need_operand, depth = True, depth + 1
        elif token.text == "/" and after and after.kind == "word" and len(after.text) > 1:
            end = end or i
            if not (skip := _unit_before_operator(tokens, i)):
                break
            i = skip
            continue
        elif token.text in OPERATORS and (after is None or _begins_operand(after) or after.text in "-("):
            need_operand = True
        elif token.text in OPERATORS:
            complete = after is not None and after.kind == "word" and len(after.text) > 1
            break
        elif token.text in ("x", "X", "times") and _is_times(tokens, i):
            need_operand = True
        elif token.kind == "word" and (skip := _unit_before_operator(tokens, i)):
            i = skip
            continue
        else:
            complete = not (token.kind == "word" and len(token.text) == 1 and not _may_be_unit(token, tokens[i - 1]))
            break
        i += 1
    return _side(tokens[:end], complete) if end else None


def _unit_before_operator(tokens: list[Token], i: int) -> int | None:
    """Behind unit words: the index of an operator that is followed by a number; None if the expression ends here."""
    j = i
    while j < min(len(tokens), i + MAX_UNIT_WORDS):
        is_unit = tokens[j].kind == "word" and not _is_times(tokens, j)
        if not is_unit and not (tokens[j].text == "/" and tokens[j + 1 : j + 2] and tokens[j + 1].kind == "word"):
            break
        j += 1
    if j + 1 >= len(tokens) or not (tokens[j].text in OPERATORS or tokens[j].text in ("x", "X", "times")):
        return None
    return j if _begins_operand(tokens[j + 1]) else None


def _side(tokens: list[Token], complete: bool) -> Side | None:
    """Evaluate a run of tokens, its units dropped."""
    parts: list[str] = []
    for i, token in enumerate(tokens):
        after = tokens[i + 1] if i + 1 < len(tokens) else None
        if token.kind == "word":
            if _is_times(tokens, i) and parts and parts[-1] not in OPERATORS:
                parts.append("*")
        elif token.kind in ("number", "sign") and not (token.text == "/" and (after is None or after.kind == "word")):
            parts.append(token.text)
    text = " ".join(parts)
    try:
        result = evaluate(text)
    except NotArithmetic:
        return None
    if not isinstance(result.value, Fraction):
        return None
    numbers = [token.text for token in tokens if token.kind == "number"]
    decimals = len(numbers[-1].partition(".")[2]) if numbers else 0
    has_unit = any(token.kind in ("word", "money") for token in tokens)
    return Side(
        text.replace(" ", ""),
        result.value,
        tuple(result.operands),
        result.operations,
        "%" in text,
        decimals,
        complete,
        has_unit,
    )
