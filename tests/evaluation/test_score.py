"""Figures against hand counts."""

import pytest

from mlxmath.evaluation.score import collect, results
from mlxmath.evaluation.wording import sentence, soundness
from tests.evaluation.make import sample, settings


def run(made: list, *labels: str, **changes: object) -> dict:
    chosen = settings(*labels, **changes)
    return results(collect(made, labels, chosen["samples"]), chosen)


def test_two_models_on_the_same_problems() -> None:
    base = [sample("base", i, "1" if i < 4 else "2") for i in range(10)]  # right: 0 to 3
    tuned = [sample("tuned", i, "2" if i == 0 else "1" if i < 8 else None) for i in range(10)]  # right: 1 to 7
    found = run([*tuned, *base], "base", "tuned")
    assert [one["accuracy"]["value"] for one in found["contestants"].values()] == pytest.approx([0.4, 0.7])
    assert found["contestants"]["tuned"]["categories"] == {
        "right": 7, "wrong": 1, "slip": 0, "none": 2, "truncated": 0, "loop": 0,
    }  # fmt: skip
    (comparison,) = found["comparisons"]
    assert comparison["difference"] == pytest.approx(0.3)
    assert comparison["outcomes"] == {"fixed": 4, "broken": 1, "both right": 3, "both wrong": 2}
    assert (comparison["fixed_ids"], comparison["broken_ids"]) == (["b/4", "b/5", "b/6", "b/7"], ["b/0"])
    assert comparison["p_value"] == pytest.approx(2 * (1 + 5) / 2**5)  # at most 1 of 5 discordant pairs, two-sided
    assert found["contestants"]["base"]["tokens"] == {"mean": 7, "median": 7, "total": 70}
    assert found["contestants"]["base"]["tokens_per_second"] == pytest.approx(14)


def test_each_is_compared_with_the_one_that_it_names() -> None:
    right = {"base": 1, "first": 3, "second": 4}
    made = [sample(label, i, "1" if i < count else "2") for label, count in right.items() for i in range(5)]
    chosen = settings(*right)
    chosen["contestants"][2]["against"] = "first"
    found = results(collect(made, list(right), 1), chosen)["comparisons"]
    assert [(c["base"], c["other"], c["fixed"]) for c in found] == [("base", "first", 2), ("first", "second", 1)]


def test_groups_by_level_subject_and_length() -> None:
    made = [
        sample("base", i, "1" if i < 6 else "2", level=str(i % 2 + 1), subject="algebra", question="word " * (i + 1))
        for i in range(9)
    ]
    found = run(made, "base")["contestants"]["base"]["by"]
    assert set(found) == {"level", "length"}  # one subject and one benchmark divide nothing
    assert {v: (f["right"], f["total"]) for v, f in found["level"].items()} == {"1": (3, 5), "2": (3, 4)}
    assert [(v, f["right"], f["total"]) for v, f in found["length"].items()] == [
        ("short (< 4 words)", 3, 3), ("medium (< 7 words)", 3, 3), ("long (≥ 7 words)", 0, 3),
    ]  # fmt: skip


