"""Cohen's kappa against statsmodels, and what ratings of several people show."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from statsmodels.stats.inter_rater import cohens_kappa as reference
from statsmodels.stats.inter_rater import to_table

from mlxmath.studio.agreement import agreement, cohens_kappa
from mlxmath.studio.preferences import between_raters, comparisons, counts, with_grader
from tests.studio.answers import rating


@pytest.mark.parametrize("num_kinds", [2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_kappa_and_its_interval_are_those_of_statsmodels(num_kinds: int, seed: int) -> None:
    draw = random.Random(seed)
    one = [draw.randrange(num_kinds) for _ in range(40)]
    other = [value if draw.random() < 0.6 else draw.randrange(num_kinds) for value in one]
    table, _ = to_table(np.array([one, other]).T, bins=num_kinds)
    expected, found = reference(table), cohens_kappa(one, other)
    assert found is not None
    low, high = max(-1, expected.kappa_low), min(1, expected.kappa_upp)
    assert (found.estimate, found.low, found.high) == pytest.approx((expected.kappa, low, high), abs=1e-9)


def test_kappa_by_hand() -> None:
    found = cohens_kappa(
        *zip(*[("a", "a")] * 20 + [("a", "b")] * 5 + [("b", "a")] * 10 + [("b", "b")] * 15, strict=True)
    )
    assert found is not None and found.estimate == pytest.approx(0.4)
    assert cohens_kappa(["a", "b"], ["b", "a"]).estimate == -1  # type: ignore[union-attr]
    assert cohens_kappa(["a", "a"], ["a", "a"]) is None
    assert agreement(["a", "a"], ["a", "a"]).share.estimate == 1
    with pytest.raises(ValueError, match="at least one"):
        agreement([], [])


def test_a_problem_counts_once_for_whom_more_of_its_ratings_are() -> None:
    given = [
        rating(0, "left"), rating(0, "left", rater="b"), rating(0, "right", rater="c"),  # base
        rating(1, "right"), rating(1, "left", rater="b"),  # nobody
        rating(2, "both bad"), rating(3, "same"), rating(4, "right"), rating(5, "right"),
    ]  # fmt: skip
    (found,) = comparisons(given)
    assert (found.one, found.other, found.wins, found.ties, found.losses) == ("base", "tuned", 1, 3, 2)
    assert found.share is not None and found.share.estimate == pytest.approx(1 / 3) and found.preferred is None
    swapped = [rating(number, "right", is_swapped=True) for number in range(12)]
    (found,) = comparisons(swapped)
    assert (found.wins, found.losses, found.preferred, found.num_more) == (12, 0, "base", 0)
    assert found.difference.low > 0


def test_models_of_one_name_that_differ_are_told_apart_and_two_answers_of_one_are_no_comparison() -> None:
    assert comparisons([replace(rating(0, "left"), right_label="base", right_fingerprint="f-base")]) == []
    (found,) = comparisons([replace(rating(0, "left"), right_label="base", right_fingerprint="other")])
    assert found.fingerprints == ("f-base", "other") and found.wins == 1


def test_raters_are_compared_whatever_the_order_was() -> None:
    verdicts = list(itertools.product(("left", "right", "same", "both bad"), repeat=2))
    opposite = {"left": "right", "right": "left"}
    given = []
    for number, (one, other) in enumerate(verdicts * 2):
        given += [rating(number, one, rater="Ann"),
                  rating(number, opposite.get(other, other), rater="Bob", is_swapped=True)]  # fmt: skip
    found = between_raters(given)["Ann", "Bob"]
    table, _ = to_table(
        np.array([[("left", "right", "same", "both bad").index(v) for v in pair] for pair in verdicts * 2])
    )
    assert found.kappa is not None and found.kappa.estimate == pytest.approx(reference(table).kappa)
    assert found.num_both == 32 and found.share.estimate == 0.25
    several = [
        replace(one, **{f"{side}_sample": int(one.pair[4:]) // 4 for side in ("left", "right")}) for one in given
    ]  # of the same verdicts about several samples of each, no other agreement
    assert between_raters(several)["Ann", "Bob"] == found
    of_one = [
        replace(one, left_label="base", right_label="base", left_fingerprint="f", right_fingerprint="f",
                **{f"{side}_sample": int(one.pair[4:]) + ("tuned" in getattr(one, f"{side}_label"))
                   for side in ("left", "right")})
        for one in given
    ]  # fmt: skip
    assert between_raters(of_one)["Ann", "Bob"] == found
    assert between_raters([rating(0, "left", rater="Ann"), rating(1, "left", rater="Bob")]) == {}
    assert [(one.rater, one.total, one.better, one.same, one.both_bad) for one in counts(given)] == [
        ("Ann", 32, 16, 8, 8), ("Bob", 32, 16, 8, 8)
    ]  # fmt: skip


def test_the_grader_counts_where_it_calls_exactly_one_right() -> None:
    given = [
        rating(0, "left", right=(True, False)), rating(1, "left", right=(False, True)),
        rating(2, "right", right=(False, True)), rating(3, "same", right=(True, False)),
        rating(4, "left", right=(True, True)), rating(5, "left", right=(False, False)),
        rating(6, "left", right=(None, True)),
    ]  # fmt: skip
    (found,) = with_grader(given)
    assert found.num_pairs == 4 and found.decided is not None and found.decided.num_both == 3
    assert found.decided.share.estimate == pytest.approx(2 / 3)
