"""Grades a response against a gold answer, and measures how it is written."""

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

from mlxmath.grading import workers
from mlxmath.grading.equal import compare, for_algebra
from mlxmath.grading.extract import Rule, after_thinking, extract, reference

_NUMBERED = re.compile(
    r"^[ \t]{0,20}(?:[-*#>]{1,6}[ \t]{0,3})?(?:\*\*)?(?:step[ \t]{1,3}\d+|\d{1,2}[.)])(?=\s|:|\*)",
    re.IGNORECASE | re.MULTILINE,
)
_FINAL_LINE = re.compile(r"^\s*(?:####|\\boxed|\**(?:final )?answer\b|A:)", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\\$(])")


@dataclass(frozen=True)
class Grade:
    """The verdict, the answer that was found and the rule that found it (None: there was no answer)."""

    correct: bool
    extracted: str | None
    rule: Rule | None
    truncated: bool = False
    """The response ended inside its thinking or at the token limit; such a response is wrong."""
    timed_out: bool = False
    """Algebra on the answer took too long or ended its worker process; the answer counts as wrong."""


def grade(response: str, gold: str, *, truncated: bool = False) -> Grade:
    r"""Whether the final answer in `response` equals `gold`.

    `gold` is an answer by itself (`12`, `\frac{1}{2}`) or a text that states one after `####` or in `\boxed{}`.
    `truncated` says that the generation stopped at its token limit. Answers that only algebra can compare go to
    math_verify in a worker process with a time limit.
    """
    return _settle(*_decide(response, gold, truncated))


def grade_many(pairs: Iterable[tuple[str, str]], *, truncated: Sequence[bool] | None = None) -> list[Grade]:
    """`grade` of many (response, gold) pairs, with algebra on all worker processes at once."""
    pairs = list(pairs)
    flags = [False] * len(pairs) if truncated is None else truncated
    decided = [_decide(response, gold, flag) for (response, gold), flag in zip(pairs, flags, strict=True)]
    with ThreadPoolExecutor(workers.pool().size) as threads:
        settled = [threads.submit(_settle, *one) if one[1] else None for one in decided]
        return [waited.result() if waited else verdict for waited, (verdict, _) in zip(settled, decided, strict=True)]


def equal(answer: str, gold: str) -> bool:
    """Whether two final answers are the same."""
    same = compare(answer, gold)
    return bool(workers.pool().ask(*for_algebra(answer, gold))) if same is None else same


def cluster(answers: Sequence[str | None]) -> list[int | None]:
    """For each answer the index of the first one that equals it, for votes; None stays None."""
    firsts: dict[str, int] = {}
    indices: list[int | None] = []
    for i, answer in enumerate(answers):
        same = None if answer is None else next((k for first, k in firsts.items() if equal(answer, first)), i)
        if answer is not None and same == i:
            firsts[answer] = i
        indices.append(same)
    return indices


def _decide(response: str, gold: str, truncated: bool) -> tuple[Grade, tuple[str, str] | None]:
    """The verdict of the exact rules, and the question that they leave open for algebra."""
    rest = after_thinking(response)
    found = None if rest is None else extract(rest)
    if not found or truncated:
        is_cut = truncated or rest is None
        return Grade(False, found.text if found else None, found.rule if found else None, is_cut), None
    gold = reference(gold)
    same = compare(found.text, gold)
    return Grade(bool(same), found.text, found.rule), for_algebra(found.text, gold) if same is None else None


def _settle(verdict: Grade, question: tuple[str, str] | None) -> Grade:
    if question is None:
        return verdict
    same = workers.pool().ask(*question)
    return replace(verdict, correct=bool(same), timed_out=same is None)


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
    visible = after_thinking(response) or ""
    thought = response.rpartition("</think>")[0]
    found = extract(visible)
    return Form(
        num_steps=_num_steps(visible),
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
    tags = re.findall("</?think>", response)
    return "closed" if tags in (["<think>", "</think>"], ["</think>"]) else "open" if tags else "none"
