"""Statistics against scipy, statsmodels and the definitions."""

import math
from itertools import combinations

import numpy as np
import pytest

from mlxmath.evaluation.stats import maj_at_k, mcnemar_exact, paired_bootstrap, pass_at_k, vote, wilson_interval

COUNTS = [(0, 10), (1, 10), (5, 10), (10, 10), (37, 200), (1, 1), (0, 1), (655, 1319), (1319, 1319), (499, 500)]


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize(("num_correct", "num_total"), COUNTS)
def test_wilson_equals_scipy_and_statsmodels(num_correct: int, num_total: int, confidence: float) -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    ours = wilson_interval(num_correct, num_total, confidence)
    theirs = scipy_stats.binomtest(num_correct, num_total).proportion_ci(confidence, method="wilson")
    assert ours.estimate == num_correct / num_total
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    others = proportion.proportion_confint(num_correct, num_total, alpha=1 - confidence, method="wilson")
    assert (ours.low, ours.high) == pytest.approx(others, abs=1e-12)


def test_wilson_by_hand() -> None:
    interval = wilson_interval(50, 100)  # z = 1.96: (0.5 + 0.0192) / 1.0384 ± 1.96 sqrt(0.0025 + 0.000096) / 1.0384
    assert (interval.low, interval.high) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    for correct, total in ((1, 0), (5, 4), (-1, 3)):
        with pytest.raises(ValueError, match="a proportion needs"):
            wilson_interval(correct, total)


@pytest.mark.parametrize(
    ("fixed", "broken", "same"), [(0, 0, 5), (1, 0, 0), (5, 1, 10), (12, 12, 3), (40, 17, 100), (3, 90, 0)]
)
def test_mcnemar_equals_scipy_and_statsmodels(fixed: int, broken: int, same: int) -> None:
    before = [False] * fixed + [True] * broken + [True, False] * same
    after = [True] * fixed + [False] * broken + [True, False] * same
    ours = mcnemar_exact(before, after)
    assert (ours.num_fixed, ours.num_broken) == (fixed, broken)
    if fixed + broken:
        scipy_stats = pytest.importorskip("scipy.stats")
        assert ours.p_value == pytest.approx(scipy_stats.binomtest(fixed, fixed + broken, 0.5).pvalue, abs=1e-12)
        tables = pytest.importorskip("statsmodels.stats.contingency_tables")
        theirs = tables.mcnemar([[same, broken], [fixed, same]], exact=True)
        assert ours.p_value == pytest.approx(theirs.pvalue, abs=1e-12)
    else:
        assert ours.p_value == 1


def test_bootstrap_equals_scipy_within_monte_carlo_error() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(5)
    before = rng.random(400) < 0.4
    after = np.where(rng.random(400) < 0.8, before, rng.random(400) < 0.7)
    ours = paired_bootstrap(before.tolist(), after.tolist(), num_samples=20_000, seed=1)
    theirs = scipy_stats.bootstrap(
        (after.astype(float) - before.astype(float),), np.mean, method="percentile", n_resamples=20_000, rng=rng
    ).confidence_interval
    assert ours.estimate == pytest.approx(after.mean() - before.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.004)
    assert ours.low < ours.estimate < ours.high


def test_bootstrap_is_seeded_and_paired() -> None:
    before, after = [0.25, 0.5, 1.0, 0.0], [0.5, 0.5, 1.0, 0.75]
    assert paired_bootstrap(before, after, seed=3) == paired_bootstrap(before, after, seed=3)
    everywhere_better = paired_bootstrap([0, 1, 0, 1], [0.5, 1.5, 0.5, 1.5])
    assert (everywhere_better.low, everywhere_better.high) == (0.5, 0.5)
    for first, second in (([], []), ([1], [1, 0])):
        with pytest.raises(ValueError, match="paired scores"):
            paired_bootstrap(first, second)


def test_pass_at_k_is_the_definition() -> None:
    for num_samples in range(1, 9):
        for num_correct in range(num_samples + 1):
            samples = [i < num_correct for i in range(num_samples)]
            for k in range(1, num_samples + 1):
                subsets = list(combinations(samples, k))
                expected = sum(map(any, subsets)) / len(subsets)
                assert pass_at_k(num_samples, num_correct, k) == pytest.approx(expected, abs=1e-12)
    assert pass_at_k(1000, 10, 100) == pytest.approx(
        1 - math.prod((900 - i) / (1000 - i) for i in range(10)), abs=1e-12
    )
    for n, c, k in ((4, 5, 1), (4, 1, 5), (4, 1, 0)):
        with pytest.raises(ValueError, match="pass@"):
            pass_at_k(n, c, k)


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
    with pytest.raises(ValueError, match="maj@"):
        maj_at_k(answers, correct, 5)


def test_maj_at_k_sampled_is_near_the_exact_value() -> None:
    answers = ["7"] * 9 + ["8"] * 7 + ["9"] * 4
    correct = [answer == "7" for answer in answers]
    exact = maj_at_k(answers, correct, 5, num_draws=20_000)
    sampled = maj_at_k(answers, correct, 5, num_draws=4000, seed=2)
    assert exact != sampled
    assert sampled == pytest.approx(exact, abs=0.03)
