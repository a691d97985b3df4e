"""Final answers: where they are found and when they are equal."""

import pytest

from mlxmath.grading import grade


@pytest.mark.parametrize(
    ("response", "gold", "correct", "rule"),
    [
        ("She has 3 + 5 = 8 apples.\n#### 8", "8", True, "####"),
        ("First 4, then 48 + 16.\n#### 64", "64", True, "####"),
        ("#### 5,600", "5600", True, "####"),
        ("#### $12.50", "12.5", True, "####"),
        (r"So \boxed{\frac{1}{2}}", r"\frac{1}{2}", True, "boxed"),
        (r"First \boxed{3}, no: \boxed{255.0}", "255", True, "boxed"),
        ("The answer is 42. That took 3 steps.", "42", True, "answer is"),
        ("Answer: 1/2", "0.5", True, "answer is"),
        ("It is 7, or rather 9", "9", True, "last number"),
        ("It is 7, or rather 9", "7", False, "last number"),
        ("#### 8\nNext: 9 + 1", "8", True, "####"),
        ("no digits here", "8", False, None),
        ("", "8", False, None),
        ("#### -3", "3", False, "####"),
        ("1/0", "0", False, "whole"),
    ],
)
def test_grade(response: str, gold: str, correct: bool, rule: str | None) -> None:
    verdict = grade(response, gold)
    assert (verdict.correct, verdict.rule) == (correct, rule)
