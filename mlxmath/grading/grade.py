"""Grades a response against a gold answer."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from mlxmath.grading import workers
from mlxmath.grading.equal import compare, for_algebra
from mlxmath.grading.extract import Rule, after_thinking, extract, reference


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
    verdict, question = _decide(response, gold, truncated)
    return _settle(verdict, question)


def grade_many(pairs: Iterable[tuple[str, str]], *, truncated: Sequence[bool] | None = None) -> list[Grade]:
    """`grade` of many (response, gold) pairs, with algebra on all worker processes at once."""
    pairs = list(pairs)
    flags = [False] * len(pairs) if truncated is None else truncated
    decided = [_decide(response, gold, flag) for (response, gold), flag in zip(pairs, flags, strict=True)]
    open_at = [i for i, (_, question) in enumerate(decided) if question]
    grades = [verdict for verdict, _ in decided]
    if open_at:
        with ThreadPoolExecutor(workers.pool().size) as threads:
            for i, settled in zip(open_at, threads.map(lambda i: _settle(*decided[i]), open_at), strict=True):
                grades[i] = settled
    return grades


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
    if rest is None:
        return Grade(False, None, None, truncated=True), None
    found = extract(rest)
    if found is None:
        return Grade(False, None, None, truncated), None
    verdict = Grade(False, found.text, found.rule, truncated)
    if truncated:
        return verdict, None
    gold = reference(gold)
    same = compare(found.text, gold)
    if same is None:
        return verdict, for_algebra(found.text, gold)
    return replace(verdict, correct=same), None


def _settle(verdict: Grade, question: tuple[str, str] | None) -> Grade:
    if question is None:
        return verdict
    same = workers.pool().ask(*question)
    return replace(verdict, correct=bool(same), timed_out=same is None)
