"""Rows into `Problem`s: questions with solutions, options, conversations, pairs; each row for what it is."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlxmath.data.columns import ANSWERS, WORKED, Columns, canonical, find_columns, find_pair_columns
from mlxmath.data.conversation import (
    are_messages,
    check_order,
    conversation,
    human_and_assistant,
    question_of,
    tools_of,
    turns_of,
    with_reasoning,
)
from mlxmath.data.gold import answer_among, answer_of, chosen_of, inside, is_marked, stated, with_options
from mlxmath.data.problem import Message, Problem, SkippedRowError, text_of
from mlxmath.errors import InputError

BARE_ANSWER = "a bare answer, where other rows have a worked solution"
_ANSWER_MARK = "####"
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")


def make_problem(
    row: Mapping[str, Any], columns: Columns, index: int, *, solution_required: bool = True, keeps_calls: bool = False
) -> Problem:
    """The `Problem` of one row.

    Calculator marks (`<<48/2=24>>`) are removed from a solution that ends in `#### x`, unless `keeps_calls`. Where no
    column tells the answer, it is the one that the solution marks with `####` or `\\boxed{}` (`mlxmath.data.gold` reads
    words too).

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
    marked, solution = solution, solution if keeps_calls else without_marks(solution)
    if answer is None and is_marked(solution):
        answer = stated(solution)
    return Problem(
        **_beside(row, columns, index),
        question=question,
        answer=answer,
        solution=solution if solution.strip() else None,
        marked=marked if marked != solution else None,
        messages=messages,
        tools=tools_of(row.get(columns.tools)) if columns.tools and messages else "",
        is_text=columns.is_text,
        difficulty=_plain(row, columns.difficulty),
        subject=_plain(row, columns.subject),
        source=_plain(row, columns.source),
    )


def without_marks(solution: str) -> str:
    """A solution without its calculator marks, if it ends in `#### x`."""
    return _CALCULATOR.sub("", solution) if _ANSWER_MARK in solution else solution


def make_pair(row: Mapping[str, Any], columns: Columns, index: int) -> Problem:
    """The `Problem` of a row whose solution is the preferred completion, with `rejected`, or a completion with a label.

    Prompt and completions are each text, or messages as TRL's conversational datasets have them, also as JSON (in a
    cell of CSV); both completions may also be whole conversations.

    Raises:
        SkippedRowError: a part is empty or is not text, both completions are the same, or the label is none.
    """
    rejected, is_desirable = None, None
    if columns.label:
        chosen, before_chosen = _completion(row.get(columns.solution or ""), "labelled")
        before_rejected, is_desirable = before_chosen, _label(row.get(columns.label))
    else:
        chosen, before_chosen = _completion(row.get(columns.solution or ""), "chosen")
        rejected, before_rejected = _completion(row.get(columns.rejected or ""), "rejected")
        if chosen.strip() == rejected.strip():
            raise SkippedRowError("chosen and rejected are the same")
    prompt: tuple[Message, ...] = ()
    if columns.question != columns.solution:
        asked = row.get(columns.question)
        is_list = isinstance(asked, list) or are_messages(asked)
        prompt = turns_of(asked) if is_list else (Message("user", text_of(asked, "prompt") or ""),)
    messages = before_chosen or prompt
    if (before_rejected or prompt) != messages:
        raise SkippedRowError("chosen and rejected answer different conversations")
    if not any(turn.role == "user" for turn in messages) or not messages[-1].content.strip():
        raise SkippedRowError("empty prompt")
    system = text_of(row.get(columns.system), "system message") if columns.system else None
    if system and messages[0].role != "system":
        messages = (Message("system", system), *messages)
    if messages[-1].role not in ("user", "tool"):
        raise SkippedRowError("prompt that ends with an answer")
    check_order(messages)
    return Problem(
        **_beside(row, columns, index),
        question=question_of(messages),
        solution=chosen,
        rejected=rejected,
        is_desirable=is_desirable,
        messages=(*messages, Message("assistant", chosen)) if len(messages) > 1 else (),
    )


