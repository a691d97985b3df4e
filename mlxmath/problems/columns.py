"""Finds a dataset's problem and solution columns and turns its rows into `Problem`s."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from mlxmath.errors import InputError
from mlxmath.problems.gold import is_marked, stated
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
ANSWERS = (
    "answer", "final_answer", "expected_answer", "ground_truth", "reference_answer", "gold_answer", "correct_answer",
    "gold", "target",
)  # fmt: skip
IDS = ("id", "uuid", "unique_id", "problem_id")
DIFFICULTIES = ("difficulty", "level")
SUBJECTS = ("subject", "type", "problem_type", "task_category", "category", "kind")
SOURCES = ("source", "data_source")

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
    difficulty: str | None = None
    subject: str | None = None
    source: str | None = None
    rejected: str | None = None
    """Of pairs, of which the solution is the preferred completion."""

    @property
    def used(self) -> tuple[str, ...]:
        """The columns that are read."""
        names = (getattr(self, part.name) for part in fields(self))
        return tuple(dict.fromkeys(name for name in names if name is not None))

    @property
    def main(self) -> tuple[str, ...]:
        """The columns without which there is no problem."""
        return self.question, *([self.solution] if self.solution else ())

    @property
    def core(self) -> tuple[str | None, ...]:
        """The columns whose values are the problem itself."""
        return self.question, self.solution, self.answer, self.id, self.rejected

    def __str__(self) -> str:
        if self.question == MESSAGES:
            return MESSAGES
        if self.rejected:
            return f"{self.question} -> {self.solution}, not {self.rejected}"
        return self.question if self.solution is None else f"{self.question} -> {self.solution}"


def find_columns(
    available: Sequence[str],
    question: str | None = None,
    solution: str | None = None,
    answer: str | None = None,
    *,
    where: str,
    solution_required: bool = True,
) -> Columns:
    """Decide which columns are the problem and the solution.

    Args:
        available: the dataset's columns.
        question: the column asked for with `--question-column`.
        solution: the column asked for with `--solution-column`.
        answer: the column asked for with `--answer-column`.
        where: the dataset's name, for errors.
        solution_required: whether a dataset without solutions is an error (it is not for evaluation).

    Raises:
        InputError: a column asked for is absent, or none has a usual name.
    """
    asked = {"--question-column": question, "--solution-column": solution, "--answer-column": answer}
    for option, name in asked.items():
        if name is not None and name not in available:
            raise InputError(
                f"{option}: {where} has no column {name!r}, but {', '.join(available)}{near(name, available)}"
            )
    if question is None and solution is None:
        question, solution = next(((q, s) for q, s in PAIRS if q in available and s in available), (None, None))
        if question is None and MESSAGES in available:
            question = solution = MESSAGES
    if question is None:
        question = next((q for q in QUESTIONS if q in available and q != solution), None)
    if solution is None:
        names = SOLUTIONS if solution_required else tuple(name for name in SOLUTIONS if name not in ANSWERS)
        solution = MESSAGES if question == MESSAGES else first_of(names, available, question)
    if question is None or (solution is None and solution_required):
        missing = "problem" if question is None else "solution"
        raise InputError(
            f"{where}: no column for the {missing} among {', '.join(available) or 'none'}; "
            f"name it with --{'question' if question is None else 'solution'}-column."
        )
    taken = (question, solution)
    return Columns(
        question,
        solution,
        answer=answer or first_of(ANSWERS, available, *taken),
        id=first_of(IDS, available, question),
        difficulty=first_of(DIFFICULTIES, available, *taken),
        subject=first_of(SUBJECTS, available, *taken),
        source=first_of(SOURCES, available, *taken),
    )


def near(name: str, known: Iterable[str]) -> str:
    """`; did you mean …?` with the known name nearest to `name`, or nothing."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.4)
    return f"; did you mean {by_lower[found[0]]!r}?" if found else ""


def first_of(names: Iterable[str], available: Sequence[str], *taken: str | None) -> str | None:
    """The first of `names` that is available and not taken."""
    return next((name for name in names if name in available and name not in taken), None)


def make_problem(row: Mapping[str, Any], columns: Columns, index: int, *, solution_required: bool = True) -> Problem:
    """The `Problem` of one row.

    Calculator marks (`<<48/2=24>>`) are removed from a solution that ends in `#### x`. Where no column tells the
    answer, it is the one that the solution marks with `####` or `\\boxed{}` (`mlxmath.problems.gold` reads words too).

    Raises:
        SkippedRowError: the problem or the solution is empty or is not text.
    """
    messages: tuple[Message, ...] = ()
    if columns.question == MESSAGES:
        messages = _messages(row.get(MESSAGES))
        question = next(turn.content for turn in messages if turn.role == "user")
        solution = messages[-1].content
    else:
        question = text_of(row.get(columns.question), "problem") or ""
        solution = "" if columns.solution is None else text_of(row.get(columns.solution), "solution") or ""
    if not question.strip():
        raise SkippedRowError("empty problem")
    if not solution.strip() and solution_required:
        raise SkippedRowError("empty solution")
    answer = None if columns.answer is None else text_of(row.get(columns.answer), "answer")
    if _ANSWER_MARK in solution:
        solution = _CALCULATOR.sub("", solution)
    if answer is None and is_marked(solution):
        answer = stated(solution)
    identifier = row.get(columns.id) if columns.id is not None else None
    return Problem(
        id=str(index if identifier is None else identifier),
        question=question,
        answer=answer,
        solution=solution if solution.strip() else None,
        meta={k: v for k, v in row.items() if k not in columns.core and isinstance(v, str | int | float)},
        messages=messages,
        difficulty=_plain(row, columns.difficulty),
        subject=_plain(row, columns.subject),
        source=_plain(row, columns.source),
    )


def number_text(value: float) -> str:
    """A number as people write it: 145 for 145.0, no exponent."""
    return str(int(value)) if float(value).is_integer() else repr(value)


def _plain(row: Mapping[str, Any], column: str | None) -> str | None:
    value = None if column is None else row.get(column)
    return str(value) if isinstance(value, str | int | float) and value != "" else None


def text_of(value: Any, what: str) -> str | None:
    """Text as it is, a number as text, NaN (an empty cell) as None; all else is refused with a SkippedRowError."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return None if value != value else str(value)
    raise SkippedRowError(f"{what} is not text")


def turns_of(value: Sequence[Any]) -> tuple[Message, ...]:
    """Messages as a dataset holds them; those without a role or text are refused with a SkippedRowError."""
    turns = []
    for turn in value:
        if not (isinstance(turn, Mapping) and isinstance(turn.get("role"), str)):
            raise SkippedRowError("messages without a role")
        turns.append(Message(turn["role"], text_of(turn.get("content"), "message") or ""))
    return tuple(turns)


def _messages(value: Any) -> tuple[Message, ...]:
    """The conversation up to its last answer: [system,] user, assistant, user, assistant …"""
    if not isinstance(value, list):
        raise SkippedRowError("empty conversation" if value is None else "messages are not a list")
    turns = list(turns_of(value))
    while turns and turns[-1].role != "assistant":
        turns.pop()
    roles = [turn.role for turn in turns if turn.role != "system"]
    if "user" not in roles or "assistant" not in roles:
        raise SkippedRowError("conversation without a question and an answer")
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise SkippedRowError("conversation whose turns do not alternate")
    if any(turn.role == "system" for turn in turns[1:]):
        raise SkippedRowError("conversation with a system message inside")
    return tuple(turns)
