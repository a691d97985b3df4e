"""The equations that a rationale states, each true, false or not decidable by arithmetic alone."""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

from mlxmath.grading.expression import NotArithmetic, evaluate
from mlxmath.grading.normal import clean

Verdict = Literal["true", "false", "abstain"]

MAX_EQUATIONS = 2000
MAX_CHARACTERS = 100_000
"""Of a longer text only the beginning is read."""
_MAX_SIDE_TOKENS = 60
_MAX_UNIT_WORDS = 8

_CALCULATOR = re.compile(r"<<[^<>]{0,200}>>")
_LATEX = (
    (re.compile(r"\\[dtc]?frac\s*\{([^{}]{1,60})\}\s*\{([^{}]{1,60})\}"), r"(\1)/(\2)"),
    (re.compile(r"\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]{0,60})\}"), r" \1 "),
    (re.compile(r"\\(?:times|cdot|ast)(?![A-Za-z])"), "*"),
    (re.compile(r"\\div(?![A-Za-z])"), "/"),
    (re.compile(r"\\approx(?![A-Za-z])|≈"), "="),
    (re.compile(r"\\(?:left|right|[,;:! ])|\\[()\[\]]"), " "),
    (re.compile(r"\\boxed\s*\{([^{}]{1,80})\}"), r" \1 "),
    (re.compile(r"\\\$"), "$"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"(?<=\d)-(?=[A-Za-z]{2})"), " "),
    (re.compile(r"\b(?:equals|is equal to)\b"), "="),
    (re.compile(r"\b(?:multiplied by)\b"), "*"),
    (re.compile(r"\bdivided by\b"), "/"),
    (re.compile(r"(?<=\d) plus (?=[$\d])"), " + "),
    (re.compile(r"(?<=\d) minus (?=[$\d])"), " - "),
    (re.compile(r"(?<=\d) and (?=\d+/\d)"), " "),
    (re.compile(r"\["), "("),
    (re.compile(r"\]"), ")"),
)
_TOKEN = re.compile(
    r"(?P<number>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)|(?P<word>[A-Za-z'’]+(?:&[A-Za-z]+)?(?:-[A-Za-z]+)*(?:\.(?=\s?[/a-z*]))?)|(?P<relation>=|[<>]=?)|(?P<sign>[-+*/^()%])"
    r"|(?P<money>[$€£¥₹¢])|(?P<stop>[^\s])"
)
_TIMES_WORDS = {"x", "X", "of", "times"}
_LETTER_UNITS = {"m", "g", "h", "s", "L", "l"}
_VERBS = {
    "is",
    "are",
    "was",
    "were",
    "be",
    "because",
    "so",
    "then",
    "therefore",
    "since",
    "cost",
    "costs",
    "has",
    "have",
    "had",
}
_OPERATORS = set("+-*/^")


_FRACTION = re.compile(r"^\d+/\d+$")


class _Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Equation:
    """`left = right` as it stands in the text."""

    left: str
    right: str
    verdict: Verdict
    operands: tuple[Fraction, ...] = ()
    """Numbers that are put in: those of the left side."""
    result: Fraction | None = None
    """The value that is stated on the right."""
    position: int = 0
    """Where the equals sign stands in the prepared text."""


@dataclass(frozen=True)
class _Side:
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


def prepare(text: str) -> str:
    """The text with calculator marks removed, LaTeX arithmetic and Unicode operators as plain signs."""
    text = clean(_CALCULATOR.sub("", text[:MAX_CHARACTERS]))
    for pattern, plain in _LATEX:
        text = pattern.sub(plain, text)
    return text


def equations(text: str) -> list[Equation]:
    """Every equation in `text` of which at least one side is arithmetic with an operation in it.

    Chains such as `a = b = c` give one equation for each equals sign. A side with variables, or one that begins or ends
    in the middle of a longer expression, makes the equation one to abstain from.
    """
    found: list[Equation] = []
    position = 0
    for line in prepare(text).split("\n"):
        if "=" in line:
            found += _line_equations(line, position)
        position += len(line) + 1
        if len(found) > MAX_EQUATIONS:
            break
    return found[:MAX_EQUATIONS]


def _line_equations(line: str, offset: int) -> list[Equation]:
    tokens = [_Token(m.lastgroup or "", m[0], m.start(), m.end()) for m in _TOKEN.finditer(line)]
    signs = [i for i, token in enumerate(tokens) if token.kind == "relation"]
    found = []
    for at, i in enumerate(signs):
        if tokens[i].text != "=":
            continue
        before = tokens[max(signs[at - 1] + 1 if at else 0, i - _MAX_SIDE_TOKENS) : i]
        after = tokens[i + 1 : min(signs[at + 1] if at + 1 < len(signs) else len(tokens), i + 1 + _MAX_SIDE_TOKENS)]
        if equation := _judge(before, after, offset + tokens[i].start):
            found.append(equation)
    return found


def _judge(before: list[_Token], after: list[_Token], position: int) -> Equation | None:
    left, right = _suffix(before), _prefix(after)
    cents = _names_cents(before[-_MAX_UNIT_WORDS:]) != _names_cents(after[:_MAX_UNIT_WORDS])
    if not left or not right:
        known = left or right
        if known and (known.operations or any(token.text in _OPERATORS for token in (*before[-6:], *after[:6]))):
            return Equation(left.text if left else "", right.text if right else "", "abstain", position=position)
        return None
    if not left.operations and not right.operations:
        if left.complete and right.complete:
            return None
        return Equation(left.text, right.text, "abstain", position=position)
    result = right.value
    verdict: Verdict
    if _agree(left, right) or (cents and _agree_in_cents(left, right)):
        verdict = "true"
    elif (
        not left.complete
        or not right.complete
        or (not left.operations and (left.has_unit or left.percent))
        or _is_share(left, before)
    ):
        verdict = "abstain"
    else:
        verdict = "false"
    return Equation(left.text, right.text, verdict, left.operands, result, position)


