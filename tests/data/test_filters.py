"""Conditions on rows."""

import pytest

from mlxmath.data.filters import check_fields, parse_filter
from mlxmath.data.problem import Problem
from mlxmath.errors import InputError

PROBLEM = Problem(
    "0", "abc", "5", "<think>x</think>\n\ny", difficulty="Very Hard", subject="Algebra",
    meta={"input_quality": "Excellent", "correct": True, "level": "Level 3", "score": 0.5, "response": "a </think> b"},
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("difficulty in easy, medium", False),
        ("difficulty in easy, very hard", True),
        ("difficulty not in easy", True),
        ("input_quality = excellent", True),
        ("input_quality != EXCELLENT", False),
        ("response contains </THINK>", True),
        ("response not contains </think>", False),
        (r"response matches </think>\s*\S", True),
        (r"solution matches </think>\s*$", False),
        ("length <= 22", True),
        ("length < 22", False),
        ("length >= 22", True),
        ("length > 22", False),
        ("correct = true", True),
        ("correct = false", False),
        ("level <= 3", True),
        ("level > 3", False),
        ("score = .5", True),
        ("answer = 5.0", True),
        ("subject in 'algebra', \"geometry\"", True),
        ("source = x", False),
        ("source != x", True),
        ("source > 1", False),
        ("source not contains x", True),
    ],
)
def test_conditions(text: str, expected: bool) -> None:
    assert parse_filter(text)(PROBLEM) is expected


@pytest.mark.parametrize("text", ["difficulty", "difficulty easy", "= 3", "", "level ~ 3"])
def test_no_condition(text: str) -> None:
    with pytest.raises(InputError, match="is no condition; write FIELD OPERATOR VALUE"):
        parse_filter(text)


def test_wrong_values() -> None:
    with pytest.raises(InputError, match="compares with 'three', which is not a number"):
        parse_filter("level <= three")
    with pytest.raises(InputError, match=r"'\(' is not a regular expression"):
        parse_filter("solution matches (")


def test_unknown_field_names_the_nearest() -> None:
    with pytest.raises(InputError, match="--filters: x has no field 'dificulty', but .*; did you mean 'difficulty'"):
        check_fields(["dificulty"], ["score"], "x")
    check_fields(["score", "length"], ["score"], "x")
