"""Finds a dataset's problem and solution columns and turns its rows into `Problem`s."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from mlxmath.data.answers import answer_among, inside
from mlxmath.data.conversation import (
    CONVERSATIONS,
    are_messages,
    conversation,
    question_of,
    tools_of,
    turns_of,
    with_reasoning,
)
from mlxmath.data.gold import is_marked, stated
from mlxmath.data.names import (
    ANSWERS,
    CHOSEN,
    CHOSEN_OPTIONS,
    CONTEXTS,
    DIFFICULTIES,
    HOLDERS,
    IDS,
    OPTIONS,
    QUESTIONS,
    REASONINGS,
    REJECTED,
    SOLUTIONS,
    SOURCES,
    SUBJECTS,
    SYSTEMS,
    TEXT,
    TOOLS,
    WORKED,
    canonical,
    first_of,
    near,
)  # fmt: skip
from mlxmath.data.options import chosen_of, with_options
from mlxmath.data.problem import Message, Problem
from mlxmath.data.values import SkippedRowError, text_of
from mlxmath.errors import InputError

__all__ = ["Columns", "SkippedRowError", "find_columns", "make_problem", "number_text", "text_of"]

_ANSWER_MARK = "####"
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")


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
    context: str | None = None
    """What the question is about, or the instruction's input: it belongs to the problem."""
    system: str | None = None
    """The system message."""
    reasoning: str | None = None
    """What was thought before the solution was written."""
    tools: str | None = None
    """What the tool calls of a conversation may use."""
    holder: str | None = None
    """An object that may hold the answer, where no column is the answer."""
    options: str | None = None
    """The answers among which the question lets choose."""

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
        return self.question, self.solution, self.answer, self.holder, self.id, self.rejected, *self.beside

    @property
    def beside(self) -> tuple[str, ...]:
        """The columns that are read with the problem and the solution."""
        return tuple(name for name in (self.context, self.options, self.system, self.reasoning, self.tools) if name)

    @property
    def is_conversation(self) -> bool:
        """Whether one column holds the whole conversation."""
        return self.question == self.solution and not self.is_text

    @property
    def is_text(self) -> bool:
        """Whether one column holds a whole text without question and answer."""
        return self.question == self.solution and canonical(self.question) == TEXT

    def __str__(self) -> str:
        beside = "".join(f" + {name}" for name in self.beside)
        if self.is_text:
            return f"{self.question}, learned whole: there is no question and answer"
        if self.is_conversation or self.solution is None:
            return self.question + beside
        return f"{self.question}{beside} -> {self.solution}{f', not {self.rejected}' if self.rejected else ''}"


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
        question = first_of(QUESTIONS, available)
        solution = first_of(SOLUTIONS, available, question) if question else None
        if solution is None:
            texts = (TEXT,) if question is None and solution_required else ()
            if whole := first_of((*CONVERSATIONS, *texts), available):
                question = solution = whole
    if question is None:
        question = first_of(QUESTIONS, available, solution)
    elif solution is None:
        is_whole = canonical(question) in CONVERSATIONS or (canonical(question) == TEXT and solution_required)
        solution = question if is_whole else first_of(SOLUTIONS, available, question)
    if question is None or (solution is None and solution_required):
        missing = "problem" if question is None else "solution"
        if first_of(CHOSEN, available) and first_of(REJECTED, available):
            raise InputError(f"{where}: pairs of completions ({', '.join(available)}) are for `mlxmath dpo`.")
        raise InputError(
            f"{where}: no column for the {missing} among {', '.join(available) or 'none'}; "
            f"name it with --{'question' if question is None else 'solution'}-column."
        )
    if not solution_required and solution not in (None, *asked.values()) and not _may_be_worked(question, solution):
        solution = None
    context = None if question == solution else first_of(CONTEXTS, available, question, solution)
    options = None if question == solution else first_of(OPTIONS, available, question, solution)
    taken = (question, solution, context)
    answer = answer or first_of((*ANSWERS, *(CHOSEN_OPTIONS if options else ())), available, *taken)
    return Columns(
        question,
        solution,
        answer=answer,
        holder=None if answer else first_of(HOLDERS, available, *taken),
        id=first_of(IDS, available, question),
        difficulty=first_of(DIFFICULTIES, available, *taken),
        subject=first_of(SUBJECTS, available, *taken),
        source=first_of(SOURCES, available, *taken),
        context=context,
        system=first_of(SYSTEMS, available, *taken),
        reasoning=first_of(REASONINGS, available, *taken) if solution and canonical(solution) in WORKED else None,
        tools=first_of((TOOLS,), available, *taken),
        options=options,
    )


