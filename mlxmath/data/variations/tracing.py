"""A solution as a computation: which number of the question, or which earlier result, each operand is.

An operand whose value could come from two places that differ is traced to neither: both stay as they are. Two places
do not differ if they stay equal for other numbers too, which is tried with random ones (Schwartz 1980, Zippel 1979: two
different rational functions rarely agree on random arguments).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from mlxmath.data.variations.arithmetic import Equation, equations_of
from mlxmath.data.variations.quantities import Numeral, Question, numbers_of

_TRIALS = 3
_MOST_EQUATIONS = 40
SHAPES = ("", "/100", "1-", "1+", "100-", "100+")
"""How an operand shows a percentage p: p, p/100, 1 - p/100, 1 + p/100, 100 - p, 100 + p."""


@dataclass(frozen=True)
class Source:
    """Where an operand comes from: a numeral of the question, a result, or nothing that changes."""

    kind: str
    """"numeral", "result" or "constant"."""
    index: int = 0
    shape: str = ""
    value: Fraction = Fraction(0)
    """Of a constant."""


@dataclass(frozen=True)
class Traced:
    """A problem whose answer is a function of its numerals."""

    question: Question
    equations: tuple[Equation, ...]
    sources: tuple[tuple[Source, ...], ...]
    """Of each equation's operands."""
    free: tuple[int, ...]
    """The numerals that may change."""
    constants: frozenset[Fraction]

    def results(self, values: Sequence[Fraction]) -> list[Fraction] | None:
        """Each equation's result with these values of all numerals; None where one divides by 0."""
        found: list[Fraction] = []
        for equation, sources in zip(self.equations, self.sources, strict=True):
            value = equation.value([_value(source, values, found) for source in sources])
            if value is None:
                return None
            found.append(value)
        return found


class Untraceable(Exception):  # noqa: N818
    """Why a problem is not taken; the same words for all of its kind."""


def shaped(shape: str, value: Fraction) -> Fraction:
    """A percentage in the shape that an operand has it in."""
    share = value / 100
    return {
        "": value, "/100": share, "1-": 1 - share, "1+": 1 + share, "100-": 100 - value, "100+": 100 + value
    }[shape]  # fmt: skip


def _shapes(numeral: Numeral) -> tuple[str, ...]:
    return SHAPES if numeral.percent else SHAPES[:2] if numeral.unit in ("cent", "cents") else SHAPES[:1]


def shapes_of(numeral: Numeral, value: Fraction) -> list[tuple[Fraction, Fraction]]:
    """The values that a numeral may have as an operand, each with the one that it has with another value."""
    return [(shaped(shape, numeral.value), shaped(shape, value)) for shape in _shapes(numeral)]


def _value(source: Source, values: Sequence[Fraction], results: Sequence[Fraction]) -> Fraction:
    if source.kind == "constant":
        return source.value
    return shaped(source.shape, values[source.index]) if source.kind == "numeral" else results[source.index]


def trace(question_text: str, solution: str, gold: Fraction) -> Traced:
    """Find where each operand of a solution comes from.

    Args:
        question_text: of the problem.
        solution: with its calculator marks.
        gold: the right answer.

    Raises:
        Untraceable: an equation is not true, an operand comes from nowhere, the equations do not lead to the answer, a
            number of the question is in none of them, or nothing may change.
    """
    question = numbers_of(question_text)
    equations = equations_of(solution)
    if equations is None:
        raise Untraceable("an equation that is not plain arithmetic, or not exact")
    equations = _until(equations, gold)
    rng = random.Random(0)
    trials = [[Fraction(rng.randrange(10**6, 10**7), 997) for _ in question.numerals] for _ in range(_TRIALS)]
    seen: list[list[Fraction]] = []
    """Of each result, its value in each trial."""
    sources: list[tuple[Source, ...]] = []
    needs: list[frozenset[int]] = []
    """Of each result, the numerals that it was computed from."""
    live_for: list[set[int]] = []
    """Of each equation, the results that its operands may be."""
    may_be: set[int] = set()
    """Numerals that an operand may be."""
    held: set[int] = {i for i, numeral in enumerate(question.numerals) if numeral.fixed}
    constants: set[Fraction] = set()
    for equation in equations:
        own: list[Source] = []
        live_for.append(set())
        for operand in equation.operands:
            found = _sources(operand, question, equations[: len(sources)])
            if not found:
                raise Untraceable("an operand that comes from nowhere")
            if len({_shown(source, trials, seen) for source in found}) > 1:
                held |= {i for source in found for i in _numerals(source, needs)}
            if found[0].kind == "constant":
                constants.add(operand)
            may_be |= {source.index for source in found if source.kind == "numeral"}
            live_for[-1] |= {source.index for source in found if source.kind == "result"}
            own.append(found[0])
        sources.append(tuple(own))
        needs.append(frozenset(i for source in own for i in _numerals(source, needs)))
        found_in = [equation.value([_value(s, t, [r[k] for r in seen]) for s in own]) for k, t in enumerate(trials)]
        seen.append([Fraction(0) if value is None else value for value in found_in])
    _check_live(live_for)
    if any(not n.fixed and i not in may_be for i, n in enumerate(question.numerals)):
        raise Untraceable("a number of the question that no equation needs")
    for equation in equations:
        counted = Fraction(equation.num_terms)
        held |= {
            i for i, numeral in enumerate(question.numerals) if equation.num_terms > 1 and numeral.value == counted
        }
    free = tuple(i for i in sorted(needs[-1]) if i not in held)
    if not free:
        raise Untraceable("no number that may change")
    return Traced(question, tuple(equations), tuple(sources), free, frozenset(constants))


def _until(equations: list[Equation], gold: Fraction) -> list[Equation]:
    """The equations that compute something, up to the answer."""
    computing = [equation for equation in equations if len(equation.operands) > 1]
    if not computing or computing[-1].result != gold:
        raise Untraceable("equations that do not end in the answer")
    if len(computing) > _MOST_EQUATIONS:
        raise Untraceable("too many equations")
    return computing


def _sources(operand: Fraction, question: Question, earlier: Sequence[Equation]) -> list[Source]:
    """Every place that an operand may come from; what changes comes last, so that it is taken only if alone."""
    found: list[Source] = []
    if operand in question.words or operand in question.usual:
        found.append(Source("constant", value=operand))
    for i, numeral in enumerate(question.numerals):
        found += [Source("numeral", i, shape) for shape in _shapes(numeral) if shaped(shape, numeral.value) == operand]
    found += [Source("result", i) for i, equation in enumerate(earlier) if equation.result == operand]
    return found


def _numerals(source: Source, needs: Sequence[frozenset[int]]) -> frozenset[int]:
    if source.kind == "constant":
        return frozenset()
    return frozenset((source.index,)) if source.kind == "numeral" else needs[source.index]


def _shown(
    source: Source, trials: Sequence[Sequence[Fraction]], seen: Sequence[Sequence[Fraction]]
) -> tuple[Fraction, ...]:
    """What a source comes to in each trial."""
    return tuple(_value(source, values, [result[k] for result in seen]) for k, values in enumerate(trials))


def _check_live(needed: Sequence[set[int]]) -> None:
    """Raises Untraceable if a result is not needed for the last one; `needed`: those that each equation may need."""
    live = {len(needed) - 1}
    for at in reversed(range(len(needed))):
        if at in live:
            live |= needed[at]
    if len(live) < len(needed):
        raise Untraceable("an equation that the answer does not need")
