"""Each reward by hand; weights; the user's own; failures name their function."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlxmath.errors import InputError, MlxmathError
from mlxmath.grading import grade
from mlxmath.training.grpo import rewards
from mlxmath.training.grpo.rewards import REGISTERED, Rewards, Sample, weights_of

QUESTION = "Tom has 3 boxes of 4 apples. How many apples has he?"
RIGHT = "Step 1: 3 * 4 = 12\n#### 12"
WRONG_SUM = "Step 1: 3 * 4 = 13\n#### 12"


def sample(text: str, *, tokens: int = 10, most: int = 100, truncated: bool = False) -> Sample:
    return Sample(QUESTION, "12", text, grade(text, "12", truncated=truncated), tokens, most, truncated)


@pytest.mark.parametrize(
    ("name", "text", "more", "expected"),
    [
        ("correctness", RIGHT, {}, 1), ("correctness", "#### 13", {}, 0), ("correctness", "", {}, 0),
        ("correctness", RIGHT, {"truncated": True}, 0),
        ("format", RIGHT, {}, 1), ("format", "it is 12", {}, 0), ("format", "<think>a " + RIGHT, {}, 0),
        ("format", RIGHT, {"truncated": True}, 0),
        ("tag_count", "<think>a</think> 12", {}, 1), ("tag_count", "a</think> 12", {}, 0.5), ("tag_count", "12", {}, 0),
        ("tag_count", "<think><think>a</think>", {}, 0.5),
        ("reasoning_steps", RIGHT, {}, 1 / 3), ("reasoning_steps", "1. a\n2. b\n3. c\n4. d\n#### 12", {}, 1),
        ("cosine_length", RIGHT, {"tokens": 0}, 1), ("cosine_length", RIGHT, {"tokens": 100}, 0.5),
        ("cosine_length", RIGHT, {"tokens": 50}, 0.75), ("cosine_length", "#### 1", {"tokens": 0}, -1),
        ("cosine_length", "#### 1", {"tokens": 100}, -0.5),
        ("repetition", "a b c d e", {}, 0), ("repetition", "a b c a b c", {}, -1 / 4), ("repetition", "", {}, 0),
        ("soft_overlong", RIGHT, {"tokens": 75}, 0), ("soft_overlong", RIGHT, {"tokens": 100}, -1),
        ("soft_overlong", RIGHT, {"tokens": 80}, -0.2),
        ("faithfulness", RIGHT, {}, 1), ("faithfulness", "#### 13", {}, 0), ("faithfulness", "#### 12", {}, 0),
        ("doubt", RIGHT, {}, 0), ("doubt", "3 * 4 = 12. Wait, no. " * 9, {}, -1),
    ],
)  # fmt: skip
def test_by_hand(name: str, text: str, more: dict[str, Any], expected: float) -> None:
    assert REGISTERED[name](sample(text, **more)) == pytest.approx(expected)


def test_a_false_equation_costs_faithfulness() -> None:
    assert 0 <= REGISTERED["faithfulness"](sample(WRONG_SUM)) < 0.5


def score(weights: dict[str, float], *texts: str) -> rewards.Scores:
    return Rewards(weights)([(QUESTION, "12", {})] * len(texts), [(text, (1,) * 10, False) for text in texts], 100)


def test_weights_and_the_parts() -> None:
    found = score({"correctness": 2.0, "format": 0.5}, RIGHT, "it is 12", "")
    np.testing.assert_allclose(found.by_name["correctness"], [1, 1, 0])
    np.testing.assert_allclose(found.total_R, [2.5, 2, 0])
    assert found.num_timed_out == 0


def test_own_functions_and_what_goes_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text(
        "NUMBER = 3\n"
        "def length(samples):\n    return [len(sample.completion) for sample in samples]\n"
        "def crash(samples):\n    raise KeyError('oops')\n"
        "def few(samples):\n    return [1.0]\n"
        "def words(samples):\n    return ['1.0' for _ in samples]\n"
        "def lists(samples):\n    return [[1.0] for _ in samples]\n"
        "def nothing(samples):\n    return [None for _ in samples]\n"
        "def one(samples):\n    return 1.0\n"
        "def nan(samples):\n    return [float('nan') for _ in samples]\n"
    )
    monkeypatch.chdir(tmp_path)
    np.testing.assert_allclose(score({"my_rewards:length": 1.0}, "ab", "abc").total_R, [2, 3])
    (tmp_path / "broken_rewards.py").write_text("1 / 0\n")
    (tmp_path / "unreadable_rewards.py").write_text("def f(:\n")
    for name, message in (
        ("crash", "KeyError: 'oops'"), ("few", "1 values for 2 completions"), ("nan", "finite"), ("words", "'1.0'"),
        ("lists", r"\[1.0\]"), ("nothing", "None"), ("one", "not iterable"),
    ):  # fmt: skip
        with pytest.raises(MlxmathError, match=f"my_rewards:{name} .*{message}"):
            score({f"my_rewards:{name}": 1.0}, "a", "b")
    for name in (
        "my_rewards:absent",
        "nowhere:f",
        "my_rewards:NUMBER",
        "korrectness",
        "broken_rewards:f",
        "unreadable_rewards:f",
    ):
        with pytest.raises(InputError, match="--reward"):
            Rewards({name: 1.0})


def test_functions_of_one_name_all_count() -> None:
    def at_least(count: int) -> Callable[..., list[float]]:
        return lambda completions: [float(len(text) >= count) for text in completions]

    length = partial(lambda times, samples: [times * len(one.completion) for one in samples], 10)
    weights, functions = weights_of(["correctness", at_least(2), at_least(3), length, at_least(4)])
    own = f"{__name__}:test_functions_of_one_name_all_count.<locals>.at_least.<locals>.<lambda>"
    assert list(weights) == ["correctness", own, f"{own}#2", "functools:partial", f"{own}#3"]
    found = Rewards(weights, functions)([(QUESTION, "12", {})] * 2, [("12", (1,), False), ("abc", (1,), False)], 9)
    np.testing.assert_allclose(found.total_R, [1 + 1 + 20, 1 + 1 + 30])


def test_answers_that_are_not_settled_in_time_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    late = grade("#### 1", "2")
    late = type(late)(False, "x", late.rule, timed_out=True)
    monkeypatch.setattr(rewards, "grade_many", lambda pairs, truncated: [late for _ in pairs])
    found = score({"correctness": 1.0}, "a", "b")
    assert found.num_timed_out == 2 and not found.total_R.any()
