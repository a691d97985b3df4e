"""Is a rationale's arithmetic true, does it start from the question, and does the answer follow from it?"""

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Literal

from mlxmath.grading.extract import extract
from mlxmath.grading.normal import clean, normalize, replaced, rules
from mlxmath.grading.quantity import parse_quantity
from mlxmath.grading.sides import MAX_UNIT_WORDS, OPERATORS, Side, Token, prefix, suffix, tokens_of

Verdict = Literal["true", "false", "abstain"]

MAX_EQUATIONS = 2000
MAX_CHARACTERS = 100_000
"""Of a longer text only the beginning is read."""
_MAX_SIDE_TOKENS = 60

CALCULATOR = re.compile(r"<<[^<>]{0,200}>>")
"""GSM8K's marks of computations, such as <<48/2=24>>."""
_LATEX = rules(
    (r"\\[dtc]?frac\s*\{([^{}]{1,60})\}\s*\{([^{}]{1,60})\}", r"(\1)/(\2)"),
    (r"\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]{0,60})\}", r" \1 "),
    (r"\\(?:times|cdot|ast)(?![A-Za-z])", "*"),
    (r"\\div(?![A-Za-z])", "/"),
    (r"\\approx(?![A-Za-z])|≈", "="),
    (r"\\(?:left|right|[,;:! ])|\\[()\[\]]", " "),
    (r"\\boxed\s*\{([^{}]{1,80})\}", r" \1 "),
    (r"\\\$", "$"),
    (r"\{,\}", ","),
    (r"(?<=\d)-(?=[A-Za-z]{2})", " "),
    (r"\b(?:equals|is equal to)\b", "="),
    (r"\b(?:multiplied by)\b", "*"),
    (r"\bdivided by\b", "/"),
    (r"(?<=\d) plus (?=[$\d])", " + "),
    (r"(?<=\d) minus (?=[$\d])", " - "),
    (r"(?<=\d) and (?=\d+/\d)", " "),
    (r"\[", "("),
    (r"\]", ")"),
)
CONSTANTS = frozenset(map(Fraction, (1, 2, 7, 10, 12, 24, 30, 52, 60, 100, 365, 1000)))
"""Numbers that a rationale may use without naming a source: halves, dozens, percent, units of time."""

_NUMBER = re.compile(
    r"(?P<whole>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:\s?/\s?(?P<below>\d+))?\s?(?P<percent>%|percent)?"
)
_LONGEST_NUMBER = 1000
"""Characters; Python refuses to read more than 4,300 digits as a number, and no operand is so long."""
_WORD_VALUES = {
    word: Fraction(value)
    for words, value in (
        ("one a an once single", 1), ("two twice double doubled pair couple both", 2), ("three thrice triple", 3),
        ("four quadruple quarter", 4), ("five", 5), ("six", 6), ("seven", 7), ("eight", 8), ("nine", 9), ("ten", 10),
        ("eleven", 11), ("twelve dozen", 12), ("thirteen", 13), ("fourteen", 14), ("fifteen", 15), ("sixteen", 16),
        ("seventeen", 17), ("eighteen", 18), ("nineteen", 19), ("twenty", 20), ("thirty", 30), ("forty", 40),
        ("fifty", 50), ("sixty", 60), ("seventy", 70), ("eighty", 80), ("ninety", 90), ("hundred", 100),
        ("thousand", 1000), ("million", 10**6), ("half", 2), ("third thirds", 3), ("fourth fourths quarters", 4),
        ("fifth fifths", 5), ("sixth sixths", 6), ("eighth eighths", 8), ("tenth tenths", 10),
    )
    for word in words.split()
}  # fmt: skip


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
    return replaced(clean(CALCULATOR.sub("", text[:MAX_CHARACTERS])), _LATEX)


def equations(text: str) -> list[Equation]:
    """Every equation in `text` of which at least one side is arithmetic with an operation in it.

    Chains such as `a = b = c` give one equation for each equals sign. A side with variables, or one that begins or ends
    in the middle of a longer expression, makes the equation one to abstain from.
    """
    found: list[Equation] = []
    position = 0
    for line in prepare(text).split("\n"):
        if "=" in line and len(found) <= MAX_EQUATIONS:
            found += _line_equations(line, position)
        position += len(line) + 1
    return found[:MAX_EQUATIONS]


def _line_equations(line: str, offset: int) -> list[Equation]:
    tokens = tokens_of(line)
    ends = [-1, *(i for i, token in enumerate(tokens) if token.kind == "relation"), len(tokens)]
    sides = [tokens[start + 1 : end] for start, end in pairwise(ends)]
    found = [
        _judge(before[-_MAX_SIDE_TOKENS:], after[:_MAX_SIDE_TOKENS], offset + tokens[i].start)
        for i, (before, after) in zip(ends[1:], pairwise(sides), strict=False)
        if tokens[i].text == "="
    ]
    return [equation for equation in found if equation]


def _judge(before: list[Token], after: list[Token], position: int) -> Equation | None:
    left, right = suffix(before), prefix(after)
    if not left or not right:
        known = left or right
        if not known or not (known.operations or any(token.text in OPERATORS for token in before[-6:] + after[:6])):
            return None
        return Equation(left.text if left else "", right.text if right else "", "abstain", position=position)
    if not left.operations and not right.operations:
        is_naming = left.complete and right.complete
        return None if is_naming else Equation(left.text, right.text, "abstain", position=position)
    if not left.complete and not _agree(left, right):
        negative = suffix(before, signed=True)
        left = negative if negative and _agree(negative, right) else left
    verdict: Verdict = "false"
    if _agree(left, right) or _agree_in_cents(left, right, before, after):
        verdict = "true"
    elif (
        not left.complete
        or not right.complete
        or (not left.operations and (left.has_unit or left.percent))
        or _is_share(left, before)
    ):
        verdict = "abstain"
    return Equation(left.text, right.text, verdict, left.operands, right.value, position)