def _may_be_worked(question: str, solution: str | None) -> bool:
    """Whether a solution column may hold more than a bare answer: GSM8K calls its worked solutions so."""
    return solution is not None and (
        canonical(solution) not in ANSWERS or canonical(question) in ("question", "problem")
    )


def make_problem(row: Mapping[str, Any], columns: Columns, index: int, *, solution_required: bool = True) -> Problem:
    """The `Problem` of one row.

    Calculator marks (`<<48/2=24>>`) are removed from a solution that ends in `#### x`. Where no column tells the
    answer, it is the one that the solution marks with `####` or `\\boxed{}` (`mlxmath.data.gold` reads words too).

    Raises:
        SkippedRowError: the problem or the solution is empty or is not text.
    """
    question, solution, messages = _parts(row, columns, solution_required)
    if not question.strip():
        raise SkippedRowError("empty problem")
    ends_in_call = bool(messages) and bool(messages[-1].calls)
    if not solution.strip() and solution_required and not columns.is_text and not ends_in_call:
        raise SkippedRowError("empty solution")
    answer = answer_among(row, columns.answer, columns.holder, columns.options)
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
        tools=tools_of(row.get(columns.tools)) if columns.tools and messages else "",
        is_text=columns.is_text,
        difficulty=_plain(row, columns.difficulty),
        subject=_plain(row, columns.subject),
        source=_plain(row, columns.source),
    )


def _parts(row: Mapping[str, Any], columns: Columns, solution_required: bool) -> tuple[str, str, tuple[Message, ...]]:
    """A row's question and solution, and the conversation that they are of, if it is more than these two."""
    system = (text_of(row.get(columns.system), "system message") or "") if columns.system else ""
    asked = row.get(columns.question)
    solved = None if columns.solution is None else row.get(columns.solution)
    if columns.is_text:
        return text_of(asked, "text") or "", "", ()
    if columns.is_conversation or are_messages(asked) or are_messages(solved):
        turns = turns_of(asked) if columns.is_conversation else (
            *_turns(asked, "user", "problem"), *_turns(solved, "assistant", "solution"),
        )  # fmt: skip
        if not solution_required:
            if turns and turns[-1].role == "user":  # it is to be answered
                turns = (*turns, Message("assistant", ""))
            if sum(turn.role == "assistant" for turn in turns) > 1:
                raise SkippedRowError("conversation of several turns, not one question")
        turns = conversation(turns, system)
        return question_of(turns), with_reasoning(turns[-1]), turns
    question = text_of(asked, "problem") or ""
    if columns.context and (context := text_of(row.get(columns.context), "context") or "").strip():
        parts = (question, context) if canonical(columns.question) == "instruction" else (context, question)
        question = "\n\n".join(part for part in parts if part.strip())
    if columns.options and question.strip():
        question = with_options(question, row.get(columns.options))
        solved = chosen_of(solved, row.get(columns.options))
    if columns.solution and canonical(columns.solution) in ANSWERS:
        solved = inside(solved)
    solution = text_of(solved, "solution") or ""
    if columns.reasoning and solution.strip():
        thought = text_of(row.get(columns.reasoning), "reasoning") or ""
        solution = with_reasoning(Message("assistant", solution, thought))
    if system.strip() and question.strip():
        return question, solution, (
            Message("system", system), Message("user", question), Message("assistant", solution),
        )  # fmt: skip
    return question, solution, ()


def _turns(value: Any, role: str, what: str) -> tuple[Message, ...]:
    return turns_of(value) if are_messages(value) else (Message(role, text_of(value, what) or ""),)


def number_text(value: float) -> str:
    """A number as people write it: 145 for 145.0, no exponent."""
    return str(int(value)) if float(value).is_integer() else repr(value)


def _plain(row: Mapping[str, Any], column: str | None) -> str | None:
    value = None if column is None else row.get(column)
    return str(value) if isinstance(value, str | int | float) and value != "" else None
