"""The filter: its verdicts are the grader's, each threshold rejects what it names, the best is the best."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlxmath.config.methods import DistillationConfig
from mlxmath.distillation.filter import NOT_BEST, REPEATED, Judged, choose, judge, pair
from mlxmath.distillation.responses import Response
from mlxmath.grading import doubt, grade

PROBLEM = "Tom has 5 apples and buys 4 more. Then he eats 2. How many apples does he have?"
GOOD = "Tom has 5 + 4 = 9 apples. Then 9 - 2 = 7 are left. The answer is \\boxed{7}."
LOOP = "Wait, let me check. " * 30 + GOOD
SHARED = Path(__file__).parents[3] / "shared" / "data" / "graded_dev.jsonl"


def candidate(text: str, gold: str = "7", sample: int = 0, key: str = "k", reason: str = "stop") -> Response:
    return Response("", key, sample, "1", PROBLEM, gold, text, reason)


def reason(text: str, finish: str = "stop", **settings: Any) -> str | None:
    (one,) = judge([candidate(text, reason=finish)], DistillationConfig(**settings))
    return one.reason


TEXTS = [
    GOOD, LOOP, "", "It is \\boxed{8}.", "#### 7", "I cannot tell.", "<think>5 + 4 = 9, 9 - 2 = 7",
    "<think>maybe 8</think>\nThe answer is \\boxed{7.0}", "The answer is $\\frac{14}{2}$.", "<think>7</think>8",
    "The answer is \\boxed{x^2 - 1}",
]  # fmt: skip


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_the_verdict_is_the_graders(finish: str) -> None:
    for gold in ("7", "8", "(x-1)(x+1)"):
        judged = judge([candidate(text, gold, reason=finish) for text in TEXTS], DistillationConfig())
        expected = [grade(text, gold, truncated=finish == "length") for text in TEXTS]
        assert [(one.correct, one.extracted) for one in judged] == [(g.correct, g.extracted) for g in expected]
        assert all(one.correct for one in judged if one.reason is None)
        assert any(one.correct for one in judged) == (finish == "stop")


def test_the_verdict_is_the_graders_on_real_responses() -> None:
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is not here")
    rows = [json.loads(line) for line in SHARED.read_text().splitlines()[:300]]
    found = [candidate(str(row["response"]), str(row["gold"])) for row in rows]
    judged = judge(found, DistillationConfig())
    assert [one.correct for one in judged] == [grade(one.response, one.answer).correct for one in found]
    assert {one.reason for one in judged if not one.correct} <= {
        "wrong answer", "no answer", "truncated", "empty", "grading timed out",
    }  # fmt: skip
    assert 0 < sum(one.correct for one in judged) < len(judged)


@pytest.mark.parametrize(
    ("text", "expected", "changes", "then"),
    [
        ("", "empty", {}, "empty"),
        ("<think>5 + 4 = 9, then it is", "truncated", {}, "truncated"),
        ("I cannot tell how many there are.", "no answer", {}, "no answer"),
        ("He has 5 + 4 = 9. The answer is \\boxed{9}.", "wrong answer", {}, "wrong answer"),
        (LOOP, "recursive doubt", {"allow_doubt": True}, None),
        ("First 5 + 4 = 10. Then 9 - 2 = 7. So \\boxed{7}.", "false equations", {"min_validity": 0.5}, None),
        ("\\boxed{7}", "too short", {"min_characters": 5}, None),
        ("We know 3 + 4 = 7 at once, so \\boxed{7} it is.", None, {"min_provenance": 1.0}, "numbers from nowhere"),
        ("Aside: 2 * 4 = 8. Then 5 + 2 = 7. So \\boxed{7}.", None, {"min_liveness": 1.0}, "answer not computed"),
        ("It is obvious that he has \\boxed{7} apples.", None, {"require_support": True}, "answer not supported"),
        (GOOD, None, {"max_characters": 30}, "too long"),
        (GOOD, None, {"finish": "length"}, "truncated"),
        (GOOD, None, {"finish": "max_tokens"}, "truncated"),
        (GOOD, None, {"finish": "content_filter"}, "broken off"),
    ],
)
def test_each_rejection_has_its_reason(
    text: str, expected: str | None, changes: dict[str, Any], then: str | None
) -> None:
    assert (reason(text), reason(text, **changes)) == (expected, then)


def test_thinking_may_err_and_the_answer_may_not() -> None:
    """A slip that the thinking corrects is no false equation of the solution; doubt counts in both."""
    text = f"<think>5 + 4 = 10. No, 5 + 4 = 9.</think>\n{GOOD}"
    (kept,) = judge([candidate(text)], DistillationConfig())
    assert kept.reason is None and kept.solution == text and kept.validity == 1.0
    (dropped,) = judge([candidate(text)], DistillationConfig(thinking="drop"))
    assert dropped.solution == GOOD and dropped.validity == 1.0
    assert reason(f"<think>{LOOP}</think>{GOOD}") == "recursive doubt" and doubt(LOOP).flagged
    only_thought = "<think>5 + 4 = 10 and 9 - 2 = 7</think>\nThe answer is \\boxed{7}."
    assert reason(only_thought) == "false equations"


def test_faithfulness_is_the_mean_of_what_was_measured() -> None:
    (one,) = judge([candidate(GOOD)], DistillationConfig())
    assert (one.validity, one.provenance, one.support, one.liveness, one.faithfulness) == (1.0, 1.0, True, 1.0, 1.0)
    (bare,) = judge([candidate("It is obvious that he has \\boxed{7} apples.")], DistillationConfig())
    assert (bare.validity, bare.provenance, bare.support, bare.liveness) == (None, None, False, None)
    assert bare.faithfulness == 0.0


def solved(*texts: str, keep: str = "best", key: str = "k") -> list[Judged]:
    found = [candidate(text, sample=i, key=key) for i, text in enumerate(texts)]
    return choose(judge(found, DistillationConfig()), keep)


def test_the_best_is_the_most_faithful_then_the_shortest() -> None:
    bare, wordy = "It is clear to me: \\boxed{7}.", f"Let us see. {GOOD}"
    wrong = "5 + 4 = 9. So \\boxed{9}."
    found = solved(bare, wordy, GOOD, wrong, GOOD)
    assert [one.reason for one in found] == [NOT_BEST, NOT_BEST, None, "wrong answer", NOT_BEST]
    found = solved(bare, wordy, GOOD, wrong, GOOD, keep="all")
    assert [one.reason for one in found] == [None, None, None, "wrong answer", REPEATED]


def test_problems_do_not_compete_with_each_other() -> None:
    found = judge([candidate(GOOD, key="a"), candidate(GOOD, key="b")], DistillationConfig())
    assert [one.reason for one in choose(found, "best")] == [None, None]


def test_a_pair_is_the_best_and_the_wrong_one_of_about_its_length() -> None:
    def wrong(length: int) -> str:
        return "We guess. " * (length // 10) + "So \\boxed{9}."

    texts = [wrong(20), f"Let us see. {GOOD}", wrong(400), GOOD, wrong(len(GOOD)), "I cannot tell how many there are."]
    found = pair(solved(*texts))
    assert found is not None
    assert (found["chosen"], found["rejected"], found["chosen_sample"], found["rejected_sample"]) == (
        GOOD, texts[4], 3, 4,
    )  # fmt: skip
    assert (found["problem"], found["answer"], found["rejected_answer"]) == (PROBLEM, "7", "9")
    assert pair(solved(GOOD)) is None and pair(solved(wrong(20))) is None and pair([]) is None
