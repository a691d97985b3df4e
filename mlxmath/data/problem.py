"""A mathematics problem, whatever dataset it came from, and the values of a row as text."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

from mlxmath.parsing import HALF_A_CHARACTER


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    """"system", "user", "assistant" or "tool"."""
    content: str
    reasoning: str = ""
    """What the assistant thought before it answered."""
    calls: str = ""
    """The assistant's tool calls, as JSON."""
    is_target: bool = True
    """Whether an assistant's answer is learned (a dataset may give it the weight 0)."""


@dataclass(frozen=True)
class Problem:
    """One row of a dataset."""

    id: str
    """The dataset's own identifier, or the row's number (from 0)."""
    question: str
    answer: str | None = None
    """The final answer alone, where the dataset tells it."""
    solution: str | None = None
    """The worked solution: what a model learns to write."""
    marked: str | None = None
    """The same with its calculator marks (`<<48/2=24>>`), where it has some."""
    rejected: str | None = None
    """Of a pair: the completion that is less liked than the solution."""
    is_desirable: bool | None = None
    """Of a completion with a label, which is the solution: what that says. None: it has none."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """The row's other plain values, by their columns' names."""
    messages: tuple[Message, ...] = ()
    """The conversation, for rows that came as one: it ends with an answer."""
    tools: str = ""
    """What the conversation's tool calls may use, as JSON."""
    is_text: bool = False
    """The question is a whole text without an answer, learned as it is."""
    difficulty: str | None = None
    """The dataset's own word for it: "easy", "Level 3", "5"."""
    subject: str | None = None
    """What it is about: "Algebra", "geometry"."""
    source: str | None = None
    """Where the dataset has it from: "olympiads", "gsm8k"."""

    @property
    def asked(self) -> tuple[str, ...]:
        """What is asked, one after the other: the question; in a conversation of several answers all that users say."""
        if sum(turn.role == "assistant" for turn in self.messages) < 2:
            return (self.question,)
        groups = itertools.groupby(self.messages, lambda turn: turn.role)
        return tuple("\n\n".join(turn.content for turn in turns) for role, turns in groups if role == "user")

    @property
    def whole_question(self) -> str:
        """The same as one text: with it, problems are told apart."""
        return "\n\n".join(self.asked)


class SkippedRowError(Exception):
    """A row that cannot be trained on; the message is the reason, the same for all rows of its kind."""


class RefusedRowError(SkippedRowError):
    """A row in its dataset's form that is none of its problems: it is not read in another form either."""


def text_of(value: Any, what: str) -> str | None:
    """Text as it is, a number as text, NaN (an empty cell) as None, a list of one value as that value.

    Raises:
        SkippedRowError: it is anything else, or text with half a character (a lone surrogate), which has no bytes.
    """
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, str):
        if not value.isascii() and HALF_A_CHARACTER.search(value):
            raise SkippedRowError(f"{what} with half a character (a lone surrogate)")
        return value
    if value is None:
        return None
    if isinstance(value, Decimal):
        return None if value.is_nan() else format(value, "f")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return None if value != value else str(value)  # NaN; an int may be too large for math.isnan
    raise SkippedRowError(f"{what} is not text")
