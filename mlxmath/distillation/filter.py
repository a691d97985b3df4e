"""Which solutions are kept: the grader's verdict first, then faithfulness, doubt and length."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlxmath.config.methods import DistillationConfig
from mlxmath.distillation.responses import Response
from mlxmath.grading import Grade, doubt, faithfulness, grade_many
from mlxmath.grading.extract import after_thinking

NOT_BEST, REPEATED, WRONG = "not the best of its problem", "repeated", "wrong answer"
FILTER = {
    "keep", "thinking", "min_validity", "min_provenance", "min_liveness", "require_support", "allow_doubt",
    "min_characters", "max_characters",
}  # fmt: skip
"""The settings that count here."""
_CUT = ("length", "max_tokens")
_BROKEN_OFF = ("content_filter", "tool_calls", "function_call", "error", "abort")


@dataclass(frozen=True)
class Judged:
    """A response, its measures, and why it is rejected (None: it is accepted)."""

    response: Response
    solution: str
    """What would be trained on."""
    correct: bool
    extracted: str | None
    validity: float | None
    provenance: float | None
    support: bool | None
    liveness: float | None
    doubt: tuple[str, ...]
    reason: str | None = None
    detail: str | None = None

    @property
    def faithfulness(self) -> float:
        """Mean of the four measures; one that the solution gives no occasion for counts 0, so shown work wins."""
        return sum(float(m) for m in (self.validity, self.provenance, self.support, self.liveness) if m is not None) / 4

    @property
    def rank(self) -> tuple[bool, float, int, int]:
        """The least one of the accepted is the best: faithful, short, early."""
        return self.reason is not None, -self.faithfulness, len(self.solution), self.response.sample

    def row(self) -> dict[str, Any]:
        """A line of the dataset: problem, solution and answer are what `train` reads."""
        found = self.response
        row = {
            "id": found.id, "sample": found.sample, "problem": found.problem, "solution": self.solution,
            "answer": found.answer, "correct": self.correct, "extracted": self.extracted,
            "faithfulness": round(self.faithfulness, 4), "validity": self.validity, "provenance": self.provenance,
            "support": self.support, "liveness": self.liveness, "doubt": list(self.doubt),
            "finish_reason": found.finish_reason, "completion_tokens": found.completion_tokens,
        }  # fmt: skip
        return row if self.reason is None else row | {"reason": self.reason, "detail": self.detail}


def judge(responses: Sequence[Response], settings: DistillationConfig) -> list[Judged]:
    """Judge each response by itself."""
    grades = grade_many(
        ((one.response, one.answer) for one in responses), truncated=[one.finish_reason in _CUT for one in responses]
    )
    judged = []
    for response, grade in zip(responses, grades, strict=True):
        text, stated = response.response, after_thinking(response.response)
        rationale = text if stated is None else stated
        found = faithfulness(rationale, response.problem, grade.extracted)
        if not found.equations and rationale is not text:  # all of the work is in the thinking
            found = faithfulness(text, response.problem, grade.extracted)
        one = Judged(
            response, (rationale if settings.thinking == "drop" else text).strip(), grade.correct, grade.extracted,
            _rounded(found.validity), _rounded(found.provenance), found.support, _rounded(found.liveness),
            doubt(text).reasons,
        )  # fmt: skip
        reason, detail = _rejection(one, grade, settings)
        judged.append(replace(one, reason=reason, detail=detail))
    return judged


def _rounded(measure: float | None) -> float | None:
    return None if measure is None else round(measure, 4)


def choose(judged: Sequence[Judged], keep: str) -> list[Judged]:
    """Of the accepted ones of each problem keep the best, or all that differ; order stays."""
    solutions: dict[str, set[str]] = defaultdict(set)
    rejected: dict[int, str] = {}
    for one in sorted(judged, key=lambda one: one.rank):
        seen = solutions[one.response.key]
        if one.reason is None and seen and keep == "best":
            rejected[id(one)] = NOT_BEST
        elif one.reason is None and one.solution in seen:
            rejected[id(one)] = REPEATED
        seen.add(one.solution)
    return [replace(one, reason=rejected.get(id(one), one.reason)) for one in judged]


def pair(judged: Sequence[Judged]) -> dict[str, Any] | None:
    """A line of a dataset of pairs, as `dpo` and `reward-model` read it, out of one problem's solutions.

    The best that is kept, and the wrong one that is nearest to it in length (were the wrong ones mostly longer, length
    would be what is learned). None if all are right or none is kept.
    """
    kept = min((one for one in judged if one.reason is None), key=lambda one: one.rank, default=None)
    wrong = [one for one in judged if one.reason == WRONG]
    if kept is None or not wrong:
        return None
    rejected = min(wrong, key=lambda one: (abs(len(one.solution) - len(kept.solution)), one.response.sample))
    found = kept.response
    return {
        "id": found.id, "problem": found.problem, "chosen": kept.solution, "rejected": rejected.solution,
        "answer": found.answer, "rejected_answer": rejected.extracted, "chosen_sample": found.sample,
        "rejected_sample": rejected.response.sample,
    }  # fmt: skip


def _rejection(one: Judged, grade: Grade, settings: DistillationConfig) -> tuple[str | None, str | None]:
    """The first reason to reject it, from the plainest to the subtlest, and what it was found by."""
    length, found, longest = len(one.solution), one.response, settings.max_characters
    measures = (
        ("false equations", "validity", one.validity, settings.min_validity),
        ("numbers from nowhere", "provenance", one.provenance, settings.min_provenance),
        ("answer not computed", "liveness", one.liveness, settings.min_liveness),
    )
    reasons: list[tuple[bool, str, str | None]] = [
        (not found.response.strip(), "empty", None),
        (grade.truncated, "truncated", None),
        (found.finish_reason in _BROKEN_OFF, "broken off", found.finish_reason),
        (one.extracted is None, "no answer", None),
        (grade.timed_out, "grading timed out", f"{one.extracted} against {found.answer}"),
        (not one.correct, WRONG, f"{one.extracted} instead of {found.answer}"),
        (bool(one.doubt) and not settings.allow_doubt, "recursive doubt", ", ".join(one.doubt)),
        *(
            (measure is not None and measure < least, reason, f"{name} {measure} is below {least:g}")
            for reason, name, measure, least in measures
        ),
        (settings.require_support and not one.support, "answer not supported", None),
        (length < settings.min_characters, "too short", f"{length} characters"),
        (longest is not None and length > longest, "too long", f"{length} characters"),
    ]
    return next(((reason, detail) for applies, reason, detail in reasons if applies), (None, None))
