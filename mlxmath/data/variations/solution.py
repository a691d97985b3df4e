"""A worked solution with other numbers: each of them follows what it was traced to, or the solution is not used."""

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction

from mlxmath.data.variations.arithmetic import NUMBER, equations_of, number_of
from mlxmath.data.variations.numbers import Drawn, digits
from mlxmath.data.variations.quantities import WORDS
from mlxmath.data.variations.tracing import Traced, shapes_of

_MARKS = re.compile(r"<<[^<>\n]*>>")
_FIGURES = re.compile(rf"(?<![\w.]){NUMBER}|(?<=<<){NUMBER}")
_WORD = re.compile(r"[A-Za-z]+")
_LONGEST = 200
"""Characters of a number; Python converts no longer ones than 4,300 digits."""


def rewritten(solution: str, traced: Traced, drawn: Drawn) -> str | None:
    """The solution with the numbers that follow from the drawn ones; None where one of them could be two things.

    Its equations are computed again afterwards, so that what is returned is true and ends in the drawn answer.
    """
    before = traced.results([numeral.value for numeral in traced.question.numerals])
    assert before is not None
    meant = _meant(traced, drawn, before)
    changed = {value for value, others in meant.items() if others != {value}}
    if any(WORDS.get(word.lower()) in changed for word in _WORD.findall(_MARKS.sub("", solution))):
        return None  # "ten boxes", where ten was a number of the question
    body, mark, answer = solution.rpartition("####")
    parts: list[str] = []
    at = 0
    for match in _FIGURES.finditer(body):
        if len(match[0]) > _LONGEST:
            return None
        value = number_of(match[0])
        others = meant.get(value, set())
        if len(others) != 1:
            return None
        (other,) = others
        parts += [body[at : match.start()], match[0] if other == value else written_like(match[0], other)]
        at = match.end()
    found = "".join([*parts, body[at:]])
    equations = equations_of(found)
    if not equations or equations[-1].result != drawn.gold or not mark:
        return None
    computing = [equation.result for equation in equations if len(equation.operands) > 1]
    return (
        f"{found}{mark}{answer[: len(answer) - len(answer.lstrip())]}{plain(drawn.gold)}"
        if computing == list(drawn.results)
        else None
    )


def _meant(traced: Traced, drawn: Drawn, before: Sequence[Fraction]) -> Mapping[Fraction, set[Fraction]]:
    """What each number of the solution may now be: as a numeral in each of its shapes, a result, or a constant."""
    found: dict[Fraction, set[Fraction]] = {}
    for numeral, value in zip(traced.question.numerals, drawn.values, strict=True):
        for old, new in shapes_of(numeral, value):
            found.setdefault(old, set()).add(new)
    for old, new in zip(before, drawn.results, strict=True):
        found.setdefault(old, set()).add(new)
    for value in traced.question.words | traced.question.usual | traced.constants:
        found.setdefault(value, set()).add(value)
    return found


def written_like(old: str, value: Fraction) -> str:
    """A value the way that another was written: with its thousands commas, and no fewer decimals than it needs."""
    decimals = max(len(old.partition(".")[2]), digits(value))
    text = f"{float(value):,.{decimals}f}" if "," in old else f"{float(value):.{decimals}f}"
    return text.removeprefix("0") if old.startswith(".") else text


def plain(value: Fraction) -> str:
    """A value in figures: 12, 0.75."""
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.{digits(value)}f}"
