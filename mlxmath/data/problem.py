"""A mathematics problem, whatever dataset it came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


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
    rejected: str | None = None
    """Of a pair: the completion that is less liked than the solution."""
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
