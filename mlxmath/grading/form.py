"""How a response is written: its steps, its length, whether it thinks and states its answer in the expected form."""

import re
from dataclasses import dataclass
from typing import Literal

from mlxmath.grading.extract import Rule, after_thinking, extract

_NUMBERED = re.compile(
    r"^[ \t]{0,20}(?:[-*#>]{1,6}[ \t]{0,3})?(?:\*\*)?(?:step[ \t]{1,3}\d+|\d{1,2}[.)])(?=\s|:|\*)",
    re.IGNORECASE | re.MULTILINE,
)
_FINAL_LINE = re.compile(r"^\s*(?:####|\\boxed|\**(?:final )?answer\b|A:)", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\\$(])")


@dataclass(frozen=True)
class Form:
    """Measures of form; nothing here looks at whether the answer is right."""

    num_steps: int
    """Numbered steps; without numbers, lines before the final answer; in one paragraph, sentences with numbers."""
    num_words: int
    num_characters: int
    rule: Rule | None
    """How the final answer was found."""
    thinking: Literal["none", "closed", "open"]
    """No think tags, one well-formed pair (or its end alone, where the prompt opened it), or anything else."""
    num_words_thinking: int

    @property
    def has_final_answer(self) -> bool:
        """Whether the answer stands after `####`, in a box or on an answer line, not just somewhere in the text."""
        return self.rule in ("####", "boxed", "answer is")

    @property
    def is_step_by_step(self) -> bool:
        """At least two steps before the answer."""
        return self.num_steps >= 2


def form(response: str) -> Form:
    """Measure the form of a response."""
    visible = after_thinking(response)
    thought = response[: response.rfind("</think>")] if "</think>" in response else ""
    found = extract(visible) if visible is not None else None
    return Form(
        num_steps=_num_steps(visible if visible is not None else ""),
        num_words=len(response.split()),
        num_characters=len(response),
        rule=found.rule if found else None,
        thinking=_thinking(response),
        num_words_thinking=len(thought.replace("<think>", " ").split()),
    )


def _num_steps(text: str) -> int:
    if numbered := len(_NUMBERED.findall(text)):
        return numbered
    lines = [line for line in text.split("\n") if line.strip() and not _FINAL_LINE.match(line)]
    if len(lines) != 1:
        return len(lines)
    return max(1, sum(any(sign.isdigit() for sign in sentence) for sentence in _SENTENCE.split(lines[0])))


def _thinking(response: str) -> Literal["none", "closed", "open"]:
    num_opened, num_closed = response.count("<think>"), response.count("</think>")
    if num_opened == num_closed == 0:
        return "none"
    is_closed = num_closed == 1 and num_opened <= 1 and response.find("<think>") < response.find("</think>")
    return "closed" if is_closed else "open"
