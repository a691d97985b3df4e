"""Verdicts on hand-written responses: each kind of answer, right and wrong, in prose, in boxes and behind `####`."""

import json
from pathlib import Path

import pytest

from mlxmath.grading import grade, grade_many
from mlxmath.grading.extract import extract

CASES = Path(__file__).parent / "data" / "verdicts.jsonl"


def test_hand_written_verdicts() -> None:
    cases = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]
    grades = grade_many([(case["response"], case["gold"]) for case in cases])
    assert len(cases) > 700
    assert [
        (case, verdict) for case, verdict in zip(cases, grades, strict=True) if verdict.correct != case["correct"]
    ] == []


@pytest.mark.parametrize(
    ("response", "text"),
    [
        ("The answer is 5. Wait, no. The answer is 6.", "6"),
        ("The answer is 5. Actually, it should be 6.", "6"),
        ("The answer is 5. Wait, let me check: 2 + 3 is 5.", "5"),
        ("The answer is not 5 but 6.", "6"),
        ("The answer is 6 instead of 5.", "6"),
        ("Option A is wrong, and B too. The answer is C", "C"),
        ("42 is the answer to all 3 questions.", "42"),
        ("So the answer 12 is correct.", "12"),
        ("The answer is positive.", "positive"),
        ("The answer is minus 7.", "-7"),
        ("The answer is either 5 or 6.", "5 or 6"),
        ("The answer is Ann, because she has 5.", "Ann"),
        ("The roots are 5 and 6.", "5 and 6"),
        ("It arrives at 3:45 PM.", "3:45 PM"),
        ("The ratio is 3:4", "3:4"),
        ("It took 4 steps. <answer>5 apples</answer> from 7 trees", "5 apples"),
        ("The answer is 2 hours 30 minutes, so late.", "2 hours 30 minutes"),
    ],
)
def test_what_prose_states(response: str, text: str) -> None:
    found = extract(response)
    assert found and found.text == text


@pytest.mark.parametrize("response", ["The answer cannot be 5.", "The answer is not 5.", "It isn't 5"])
def test_what_is_denied_is_no_answer(response: str) -> None:
    assert not grade(response, "5").correct


def test_letters_at_the_end_are_variables_to_algebra() -> None:
    assert not grade(r"\boxed{2}", "2ab").correct
    assert not grade(r"\boxed{2ab}", "2").correct
    assert grade(r"\boxed{2ba}", "2ab").correct
    assert grade(r"\boxed{3+4i}", "4i+3").correct
