"""A problem once more, varied; the one entry to this folder."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from mlxmath.data.forms import without_marks
from mlxmath.data.gold import gold
from mlxmath.data.problem import Problem
from mlxmath.data.variations.names import draw_names, people, with_names
from mlxmath.data.variations.numbers import draw
from mlxmath.data.variations.order import reordered
from mlxmath.data.variations.solution import plain, rewritten
from mlxmath.data.variations.tracing import Untraceable, trace
from mlxmath.grading.normal import normalize
from mlxmath.grading.quantity import parse_quantity

Kind = Literal["numbers", "names", "order"]
KINDS: tuple[Kind, ...] = get_args(Kind)

MOST_CHARACTERS = 4000
"""Of a question; a solution may have four times as many."""


@dataclass(frozen=True)
class Varied:
    """A problem with other numbers, names or another order."""

    problem: Problem
    """With its right answer; its solution is None where the text of the original's could not follow."""
    changes: Mapping[str, str]
    """What was replaced by what; empty for another order."""


def vary(problem: Problem, kind: Kind, seed: int | str) -> Varied:
    """Vary a problem that has a gold answer. The same problem, kind and seed give the same variation.

    Raises:
        Untraceable: it cannot be varied safely; the message is the reason.
    """
    if len(problem.question) > MOST_CHARACTERS or len(problem.marked or problem.solution or "") > 4 * MOST_CHARACTERS:
        raise Untraceable("a text too long to be traced")
    return _WAYS[kind](problem, random.Random(f"{seed} {kind} {problem.question}"))


def _numbers(problem: Problem, rng: random.Random) -> Varied:
    solution, answer = problem.marked or problem.solution, gold(problem)
    quantity = parse_quantity(normalize(answer)) if answer else None
    if not solution or quantity is None:
        raise Untraceable("no worked solution or no number as its answer")
    value = quantity.value
    if isinstance(value, float):
        raise Untraceable("no worked solution or no number as its answer")
    traced = trace(problem.question, solution, value)
    drawn = draw(traced, rng)
    numerals = traced.question.numerals
    changed = {i: drawn.values[i] for i in traced.free if drawn.values[i] != numerals[i].value}
    question = traced.question.with_values(changed)
    marked = rewritten(solution, traced, drawn)
    changes = {numerals[i].text: numerals[i].written(other) for i, other in changed.items()}
    return Varied(_with(problem, question, plain(drawn.gold), marked), changes)


def _names(problem: Problem, rng: random.Random) -> Varied:
    names = draw_names(problem.question, rng)
    if names is None:
        raise Untraceable("no first name that may be replaced")
    solution = problem.marked or problem.solution
    if solution and set(people(solution)) - set(people(problem.question)):
        solution = None  # it calls somebody by another form of a name
    answer = gold(problem)
    if answer is None or with_names(answer, names) != answer:
        raise Untraceable("an answer that is a name")
    return Varied(
        _with(problem, with_names(problem.question, names), answer, solution and with_names(solution, names)), names
    )


def _order(problem: Problem, rng: random.Random) -> Varied:
    question = reordered(problem.question, rng)
    if question is None:
        raise Untraceable("no parts whose order says nothing")
    return Varied(_with(problem, question, gold(problem) or "", problem.marked or problem.solution), {})


def _with(problem: Problem, question: str, answer: str, marked: str | None) -> Problem:
    return replace(
        problem, question=question, answer=answer, marked=marked if problem.marked else None,
        solution=without_marks(marked) if marked and problem.marked else marked, messages=(), rejected=None,
    )  # fmt: skip


_WAYS: Mapping[Kind, Callable[[Problem, random.Random], Varied]] = {
    "numbers": _numbers, "names": _names, "order": _order,
}  # fmt: skip
