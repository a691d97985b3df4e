"""Conditions on a row: `difficulty in easy, medium`, `level <= 3`, `response contains </think>`, `correct = true`."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import ge, gt, le, lt

from mlxmath.data.columns import Columns, near
from mlxmath.data.problem import Problem
from mlxmath.errors import InputError
from mlxmath.runtime.bounded import OverrunError
from mlxmath.runtime.foreign import Pattern

FIELDS = ("question", "solution", "answer", "difficulty", "subject", "source", "length")
"""Fields that every problem has, whatever its dataset; `length` is that of question and solution, in characters."""

_PATTERN = re.compile(
    r"(?P<field>\w+)\s*(?P<operator>!=|<=|>=|=|<|>|not\s+in\b|in\b|not\s+contains\b|contains\b|matches\b)\s*(?P<value>.+)",
    re.IGNORECASE | re.DOTALL,
)
_OPERATORS = "= != < <= > >= in, not in, contains, not contains, matches"
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {"<": lt, "<=": le, ">": gt, ">=": ge}
_LAST_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?=\D*$)")

Value = str | float | bool | None


@dataclass(frozen=True)
class Filter:
    """One condition. Texts are compared without case; a field without a value meets no condition but a `not`."""

    text: str
    """As the user wrote it."""
    field: str
    holds: Callable[[Value], bool] = dataclasses.field(repr=False)

    def __call__(self, problem: Problem) -> bool:
        """Whether the problem meets the condition."""
        return self.holds(value_of(problem, self.field))

    def named_after(self, columns: Columns) -> "Filter":
        """The same condition; a column that is the question, the solution or the answer is called so."""
        parts = {columns.question: "question", columns.solution: "solution", columns.answer: "answer"}
        return dataclasses.replace(self, field=parts.get(self.field, self.field))


def parse_filter(text: str) -> Filter:
    """Read one condition.

    Raises:
        InputError: it is not `FIELD OPERATOR VALUE`.
    """
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        raise InputError(
            f"--filters: {text!r} is no condition; write FIELD OPERATOR VALUE with one of {_OPERATORS}, for example "
            "'level <= 3' or 'source in gsm8k, math'."
        )
    operator = " ".join(match["operator"].lower().split())
    return Filter(text.strip(), match["field"], _condition(text, operator, match["value"].strip()))


def value_of(problem: Problem, name: str) -> Value:
    """A field of a problem, or a column of its row; None if it has none of that name."""
    if name == "length":
        return len(problem.question) + len(problem.solution or "")
    if name in FIELDS:
        value: Value = getattr(problem, name)
        return value
    return problem.meta.get(name)


def check_fields(names: Sequence[str], columns: Sequence[str], where: str, option: str = "--filters") -> None:
    """Refuse a field that no row can have.

    Raises:
        InputError: the nearest name is given.
    """
    known = (*FIELDS, *columns)
    for name in names:
        if name not in known:
            raise InputError(f"{option}: {where} has no field {name!r}, but {', '.join(known)}{near(name, known)}")


def number(value: Value) -> float | None:
    """A value as a number: itself, or the last number in a text ("Level 3" is 3)."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, str):
        found = _LAST_NUMBER.search(value)
        return float(found[0]) if found else None
    return float(str(value))  # infinite where no float holds it


def _condition(text: str, operator: str, wanted: str) -> Callable[[Value], bool]:
    negated = operator.startswith("not ") or operator == "!="
    if compare := _COMPARISONS.get(operator):
        try:
            limit = float(wanted.replace(",", ""))
        except ValueError:
            raise InputError(f"--filters: {text!r} compares with {wanted!r}, which is not a number.") from None
        return lambda value: (found := number(value)) is not None and compare(found, limit)
    if operator == "matches":
        try:
            pattern = Pattern(wanted)
        except ValueError as error:
            raise InputError(f"--filters: {text!r}: {wanted!r} is not a regular expression: {error}") from None
        return lambda value: value is not None and _matches(text, pattern, str(value))
    if operator.endswith("contains"):
        part = wanted.casefold()
        return lambda value: (value is not None and part in str(value).casefold()) != negated
    options = [wanted] if operator in ("=", "!=") else wanted.split(",")
    allowed = {_folded(option.strip().strip("'\"")) for option in options}
    return lambda value: (value is not None and _folded(value) in allowed) != negated


def _matches(text: str, pattern: Pattern, value: str) -> bool:
    try:
        return pattern.is_in(value)
    except OverrunError as error:
        raise InputError(f"--filters: {text!r}: {error}; write a simpler regular expression.") from None


def _folded(value: Value) -> str | float:
    """A value as it is compared: 5 equals "5" and 5.0, TRUE equals true."""
    text = str(value).strip().casefold()
    try:
        return float(text)
    except ValueError:
        return text