def test_several_samples_count_by_their_fraction_and_vote() -> None:
    said = {0: ["1", "1.0", "2", "3"], 1: ["2", "2", "1", "1"], 2: [None, "2", None, "2"]}
    made = [
        sample("base", i, a, sample=n, correct=a in ("1", "1.0")) for i, own in said.items() for n, a in enumerate(own)
    ]
    whole = run(made, "base", samples=4, temperature=0.7)
    found, (vote,) = whole["contestants"]["base"], whole["votes"]
    assert found["accuracy"]["value"] == pytest.approx((2 / 4 + 2 / 4 + 0) / 3)
    assert (vote["base"], vote["other"]) == ("base", "base, majority of 4")
    assert vote["difference"] == pytest.approx(1 / 3 - found["accuracy"]["value"])
    assert vote["outcomes"] == {"fixed": 0, "broken": 0, "both right": 1, "both wrong": 2}
    assert found["pass_at"] == pytest.approx({"1": 1 / 3, "2": (5 / 6 + 5 / 6) / 3, "4": 2 / 3})
    # "1" and "1.0" are one answer: it wins problem 0; problem 1 is a tie, which is shared
    assert found["maj_at"]["4"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert found["majority"]["right"] == 1  # of a tie the first answer counts


def test_the_ensemble_weighs_each_voter_by_the_other_problems() -> None:
    labels = ("a", "b", "c")
    made = [sample(label, i, "1" if label == "a" else "9") for label in labels for i in range(4)]
    weighted = run(made, *labels, vote="weighted", voters=list(labels))
    assert weighted["ensemble"]["weights"] == {"a": 1.0, "b": 0.0, "c": 0.0}
    assert weighted["ensemble"]["accuracy"]["value"] == 1.0
    equal = run(made, *labels, vote="equal", voters=list(labels))  # two wrong ones agree
    assert equal["ensemble"]["accuracy"]["value"] == 0.0
    (voted,) = equal["votes"]
    assert (voted["base"], voted["other"], voted["broken"]) == ("a", "ensemble", 4)
    given = run(made, *labels, vote="weighted", voters=list(labels), weights=[3, 1, 1])
    assert given["ensemble"]["accuracy"]["value"] == 1.0


def test_a_problem_that_somebody_has_not_finished_is_left_out_for_all() -> None:
    found = run([sample("base", 0), sample("base", 1), sample("tuned", 1)], "base", "tuned")
    assert found["num_problems"] == 1


def test_how_answers_end() -> None:
    loop = "Wait, 3 + 4 = 7. " * 30
    made = [
        sample("base", 0, "1", response="2 + 2 = 5\n#### 1", gold="3"),
        sample("base", 1, "7", response="3 + 4 = 7\n#### 7", gold="3"),
        sample("base", 2, None, truncated=True, finish_reason="length", response="so far"),
        sample("base", 3, None, truncated=True, finish_reason="length", response=loop),
    ]
    counts = run(made, "base")["contestants"]["base"]["categories"]
    assert counts == {"right": 0, "wrong": 1, "slip": 1, "none": 0, "truncated": 1, "loop": 1}


def test_soundness_tells_of_how_many_answers_it_is() -> None:
    made = [
        sample("base", 0, "2", response="1 + 1 = 2 and 2 + 3 = 5\n#### 2"),
        sample("base", 1, "7", response="It is 7.\n#### 7"),
        sample("base", 2, None, response="hm", finish_reason="length", truncated=True),
    ]
    found = run(made, "base")["contestants"]["base"]
    assert found["measured"] == {"validity": 1, "provenance": 1, "support": 2, "liveness": 1, "doubt": 3}
    assert (found["equations"], found["cut_off"]) == (2, 1)
    assert soundness(found) == ["100.0 % of 1", "75.0 % of 1", "50.0 % of 2", "50.0 % of 1", "0.0 % of 3", "2"]


def test_no_pair_that_differs_is_no_certainty() -> None:
    made = [sample(label, i) for label in ("base", "tuned") for i in range(2)]
    (comparison,) = run(made, "base", "tuned")["comparisons"]
    assert (comparison["difference"], comparison["p_value"]) == (0, 1)
    assert comparison["low"] < -0.6 and comparison["high"] > 0.6
    shares = [sample(label, 0, "1" if n else "2", sample=n) for label in ("base", "tuned") for n in range(2)]
    found = run(shares, "base", "tuned", samples=2, temperature=0.7)
    assert found["comparisons"][0]["high"] > 0.6
    accuracy = found["contestants"]["base"]["accuracy"]
    assert accuracy["low"] < 0.25 and accuracy["high"] > 0.75


@pytest.mark.parametrize(
    ("right", "said"),
    [
        (
            (20, 8),
            "tuned is worse with numbers varied than on the published problems: some of its answers are remembered",
        ),
        ((20, 18), "tuned is not shown to be better on the published problems than with numbers varied"),
        ((8, 20), "tuned is better with numbers varied than on the published problems"),
    ],
)
def test_the_words_on_varied_problems_follow_the_figures(right: tuple[int, int], said: str) -> None:
    """Twenty problems, each asked as published and varied, whose golds differ; the pairs are those of a problem."""
    labels = ("tuned", "tuned, numbers varied")
    made = [
        sample(label, i, gold if i < count else "0", gold, question=f"{label} {i}")
        for label, gold, count in zip(labels, ("7", "9"), right, strict=True)
        for i in range(20)
    ]
    chosen = settings(*labels, perturb="numbers")
    chosen["contestants"][1]["varied"] = "numbers"
    found = results(collect(made, labels, 1), chosen)
    (comparison,) = found["comparisons"]
    assert (comparison["total"], comparison["difference"]) == (20, pytest.approx((right[1] - right[0]) / 20))
    assert comparison["varied"] == "numbers" and sentence(comparison).startswith(said)