def number_text(value: float) -> str:
    """A number as people write it: 145 for 145.0, no exponent."""
    return str(int(value)) if isinstance(value, int) or value.is_integer() else repr(value)


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


def _completion(value: Any, what: str) -> tuple[str, tuple[Message, ...]]:
    """The completion, and the conversation before it if the row gives it with the completion."""
    before: tuple[Message, ...] = ()
    if isinstance(value, str):
        value = human_and_assistant(value) or value
    if isinstance(value, list) or are_messages(value):
        turns = turns_of(value)
        if not turns or turns[-1].role != "assistant":
            raise SkippedRowError(f"{what} conversation that does not end with an answer")
        before, value = turns[:-1], with_reasoning(turns[-1])
    text = text_of(value, f"{what} completion") or ""
    if not text.strip():
        raise SkippedRowError(f"empty {what} completion")
    return text, before


def _label(value: Any) -> bool:
    """Whether a completion is desirable: true or false, also as 1 or 0 and as text."""
    found = {"true": True, "1": True, "false": False, "0": False}.get(str(value).strip().lower())
    if found is None:
        raise SkippedRowError("label that is neither true nor false")
    return found


def _beside(row: Mapping[str, Any], columns: Columns, index: int) -> dict[str, Any]:
    """A row's identifier and the plain values that are not the problem itself."""
    identifier = None if columns.id is None else row.get(columns.id)
    meta = {k: v for k, v in row.items() if k not in columns.core and isinstance(v, str | int | float)}
    return {"id": str(index if identifier is None else identifier), "meta": meta}


def _plain(row: Mapping[str, Any], column: str | None) -> str | None:
    value = None if column is None else row.get(column)
    return str(value) if isinstance(value, str | int | float) and value != "" else None


@dataclass
class Forms:
    """The columns of rows that are not in a dataset's form but in another known one."""

    main: Columns
    """The dataset's."""
    where: str
    """The dataset's name."""
    solutions_required: bool
    _found: dict[tuple[str, ...], Columns | None] = field(default_factory=dict)

    def of(self, row: Mapping[str, Any]) -> Columns | None:
        """The columns of a row that is not in the dataset's form; None if it is in no other known one.

        Columns without a value do not count.

        Raises:
            SkippedRowError: it has an answer where the other rows have a worked solution.
        """
        found = self._own(row)
        if found is None or found.main == self.main.main:
            return None
        if _is_worked(self.main) and not _is_worked(found) and found.solution is not None:
            value = row[found.solution]
            if isinstance(value, int | float) or (isinstance(value, str) and answer_of(value) == value):
                raise SkippedRowError(BARE_ANSWER)
        return found

    def with_answer(self, row: Mapping[str, Any]) -> Columns | None:
        """The columns of a row in the dataset's form that has its answer in another column; None if it has not."""
        found = self._own(row)
        is_other = found is not None and found.main == self.main.main and found.answer not in (None, self.main.answer)
        return found if is_other else None

    def named(self, forms: Sequence[Sequence[str]]) -> set[str]:
        """The columns that are read of rows with these columns, where they lack the dataset's."""
        others = [self._find(tuple(names)) for names in forms if not set(self.main.main) <= set(names)]
        return {name for columns in others if columns for name in columns.used}

    def _own(self, row: Mapping[str, Any]) -> Columns | None:
        return self._find(tuple(name for name, value in row.items() if not _is_empty(value)))

    def _find(self, names: tuple[str, ...]) -> Columns | None:
        """The columns that are found among `names`, if they are a known form."""
        if names not in self._found:
            try:
                if self.main.rejected or self.main.label:
                    found = find_pair_columns(names, where=self.where)
                    self._found[names] = found if bool(found.label) == bool(self.main.label) else None
                else:
                    self._found[names] = find_columns(
                        names, where=self.where, solution_required=self.solutions_required
                    )
            except InputError:
                self._found[names] = None
        return self._found[names]


def _is_worked(columns: Columns) -> bool:
    return columns.solution is not None and canonical(columns.solution) in WORKED


def _is_empty(value: Any) -> bool:
    """Whether a cell has no value: null, NaN, an empty text or list."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value == [] or value == {} or (isinstance(value, float) and math.isnan(value))
