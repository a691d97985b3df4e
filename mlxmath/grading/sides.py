"""The arithmetic before and behind an equals sign: where it begins and ends among words, and what it comes to."""

import re
from fractions import Fraction
from typing import NamedTuple

from mlxmath.grading.expression import NotArithmetic, evaluate

MAX_UNIT_WORDS = 8
_TOKEN = re.compile(
    r"(?P<number>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"|(?P<word>[A-Za-z'’]+(?:&[A-Za-z]+)?(?:-[A-Za-z]+)*(?:\.(?=\s?[/a-z*]))?)"
    r"|(?P<relation>=|[<>]=?)|(?P<sign>[-+*/^()%])"
    r"|(?P<money>[$€£¥₹¢])|(?P<stop>[^\s])"
)
_LETTER_UNITS = {"m", "g", "h", "s", "L", "l"}
_VERBS = {
    "is", "are", "was", "were", "be", "because", "so", "then", "therefore", "since",
    "cost", "costs", "has", "have", "had",
}  # fmt: skip
_TIMES_LETTERS = {"x", "X", "times"}
_TIMES = {"of", *_TIMES_LETTERS}
OPERATORS = set("+-*/^")


class Token(NamedTuple):
    """A match of `_TOKEN`."""

    kind: str
    text: str
    start: int
    end: int
    is_unit: bool
    """Any word but a verb or a lone letter, which is a variable unless it is a common unit set apart from a number."""
    is_times: bool
    """ "x", "of" or "times" in front of a number: a multiplication."""

    @property
    def begins_operand(self) -> bool:
        return self.kind in ("number", "money") or self.text == "("


class Side(NamedTuple):
    """An arithmetic expression before or behind an equals sign, and its value."""

    text: str
    value: Fraction
    operands: tuple[Fraction, ...]
    operations: int
    decimals: int
    """Digits behind the point of its last number."""
    complete: bool
    """Whether nothing that belongs to the expression was left out: no operator before or behind it."""
    has_unit: bool

    @property
    def percent(self) -> bool:
        return "%" in self.text


def tokens_of(line: str) -> list[Token]:
    """A line cut into tokens; what a word can be depends on what stands before and behind it."""
    tokens: list[Token] = []
    following = None
    for match in reversed(list(_TOKEN.finditer(line))):
        kind, text, is_unit = match.lastgroup or "", match[0], False
        is_times = text in _TIMES and following is not None and following.begins_operand
        if kind == "word" and (len(text) > 1 or text == "a"):
            is_unit = text.lower() not in _VERBS
        elif text in _LETTER_UNITS:
            before = line[: match.start()]
            is_unit = before[-1:].isspace() and before.rstrip()[-1:] not in ("", *"<>=")
        following = Token(kind, text, *match.span(), is_unit, is_times)
        tokens.append(following)
    return tokens[::-1]


def suffix(tokens: list[Token], *, signed: bool = False) -> Side | None:
    """The longest run at the end that is arithmetic, read backwards.

    A minus sign right before its first number belongs to it if `signed` is set; it may also be a bullet.
    """
    i = start = len(tokens)
    words = depth = 0
    need_operand = complete = True
    while i > 0:
        token = tokens[i - 1]
        if need_operand:
            if token.kind == "number":
                need_operand, words, start = False, 0, i - 1
            elif token.text == ")":
                depth += 1
            elif token.is_unit and words < MAX_UNIT_WORDS:
                words += 1
            elif token.text != "%" and token.kind != "money" and not (token.text == "/" and words):
                complete = False
                break
        elif token.kind == "money" or (token.text == "(" and depth):
            depth -= token.text == "("
            start = i - 1
        elif token.text in OPERATORS or (token.is_times and _ends_operand(tokens, i - 1)):
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


def _ends_operand(tokens: list[Token], i: int) -> bool:
    """Whether a number, with a unit or without, or a bracket ends before token `i`."""
    if tokens[i].text != "of":
        lowest = max(0, i - 2 * MAX_UNIT_WORDS)
        while i > lowest and (tokens[i - 1].text == "/" or tokens[i - 1].is_unit):
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
    lowest = max(0, i - 3)
    while i > lowest and tokens[i].is_unit:
        i -= 1
    operator, before = tokens[i], tokens[i - 1]
    if operator.text not in ("+", "-", "*", "/") or not i:
        return None
    if operator.text == "/" and operator.end == tokens[i + 1].start:
        return None
    return i if before.kind in ("number", "word") or before.text in (")", "%") else None


def prefix(tokens: list[Token]) -> Side | None:
    """The longest run at the beginning that is arithmetic."""
    end = i = depth = 0
    need_operand = complete = True
    while i < len(tokens):
        token, after = tokens[i], tokens[i + 1] if i + 1 < len(tokens) else None
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
            i += 2
            end = i + 1
        elif token.text == "(" and tokens[i - 1].end == token.start:
            need_operand, depth = True, depth + 1
        elif token.text in _TIMES_LETTERS and token.is_times:
            need_operand = True
        elif token.kind == "word" or (token.text == "/" and after and after.kind == "word" and len(after.text) > 1):
            if skip := _unit_before_operator(tokens, i):
                i = skip
                continue
            complete = token.kind != "word" or len(token.text) > 1 or token.is_unit
            break
        elif token.text in OPERATORS and (after is None or after.begins_operand or after.text in "-("):
            need_operand = True
        else:
            complete = token.text not in OPERATORS or (
                after is not None and after.kind == "word" and len(after.text) > 1
            )
            break
        i += 1
    return _side(tokens[:end], complete) if end else None


def _unit_before_operator(tokens: list[Token], i: int) -> int | None:
    """Behind unit words: the index of an operator that is followed by a number; None if the expression ends here."""
    for j in range(i, min(len(tokens) - 1, i + MAX_UNIT_WORDS + 1)):
        token, after = tokens[j], tokens[j + 1]
        is_unit = token.kind == "word" and not token.is_times
        if not is_unit and not (token.text == "/" and after.kind == "word"):
            is_operator = token.text in OPERATORS or token.text in _TIMES_LETTERS
            return j if is_operator and after.begins_operand else None
    return None


def _side(tokens: list[Token], complete: bool) -> Side | None:
    """Evaluate a run of tokens, its units dropped."""
    parts: list[str] = []
    for i, token in enumerate(tokens):
        is_rate = token.text == "/" and (i + 1 == len(tokens) or tokens[i + 1].kind == "word")
        if token.is_times and parts and parts[-1] not in OPERATORS:
            parts.append("*")
        elif token.kind in ("number", "sign") and not is_rate:
            parts.append(token.text)
    try:
        value, operands, operations = evaluate(" ".join(parts))
    except NotArithmetic:
        return None
    if not isinstance(value, Fraction):
        return None
    numbers = [token.text for token in tokens if token.kind == "number"]
    decimals = len(numbers[-1].partition(".")[2]) if numbers else 0
    has_unit = any(token.kind in ("word", "money") for token in tokens)
    return Side("".join(parts), value, tuple(operands), operations, decimals, complete, has_unit)
