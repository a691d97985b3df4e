"""Is a rationale's arithmetic true, does it start from the question, and does the answer follow from it?"""

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from mlxmath.grading.equations import Equation, equations, prepare
from mlxmath.grading.extract import extract
from mlxmath.grading.normal import clean, normalize
from mlxmath.grading.quantity import parse_quantity

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
_WORD = re.compile(r"[a-z]+")


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
        if found is None:
            return None
        answer = found.text
    quantity = parse_quantity(normalize(answer))
    return quantity.value if quantity and isinstance(quantity.value, Fraction) else None


def _is_result(equation: Equation, value: Fraction) -> bool:
    return equation.result is not None and (equation.result == value or equation.result * 100 == value)


def _provenance(decided: list[Equation], question: str) -> float | None:
    known = _numbers_in(question) | CONSTANTS
    num_operands = num_known = 0
    for equation in decided:
        for operand in equation.operands:
            num_operands += 1
            num_known += operand in known
        known |= _results(equation)
    return num_known / num_operands if num_operands else None


def _results(equation: Equation) -> set[Fraction]:
    return set() if equation.result is None else {equation.result}


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
    words = _WORD.findall(clean(text))
    numbers |= {_WORD_VALUES[word] for word in words if word in _WORD_VALUES}
    for tens, ones in pairwise(words):
        if tens in _WORD_VALUES and ones in _WORD_VALUES and _WORD_VALUES[tens] % 10 == 0 < _WORD_VALUES[ones] < 10:
            numbers.add(_WORD_VALUES[tens] + _WORD_VALUES[ones])
    return numbers


def _liveness(decided: list[Equation], supporting: list[int]) -> float:
    """Share of equations on the way back from the last supporting one, through operands to the results they repeat."""
    live = set(supporting[-1:])
    open_equations = supporting[-1:]
    while open_equations:
        at = open_equations.pop()
        for operand in decided[at].operands:
            source = next((i for i in range(at - 1, -1, -1) if decided[i].result == operand), None)
            if source is not None and source not in live:
                live.add(source)
                open_equations.append(source)
    return len(live) / len(decided)
