"""Pairs of completions of which one is preferred: rows with `prompt`, `chosen` and `rejected`.

The prompt has any of a problem's usual names, or none where `chosen` and `rejected` are whole conversations. Each of
the three is text, or messages as TRL's conversational datasets have them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mlxmath.data.columns import Columns
from mlxmath.data.conversation import check_order, human_and_assistant, question_of, turns_of, with_reasoning
from mlxmath.data.names import CHOSEN, IDS, QUESTIONS, REJECTED, SYSTEMS, first_of, near
from mlxmath.data.problem import Message, Problem
from mlxmath.data.values import SkippedRowError, text_of
from mlxmath.errors import InputError


def find_pair_columns(available: Sequence[str], question: str | None = None, *, where: str) -> Columns:
    """Decide which column is the prompt of the pairs.

    Args:
        available: the dataset's columns.
        question: the column asked for with `--question-column`.
        where: the dataset's name, for errors.

    Raises:
        InputError: `chosen`, `rejected` or the column asked for is absent.
    """
    chosen, rejected = first_of(CHOSEN, available), first_of(REJECTED, available)
    absent = [names[0] for names, found in ((CHOSEN, chosen), (REJECTED, rejected)) if found is None]
    if absent or chosen is None:
        raise InputError(
            f"{where}: no column {' and no column '.join(map(repr, absent))} among {', '.join(available) or 'none'}; "
            "expected rows with prompt, chosen and rejected."
        )
    if question is not None and question not in available:
        raise InputError(
            f"--question-column: {where} has no column {question!r}, but {', '.join(available)}"
            f"{near(question, available)}"
        )
    return Columns(
        question or first_of(("prompt", *QUESTIONS), available) or chosen,
        chosen,
        id=first_of((*IDS, "prompt_id"), available),
        system=first_of(SYSTEMS, available),
        rejected=rejected,
    )


def make_pair(row: Mapping[str, Any], columns: Columns, index: int) -> Problem:
    """The `Problem` of a row whose solution is the preferred completion; `rejected` is the other one.

    Raises:
        SkippedRowError: a part is empty or is not text, or both completions are the same.
    """
    chosen, before_chosen = _completion(row.get(columns.solution or ""), "chosen")
    rejected, before_rejected = _completion(row.get(columns.rejected or ""), "rejected")
    if chosen.strip() == rejected.strip():
        raise SkippedRowError("chosen and rejected are the same")
    prompt = () if columns.question == columns.solution else _prompt(row.get(columns.question))
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
    identifier = None if columns.id is None else row.get(columns.id)
    return Problem(
        id=str(index if identifier is None else identifier),
        question=question_of(messages),
        solution=chosen,
        rejected=rejected,
        meta={k: v for k, v in row.items() if k not in columns.core and isinstance(v, str | int | float)},
        messages=(*messages, Message("assistant", chosen)) if len(messages) > 1 else (),
    )


def _prompt(value: Any) -> tuple[Message, ...]:
    if isinstance(value, list):
        return turns_of(value)
    return (Message("user", text_of(value, "prompt") or ""),)


def _completion(value: Any, what: str) -> tuple[str, tuple[Message, ...]]:
    """The completion, and the conversation before it if the row gives it with the completion."""
    before: tuple[Message, ...] = ()
    if isinstance(value, str):
        value = human_and_assistant(value) or value
    if isinstance(value, list):
        turns = turns_of(value)
        if not turns or turns[-1].role != "assistant":
            raise SkippedRowError(f"{what} conversation that does not end with an answer")
        *earlier, last = turns
        before, value = tuple(earlier), with_reasoning(last)
    text = text_of(value, f"{what} completion") or ""
    if not text.strip():
        raise SkippedRowError(f"empty {what} completion")
    return text, before
