"""Statistics against scipy, statsmodels and the definitions."""

import math
from dataclasses import astuple
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest

from mlxmath.evaluation.stats import (
    adjusted_difference,
    adjusted_mean,
    maj_at_k,
    mcnemar_exact,
    paired_interval,
    pass_at_k,
    vote,
    wilson_interval,
)

COUNTS = [(0, 10), (1, 10), (5, 10), (10, 10), (37, 200), (1, 1), (0, 1), (655, 1319), (1319, 1319), (499, 500)]


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize(("num_correct", "num_total"), COUNTS)
def test_wilson_equals_scipy(num_correct: int, num_total: int, confidence: float) -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    ours = wilson_interval(num_correct, num_total, confidence)
    theirs = scipy_stats.binomtest(num_correct, num_total).proportion_ci(confidence, method="wilson")
    assert astuple(ours) == pytest.approx((num_correct / num_total, *theirs), abs=1e-12)


def test_wilson_by_hand() -> None:
    interval = wilson_interval(50, 100)  # z = 1.96: (0.5 + 0.0192) / 1.0384 ± 1.96 sqrt(0.0025 + 0.000096) / 1.0384
    assert (interval.low, interval.high) == pytest.approx((0.40383, 0.59617), abs=1e-5)


@pytest.mark.parametrize(
    ("function", "arguments", "said"),
    [
        *((wilson_interval, counts, "a proportion needs") for counts in ((1, 0), (5, 4), (-1, 3))),
        *((paired_interval, scores, "paired scores") for scores in (([], []), ([True], [True, False]))),
        (adjusted_difference, ([], []), "paired scores"),
        *((pass_at_k, counts, "pass@") for counts in ((4, 5, 1), (4, 1, 5), (4, 1, 0))),
        (maj_at_k, (["7"] * 4, [True] * 4, 5), "maj@"),
    ],
)
def test_impossible_numbers(function: Any, arguments: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        function(*arguments)


@pytest.mark.parametrize(
    ("fixed", "broken", "same"), [(0, 0, 5), (1, 0, 0), (5, 1, 10), (12, 12, 3), (40, 17, 100), (3, 90, 0)]
)
def test_mcnemar_equals_scipy(fixed: int, broken: int, same: int) -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    theirs = scipy_stats.binomtest(fixed, fixed + broken, 0.5).pvalue if fixed + broken else 1
    ours = mcnemar_exact(*paired(same, fixed, broken, same))
    assert astuple(ours) == (fixed, broken, pytest.approx(theirs, abs=1e-12))


def paired(both: int, only_after: int, only_before: int, neither: int) -> tuple[list[bool], list[bool]]:
    kinds = ((True, True, both), (False, True, only_after), (True, False, only_before), (False, False, neither))
    pairs = [(x, y) for x, y, count in kinds for _ in range(count)]
    return [x for x, _ in pairs], [y for _, y in pairs]


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),  # Newcombe 1998, table II, method 10
        ((14, 5, 0, 22), 0.0115, 0.2265),  # Altman et al. 2000, Statistics with confidence, p. 52
        ((1, 1, 7, 12), -0.507, -0.026),  # Fagerland, Lydersen, Laake 2014
    ],
)
def test_paired_interval_equals_published_ones(counts: tuple[int, ...], low: float, high: float) -> None:
    found = paired_interval(*paired(*counts))
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-4)
    assert found.estimate == pytest.approx((counts[1] - counts[2]) / sum(counts))
    mirrored = paired_interval(*paired(counts[0], counts[2], counts[1], counts[3]))
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


def test_paired_interval_without_a_pair_that_differs_is_as_wide_as_the_problems_are_few() -> None:
    # Two of two twice: φ is 0 and both Wilson intervals reach from 2 / (2 + 1.96²) to 1.
    two = paired_interval(*paired(2, 0, 0, 0))
    assert (two.low, two.high) == pytest.approx((-0.65762, 0.65762), abs=1e-5)
    widths = [paired_interval(*paired(n, 0, 0, n)).high for n in (1, 5, 50, 500)]
    assert widths == sorted(widths, reverse=True) and widths[0] > 0.5 and 0 < widths[-1] < 0.01