def _agree(left: Side, right: Side) -> bool:
    """Equal up to half the last printed decimal; a percentage may stand for itself or for its hundredth."""
    last_decimal = Fraction(bool(right.decimals), 10**right.decimals * (100 if right.percent else 1))
    return (
        abs(left.value - right.value) <= last_decimal / 2
        or (right.percent and abs(left.value - 100 * right.value) <= 100 * last_decimal / 2)
        or (left.percent and abs(100 * left.value - right.value) <= last_decimal / 2)
    )


def _agree_in_cents(left: Side, right: Side, before: list[Token], after: list[Token]) -> bool:
    """Equal with one side in dollars and the other in cents."""
    first, second = (
        any(token.text in ("cent", "cents", "¢") for token in side)
        for side in (before[-MAX_UNIT_WORDS:], after[:MAX_UNIT_WORDS])
    )
    return first != second and (left.value == right.value * 100 or left.value * 100 == right.value)


def _is_share(left: Side, before: list[Token]) -> bool:
    """`2/3 of the tank = 16`: a statement about a part, not a computation."""
    last_number = max(i for i, token in enumerate(before) if token.kind == "number")
    following = before[last_number + 1 : last_number + 2]
    return bool(re.fullmatch(r"\d+/\d+", left.text) and following and following[0].text == "of")


@dataclass(frozen=True)
class Faithfulness:
    """Five measures of a rationale, each from 0 to 1; None where it states nothing to be measured on."""

    validity: float | None
    """F1: true equations among those that arithmetic can decide."""
    provenance: float | None
    """F2: operands that come from the question, an earlier result or `CONSTANTS`; None without a question."""
    support: bool | None
    """F3: the final answer is the result of an equation; None without a final answer."""
    liveness: float | None
    """F4: share of the decided equations that the answer was computed from, directly or through others."""
    abstention: float | None
    """F5: equations that arithmetic cannot decide (variables, parts of longer expressions) among all."""
    equations: tuple[Equation, ...]

    @property
    def all_true(self) -> bool:
        """Whether something was decided, and nothing of it false."""
        return self.validity == 1.0

    @property
    def num_false(self) -> int:
        """Equations whose sides differ."""
        return sum(equation.verdict == "false" for equation in self.equations)


def faithfulness(rationale: str, question: str | None = None, answer: str | None = None) -> Faithfulness:
    """Measure the equations of a rationale.

    An equation is true if its sides agree to half of the last printed decimal, in exact arithmetic. `answer` is the
    final answer; without it the one that the rationale states is taken.
    """
    found = equations(rationale)
    decided = [equation for equation in found if equation.verdict != "abstain"]
    num_true = sum(equation.verdict == "true" for equation in decided)
    final = _final_value(rationale, answer)
    supporting = [i for i, equation in enumerate(decided) if final is not None and _is_result(equation, final)]
    return Faithfulness(
        validity=num_true / len(decided) if decided else None,
        provenance=None if question is None else _provenance(decided, question),
        support=None if final is None else bool(supporting),
        liveness=_liveness(decided, supporting) if decided and final is not None else None,
        abstention=1 - len(decided) / len(found) if found else None,
        equations=tuple(found),
    )


def _final_value(rationale: str, answer: str | None) -> Fraction | None:
    if answer is None:
        found = extract(rationale)
        answer = found.text if found else ""
    quantity = parse_quantity(normalize(answer))
    return quantity.value if quantity and isinstance(quantity.value, Fraction) else None


def _is_result(equation: Equation, value: Fraction) -> bool:
    return equation.result is not None and (equation.result == value or equation.result * 100 == value)


def _provenance(decided: list[Equation], question: str) -> float | None:
    known: set[Fraction | None] = {*_numbers_in(question), *CONSTANTS}
    num_operands = num_known = 0
    for equation in decided:
        for operand in equation.operands:
            num_operands += 1
            num_known += operand in known
        known.add(equation.result)
    return num_known / num_operands if num_operands else None


def _numbers_in(text: str) -> set[Fraction]:
    """Numbers in figures and in words; of a fraction also its parts."""
    text = prepare(text).lower()
    numbers: set[Fraction] = set()
    for match in _NUMBER.finditer(text):
        if len(match[0]) > _LONGEST_NUMBER:
            continue
        value = Fraction(match["whole"].replace(",", ""))
        numbers.add(value)
        if match["below"] and int(match["below"]):
            numbers |= {Fraction(int(match["below"])), value / int(match["below"])}
        if match["percent"]:
            numbers.add(value / 100)
    words = [_WORD_VALUES.get(word, Fraction(0)) for word in re.findall(r"[a-z]+", text)]
    numbers |= {value for value in words if value}
    return numbers | {tens + ones for tens, ones in pairwise(words) if tens and tens % 10 == 0 < ones < 10}


def _liveness(decided: list[Equation], supporting: list[int]) -> float:
    """Share of equations on the way back from the last supporting one, through operands to the results they repeat."""
    live = set(supporting[-1:])
    for at in reversed(range(len(decided))):
        for operand in decided[at].operands if at in live else ():
            live.update(next(([i] for i in reversed(range(at)) if decided[i].result == operand), []))
    return len(live) / len(decided)
