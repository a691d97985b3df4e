"""Finds a dataset's problem and solution columns and turns its rows into `Problem`s."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlxmath.errors import InputError
from mlxmath.problems.problem import Message, Problem

PAIRS = (
    ("problem", "solution"), ("question", "answer"), ("prompt", "completion"), ("instruction", "response"),
    ("query", "response"), ("question", "solution"), ("prompt", "response"), ("instruction", "output"),
    ("input", "output"), ("problem", "answer"),
)  # fmt: skip
"""Columns known to hold a problem and its solution; the first pair that a dataset has is taken."""
MESSAGES = "messages"
QUESTIONS = tuple(dict.fromkeys(question for question, _ in PAIRS))
SOLUTIONS = tuple(dict.fromkeys(solution for _, solution in PAIRS))
ANSWERS = ("answer", "final_answer", "expected_answer", "ground_truth")
IDS = ("id", "uuid", "unique_id", "problem_id")

_ANSWER_MARK = "####"
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")


class SkippedRowError(Exception):
    """A row that cannot be trained on; the message is the reason, the same for all rows of its kind."""


@dataclass(frozen=True)
class Columns:
    """Which column plays which part."""

    question: str
    solution: str | None
    answer: str | None = None
    id: str | None = None

    @property
    def used(self) -> tuple[str, ...]:
        """The columns that are read."""
        names = (self.question, self.solution, self.answer, self.id)
        return tuple(dict.fromkeys(name for name in names if name is not None))

    def __str__(self) -> str:
        if self.question == MESSAGES:
            return MESSAGES
        return self.question if self.solution is None else f"{self.question} -> {self.solution}"


def find_columns(
    available: Sequence[str],
    question: str | None = None,
    solution: str | None = None,
    *,
    where: str,
    solution_required: bool = True,
) -> Columns:
    """Decide which columns are the problem and the solution.

    Args:
        available: the dataset's columns.
        question: the column asked for with `--question-column`.
        solution: the column asked for with `--solution-column`.
        where: the dataset's name, for errors.
        solution_required: whether a dataset without solutions is an error (it is not for evaluation).

    Raises:
        InputError: a column asked for is absent, or none has a usual name.
    """
    for option, name in (("--question-column", question), ("--solution-column", solution)):
        if name is not None and name not in available:
            near = difflib.get_close_matches(name, available, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"{option}: {where} has no column {name!r}, but {', '.join(available)}{hint}")
    if question is None and solution is None:
        question, solution = next(((q, s) for q, s in PAIRS if q in available and s in available), (None, None))
        if question is None and MESSAGES in available:
            question = solution = MESSAGES
    if question is None:
        question = next((q for q in QUESTIONS if q in available and q != solution), None)
    elif solution is None:
        solution = MESSAGES if question == MESSAGES else _first(SOLUTIONS, available, question)
    if question is None or (solution is None and solution_required):
        missing = "problem" if question is None else "solution"
        raise InputError(
            f"{where}: no column for the {missing} among {', '.join(available) or 'none'}; "
            f"name it with --{'question' if question is None else 'solution'}-column."
        )
    return Columns(
        question, solution, answer=_first(ANSWERS, available, question, solution), id=_first(IDS, available, question)
    )


def _first(names: Iterable[str], available: Sequence[str], *taken: str | None) -> str | None:
    return next((name for name in names if name in available and name not in taken), None)


def make_problem(row: Mapping[str, Any], columns: Columns, index: int, *, solution_required: bool = True) -> Problem:
    """The `Problem` of one row.

    Calculator marks (`<<48/2=24>>`) are removed from a solution that ends in `#### x`, and x becomes the answer where
    no column tells it.

    Raises:
        SkippedRowError: the problem or the solution is empty or is not text.
    """
    messages: tuple[Message, ...] = ()
    if columns.question == MESSAGES:
        messages = _messages(row.get(MESSAGES))
        question, solution = messages[-2].content, messages[-1].content
    else:
        question = _text(row.get(columns.question), "problem") or ""
        solution = "" if columns.solution is None else _text(row.get(columns.solution), "solution") or ""
    if not question.strip():
        raise SkippedRowError("empty problem")
    if not solution.strip() and solution_required:
        raise SkippedRowError("empty solution")
    answer = None if columns.answer is None else _text(row.get(columns.answer), "answer")
    if _ANSWER_MARK in solution:
        solution = _CALCULATOR.sub("", solution)
        answer = solution.rpartition(_ANSWER_MARK)[2].strip() if answer is None else answer
    identifier = row.get(columns.id) if columns.id is not None else None
    return Problem(
        id=str(index if identifier is None else identifier),
        question=question,
        answer=answer,
        solution=solution if solution.strip() else None,
        meta={k: v for k, v in row.items() if k not in columns.used and isinstance(v, str | int | float)},
        messages=messages,
    )


def _text(value: Any, what: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise SkippedRowError(f"{what} is not text")


def _messages(value: Any) -> tuple[Message, ...]:
    """The conversation up to its last answer: [system,] user, assistant."""
    if not isinstance(value, list):
        raise SkippedRowError("empty conversation" if value is None else "messages are not a list")
    turns = []
    for turn in value:
        if not (isinstance(turn, Mapping) and isinstance(turn.get("role"), str)):
            raise SkippedRowError("messages without a role")
        turns.append(Message(turn["role"], _text(turn.get("content"), "message") or ""))
    while turns and turns[-1].role != "assistant":
        turns.pop()
    roles = [turn.role for turn in turns if turn.role != "system"]
    if roles == ["user", "assistant"] and turns[-2].role == "user":
        return tuple(turns)
    if "user" in roles and "assistant" in roles:
        raise SkippedRowError("conversation of several turns")
    raise SkippedRowError("conversation without a question and an answer")