@pytest.mark.parametrize("counts", [(5, 3, 1, 4), (30, 9, 4, 20), (0, 0, 3, 0), (60, 20, 20, 60)])
def test_paired_interval_covers(counts: tuple[int, ...]) -> None:
    """Of tables drawn at these rates, some 95 % have the true difference in their interval."""
    total = sum(counts)
    rates = (np.array(counts) + 0.5) / (total + 2)
    drawn = np.random.default_rng(1).multinomial(total, rates, size=400)
    found = [paired_interval(*paired(*table)) for table in drawn.tolist()]
    assert np.mean([interval.low <= rates[1] - rates[2] <= interval.high for interval in found]) > 0.92


def test_adjusted_intervals_equal_agresti_coull_and_bonett_price() -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    for right, total in ((3, 10), (55, 80), (1, 3)):
        ours = adjusted_mean([1.0] * right + [0.0] * (total - right))
        theirs = proportion.proportion_confint(right, total, method="agresti_coull")
        assert (ours.low, ours.high) == pytest.approx(np.clip(theirs, 0, 1), abs=1e-12)
    # Bonett and Price: p12 and p21 with one more each (here z²/4), of n + 2
    before, after = paired(36, 12, 2, 0)
    z, ours = 1.959964, adjusted_difference([float(x) for x in before], [float(x) for x in after])
    n = 50 + z * z / 2
    first, second = (12 + z * z / 4) / n, (2 + z * z / 4) / n
    half = z * math.sqrt((first + second - (first - second) ** 2) / n)
    assert (ours.low, ours.high) == pytest.approx((first - second - half, first - second + half), abs=1e-6)
    assert ours.estimate == pytest.approx(0.2)


def test_adjusted_intervals_of_equal_shares_are_no_points() -> None:
    mean = adjusted_mean([0.5, 0.5])
    assert mean.low < 0.25 and mean.high > 0.75 and mean.estimate == 0.5
    same = adjusted_difference([0.25, 0.5, 0.75], [0.25, 0.5, 0.75])
    assert same.low < -0.3 and same.high > 0.3 and same.estimate == 0
    many = adjusted_difference([0.5] * 1000, [0.75] * 1000)
    assert 0.22 < many.low < 0.25 < many.high < 0.28


def test_pass_at_k_is_the_definition() -> None:
    for n, c, k in (numbers for numbers in product(range(1, 9), range(9), range(1, 9)) if max(numbers) == numbers[0]):
        expected = np.mean([any(chosen) for chosen in combinations([i < c for i in range(n)], k)])
        assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-12)
    assert pass_at_k(1000, 10, 100) == pytest.approx(
        1 - math.prod((900 - i) / (1000 - i) for i in range(10)), abs=1e-12
    )


def test_vote() -> None:
    assert vote(["a", "b", "b", None, None, None]) == "b"
    assert vote(["a", "b"]) == "a"
    assert vote(["a", "b", "b"], [3.0, 1.0, 1.5]) == "a"
    assert vote([None, None]) is None and vote([]) is None


def test_maj_at_k_by_hand() -> None:
    answers, correct = ["7", "7", "8", "9"], [True, True, False, False]
    assert maj_at_k(answers, correct, 1) == pytest.approx(0.5)
    # Pairs: 77 right, 78 79 (twice each) half right, 89 wrong.
    assert maj_at_k(answers, correct, 2) == pytest.approx((1 + 4 * 0.5) / 6)
    assert maj_at_k(answers, correct, 4) == 1
    assert maj_at_k(answers, correct, 4, weights=[1, 1, 3, 1]) == 0
    assert maj_at_k([None, None, "7"], [False, False, True], 1) == pytest.approx(1 / 3)
    assert maj_at_k([None, None, "7"], [False, False, True], 3) == 1


def test_maj_at_k_sampled_is_near_the_exact_value() -> None:
    answers, correct = ["7"] * 9 + ["8"] * 7 + ["9"] * 4, [True] * 9 + [False] * 11
    exact = maj_at_k(answers, correct, 5, num_draws=20_000)
    sampled = maj_at_k(answers, correct, 5, num_draws=4000, seed=2)
    assert exact != sampled == pytest.approx(exact, abs=0.03)
