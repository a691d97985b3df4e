"""Which solutions are kept: the grader's verdict first, then faithfulness, doubt and length."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlxmath.config.answering import DistillationConfig
from mlxmath.grading import doubt, faithfulness, grade_many
from mlxmath.grading.extract import after_thinking

NOT_ANSWERED, NOT_BEST, REPEATED = "not answered", "not the best of its problem", "repeated"
WRONG = "wrong answer"
FILTER = {
    "keep", "thinking", "min_validity", "min_provenance", "min_liveness", "require_support", "allow_doubt",
    "min_characters", "max_characters",
}  # fmt: skip
"""The settings that count here."""
_CUT = ("length", "max_tokens")
_BROKEN_OFF = ("content_filter", "tool_calls", "function_call", "error", "abort")


@dataclass(frozen=True)
class Candidate:
    """A solution to be judged."""

    key: str
    """Of the problem: those of one problem compete."""
    id: str
    sample: int
    problem: str
    gold: str
    text: str
    finish_reason: str = "stop"
    completion_tokens: int | None = None


@dataclass(frozen=True)
class Judged:
    """A candidate, its measures, and why it is rejected (None: it is accepted)."""

    candidate: Candidate
    solution: str
    """What would be trained on."""
    correct: bool
    extracted: str | None
    validity: float | None
    provenance: float | None
    support: bool | None
    liveness: float | None
    doubt: tuple[str, ...]
    reason: str | None
    detail: str | None = None

    @property
    def faithfulness(self) -> float:
        """Mean of the four measures; one that the solution gives no occasion for counts 0, so shown work wins."""
        return sum(float(m) for m in (self.validity, self.provenance, self.support, self.liveness) if m is not None) / 4

    @property
    def rank(self) -> tuple[bool, bool, float, int, int]:
        """The least one is the best: accepted, right, faithful, short, early."""
        return (
            self.reason is not None,
            not self.correct,
            -self.faithfulness,
            len(self.solution),
            self.candidate.sample,
        )

    def row(self) -> dict[str, Any]:
        """A line of the dataset: problem, solution and answer are what `train` reads."""
        found = self.candidate
        return {
            "id": found.id, "sample": found.sample, "problem": found.problem, "solution": self.solution,
            "answer": found.gold, "correct": self.correct, "extracted": self.extracted,
            "faithfulness": round(self.faithfulness, 4), "validity": self.validity, "provenance": self.provenance,
            "support": self.support, "liveness": self.liveness, "doubt": list(self.doubt),
            "finish_reason": found.finish_reason, "completion_tokens": found.completion_tokens,
        }  # fmt: skip

    def rejected(self, reason: str) -> "Judged":
        """The same, rejected for `reason`."""
        return Judged(**{**self.__dict__, "reason": reason})


def judge(candidates: Sequence[Candidate], settings: DistillationConfig) -> list[Judged]:
    """Judge each candidate by itself."""
    cut = [candidate.finish_reason in _CUT for candidate in candidates]
    grades = grade_many(((c.text, c.gold) for c in candidates), truncated=cut)
    judged = []
    for candidate, grade in zip(candidates, grades, strict=True):
        stated = after_thinking(candidate.text)
        rationale = candidate.text if stated is None else stated
        found = faithfulness(rationale, candidate.problem, grade.extracted)
        if not found.equations and rationale is not candidate.text:  # all of the work is in the thinking
            found = faithfulness(candidate.text, candidate.problem, grade.extracted)
        drop = settings.thinking == "drop" and stated is not None
        judged.append(
            _decide(
                Judged(
                    candidate,
                    (rationale if drop else candidate.text).strip(),
                    grade.correct,
                    grade.extracted,
                    _rounded(found.validity),
                    _rounded(found.provenance),
                    found.support,
                    _rounded(found.liveness),
                    doubt(candidate.text).reasons,
                    None,
                ),
                settings,
                truncated=grade.truncated,
                timed_out=grade.timed_out,
            )
        )
    return judged


def choose(judged: Sequence[Judged], keep: str) -> list[Judged]:
    """Of the accepted ones of each problem keep the best, or all that differ; order stays."""
    groups: dict[str, list[Judged]] = defaultdict(list)
    for one in judged:
        if one.reason is None:
            groups[one.candidate.key].append(one)
    out: dict[int, str] = {}
    for group in groups.values():
        group.sort(key=lambda one: one.rank)
        seen: set[str] = set()
        for place, one in enumerate(group):
            if keep == "best" and place:
                out[id(one)] = NOT_BEST
            elif one.solution in seen:
                out[id(one)] = REPEATED
            seen.add(one.solution)
    return [one.rejected(out[id(one)]) if id(one) in out else one for one in judged]


def pair(judged: Sequence[Judged]) -> tuple[Judged, Judged] | None:
    """Of one problem's solutions the best that is kept, and the wrong one that is nearest to it in length.

    None if all are right or none is kept. (Were the wrong ones mostly longer, length would be what is learned.)
    """
    kept = min((one for one in judged if one.reason is None), key=lambda one: one.rank, default=None)
    wrong = [one for one in judged if one.reason == WRONG]
    if kept is None or not wrong:
        return None
    return kept, min(wrong, key=lambda one: (abs(len(one.solution) - len(kept.solution)), one.candidate.sample))


def pair_row(chosen: Judged, rejected: Judged) -> dict[str, Any]:
    """A line of a dataset of pairs: problem, chosen and rejected are what `dpo` and `reward-model` read."""
    found = chosen.candidate
    return {
        "id": found.id, "problem": found.problem, "chosen": chosen.solution, "rejected": rejected.solution,
        "answer": found.gold, "rejected_answer": rejected.extracted, "chosen_sample": found.sample,
        "rejected_sample": rejected.candidate.sample,
    }  # fmt: skip


def _decide(one: Judged, settings: DistillationConfig, *, truncated: bool, timed_out: bool) -> Judged:
    """The first reason to reject it, from the plainest to the subtlest."""
    length = len(one.solution)
    least = {
        "false equations": ("validity", one.validity, settings.min_validity),
        "numbers from nowhere": ("provenance", one.provenance, settings.min_provenance),
        "answer not computed": ("liveness", one.liveness, settings.min_liveness),
    }
    reasons: list[tuple[bool, str, str | None]] = [
        (not one.candidate.text.strip(), "empty", None),
        (truncated, "truncated", None),
        (one.candidate.finish_reason in _BROKEN_OFF, "broken off", one.candidate.finish_reason),
        (one.extracted is None, "no answer", None),
        (timed_out, "grading timed out", f"{one.extracted} against {one.candidate.gold}"),
        (not one.correct, WRONG, f"{one.extracted} instead of {one.candidate.gold}"),
        (bool(one.doubt) and not settings.allow_doubt, "recursive doubt", ", ".join(one.doubt)),
        *(
            (measure is not None and measure < limit, reason, f"{name} {measure} is below {limit:g}")
            for reason, (name, measure, limit) in least.items()
        ),
        (settings.require_support and not one.support, "answer not supported", None),
        (length < settings.min_characters, "too short", f"{length} characters"),
        (settings.max_characters is not None and length > settings.max_characters, "too long", f"{length} characters"),
    ]
    reason, detail = next(((name, more) for applies, name, more in reasons if applies), (None, None))
    return Judged(**{**one.__dict__, "reason": reason, "detail": detail})


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
