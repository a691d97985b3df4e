"""The equations that a rationale states, each true, false or not decidable by arithmetic alone."""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from mlxmath.grading.normal import clean
from mlxmath.grading.sides import MAX_UNIT_WORDS, OPERATORS, TOKEN, Side, Token, prefix, suffix

Verdict = Literal["true", "false", "abstain"]

MAX_EQUATIONS = 2000
MAX_CHARACTERS = 100_000
"""Of a longer text only the beginning is read."""
_MAX_SIDE_TOKENS = 60

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
_FRACTION = re.compile(r"^\d+/\d+$")


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
    tokens = [Token(m.lastgroup or "", m[0], m.start(), m.end()) for m in TOKEN.finditer(line)]
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


def _judge(before: list[Token], after: list[Token], position: int) -> Equation | None:
    left, right = suffix(before), prefix(after)
    cents = _names_cents(before[-MAX_UNIT_WORDS:]) != _names_cents(after[:MAX_UNIT_WORDS])
    if not left or not right:
        known = left or right
        if known and (known.operations or any(token.text in OPERATORS for token in (*before[-6:], *after[:6]))):
            return Equation(left.text if left else "", right.text if right else "", "abstain", position=position)
        return None
    if not left.operations and not right.operations:
        if left.complete and right.complete:
            return None
        return Equation(left.text, right.text, "abstain", position=position)
    if not left.complete and not _agree(left, right):
        negative = suffix(before, signed=True)
        left = negative if negative and _agree(negative, right) else left
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


def _agree(left: Side, right: Side) -> bool:
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


def _is_share(left: Side, before: list[Token]) -> bool:
    """`2/3 of the tank = 16`: a statement about a part, not a computation."""
    last_number = max(i for i, token in enumerate(before) if token.kind == "number")
    return bool(_FRACTION.match(left.text)) and any(token.text == "of" for token in before[last_number + 1 :][:1])


def _names_cents(tokens: list[Token]) -> bool:
    return any(token.text in ("cent", "cents", "¢") for token in tokens)


def _agree_in_cents(left: Side, right: Side) -> bool:
    """Equal with one side in dollars and the other in cents."""
    return left.value == right.value * 100 or left.value * 100 == right.value