def _agree(left: _Side, right: _Side) -> bool:
    """Equal up to half the last printed decimal; a percentage may stand for itself or for its hundredth."""
    for scale in (Fraction(1), Fraction(100), Fraction(1, 100)):
        if (scale > 1 and not right.percent) or (scale < 1 and not left.percent):
            continue
        value, stated = (
            left.value * (1 if scale > 1 else scale**-1 if scale < 1 else 1),
            right.value * (scale if scale > 1 else 1),
        )
        step = Fraction(scale if scale > 1 else 1, 10**right.decimals * (100 if right.percent else 1))
        tolerance = step / 2 if right.decimals else Fraction(0)
        if abs(value - stated) <= tolerance:
            return True
    return False


def _is_share(left: _Side, before: list[_Token]) -> bool:
    """`2/3 of the tank = 16`: a statement about a part, not a computation."""
    last_number = max(i for i, token in enumerate(before) if token.kind == "number")
    return bool(_FRACTION.match(left.text)) and any(token.text == "of" for token in before[last_number + 1 :][:1])


def _names_cents(tokens: list[_Token]) -> bool:
    return any(token.text in ("cent", "cents", "¢") for token in tokens)


def _agree_in_cents(left: _Side, right: _Side) -> bool:
    """Equal with one side in dollars and the other in cents."""
    return left.value == right.value * 100 or left.value * 100 == right.value


def _suffix(tokens: list[_Token]) -> _Side | None:
    """The longest run at the end that is arithmetic, read backwards."""
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
            elif token.kind == "word" and words < _MAX_UNIT_WORDS and _may_be_unit(token, before):
                words += 1
            elif token.text != "%" and token.kind != "money" and not (token.text == "/" and words):
                complete = False
                break
        elif token.kind == "money" or (token.text == "(" and depth):
            depth -= token.text == "("
            start = i - 1
        elif token.text in _OPERATORS or (_is_times(tokens, i - 1) and _ends_operand(tokens, i - 1)):
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
    return _side(tokens[start:], complete and not need_operand)


def _may_be_unit(token: _Token, before: _Token | None) -> bool:
    """Any word but a lone letter, which is a variable unless it is a common unit set apart from its number."""
    if len(token.text) > 1 or token.text == "a":
        return token.text.lower() not in _VERBS
    return token.text in _LETTER_UNITS and before is not None and before.end < token.start


def _is_times(tokens: list[_Token], i: int) -> bool:
    """Whether token `i` is "x", "of" or "times" in front of a number: a multiplication."""
    following = tokens[i + 1] if i + 1 < len(tokens) else None
    return tokens[i].text in _TIMES_WORDS and following is not None and _begins_operand(following)


def _begins_operand(token: _Token) -> bool:
    return token.kind in ("number", "money") or token.text == "("


def _ends_operand(tokens: list[_Token], i: int) -> bool:
    """Whether a number, with a unit or without, or a bracket ends before token `i`."""
    if tokens[i].text == "of":
        return i > 0 and (tokens[i - 1].kind == "number" or tokens[i - 1].text in (")", "%"))
    lowest = max(0, i - 2 * _MAX_UNIT_WORDS)
    while i > lowest and (
        tokens[i - 1].text == "/"
        or (tokens[i - 1].kind == "word" and _may_be_unit(tokens[i - 1], tokens[i - 2] if i > 1 else None))
    ):
        i -= 1
    return i > 0 and (tokens[i - 1].kind == "number" or tokens[i - 1].text in (")", "%"))


def _joins_next(tokens: list[_Token], i: int, start: int) -> bool:
    """`2(3)`: an implied product; `1 1/2`: a mixed number."""
    if tokens[start].text == "(":
        return tokens[i].end == tokens[start].start
    kinds = [token.text if token.kind == "sign" else token.kind for token in tokens[start : start + 3]]
    return kinds == ["number", "/", "number"] and "." not in tokens[i].text and tokens[i].end < tokens[start].start


def _adjectives(tokens: list[_Token], i: int) -> int | None:
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


def _prefix(tokens: list[_Token]) -> _Side | None:
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
        elif token.text in _OPERATORS and (after is None or _begins_operand(after) or after.text in "-("):
            need_operand = True
        elif token.text in _OPERATORS:
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


def _unit_before_operator(tokens: list[_Token], i: int) -> int | None:
    """Behind unit words: the index of an operator that is followed by a number; None if the expression ends here."""
    j = i
    while j < min(len(tokens), i + _MAX_UNIT_WORDS):
        is_unit = tokens[j].kind == "word" and not _is_times(tokens, j)
        if not is_unit and not (tokens[j].text == "/" and tokens[j + 1 : j + 2] and tokens[j + 1].kind == "word"):
            break
        j += 1
    if j + 1 >= len(tokens) or not (tokens[j].text in _OPERATORS or tokens[j].text in ("x", "X", "times")):
        return None
    return j if _begins_operand(tokens[j + 1]) else None


def _side(tokens: list[_Token], complete: bool) -> _Side | None:
    """Evaluate a run of tokens, its units dropped."""
    parts: list[str] = []
    for i, token in enumerate(tokens):
        after = tokens[i + 1] if i + 1 < len(tokens) else None
        if token.kind == "word":
            if _is_times(tokens, i) and parts and parts[-1] not in _OPERATORS:
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
    return _Side(
        text.replace(" ", ""),
        result.value,
        tuple(result.operands),
        result.operations,
        "%" in text,
        decimals,
        complete,
        has_unit,
    )
