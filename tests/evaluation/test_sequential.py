"""Decisions that hold whenever one looks: against closed forms, by simulation, and the words for them."""

import math
from itertools import accumulate, product

import numpy as np
import pytest
from numpy.typing import NDArray

from mlxmath.evaluation.paired import paired
from mlxmath.evaluation.sequential import (
    ALPHA,
    PRIOR,
    confidence_sequence,
    decide,
    log_capital,
    more_to_decide,
    sequential_p,
)
from mlxmath.evaluation.stats import mcnemar_exact, paired_interval, problems_to_show
from mlxmath.evaluation.wording import more_problems, outlook, points, sentence, verdict

COUNTS = [(0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 50), (7, 3, 40), (30, 6, 200), (6, 30, 200), (90, 80, 1319),
          (1319, 0, 1319), (660, 659, 1319), (0, 300, 9999)]  # fmt: skip


def log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


@pytest.mark.parametrize(("fixed", "broken", "total"), COUNTS)
def test_the_evidence_against_a_fair_coin_is_the_beta_mixture(fixed: int, broken: int, total: int) -> None:
    whole = log_beta(PRIOR + fixed, PRIOR + broken) - log_beta(PRIOR, PRIOR) + (fixed + broken) * math.log(2)
    assert float(log_capital(fixed, broken, total)) == pytest.approx(whole, abs=1e-6)
    assert sequential_p(fixed, broken, total) == pytest.approx(min(1, math.exp(-whole)), rel=1e-5)


@pytest.mark.parametrize("difference", [-0.6, -0.05, 0.0, 0.2, 0.9])
def test_nobody_expects_to_gain_where_the_difference_is_true(difference: float) -> None:
    """Exactly: over all outcomes of six problems, weighted by their probabilities."""
    for unequal in (abs(difference), (1 + abs(difference)) / 2, 1.0):
        chances = {1: (unequal + difference) / 2, -1: (unequal - difference) / 2, 0: 1 - unequal}
        expected = 0.0
        for outcomes in product(chances, repeat=6):
            chance = math.prod(chances[each] for each in outcomes)
            if chance > 0:
                capital = log_capital(outcomes.count(1), outcomes.count(-1), 6, difference)
                expected += chance * math.exp(float(capital))
        assert expected == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("fixed", "broken", "total"), COUNTS)
def test_the_confidence_sequence_is_one_interval_around_the_estimate_and_agrees_with_p(
    fixed: int, broken: int, total: int
) -> None:
    found = confidence_sequence(fixed, broken, total)
    assert found.estimate == (fixed - broken) / total and -1 <= found.low <= found.estimate <= found.high <= 1
    grid = np.linspace(-0.9995, 0.9995, 2000)
    inside = log_capital(fixed, broken, total, grid) < -math.log(ALPHA)
    assert (inside == ((found.low <= grid) & (grid <= found.high))).all()
    assert (sequential_p(fixed, broken, total) <= ALPHA) == (found.low > 0 or found.high < 0)
    fair = paired_interval(*outcomes_of(fixed, broken, total))
    if total > 100 and fixed + broken < total:
        assert found.low < fair.low and fair.high < found.high
    mirrored = confidence_sequence(broken, fixed, total)
    assert (-mirrored.high, -mirrored.low) == pytest.approx((found.low, found.high), abs=1e-7)


def outcomes_of(fixed: int, broken: int, total: int) -> tuple[list[bool], list[bool]]:
    same = total - fixed - broken
    before = [False] * fixed + [True] * broken + [i % 2 == 0 for i in range(same)]
    return before, [True] * fixed + [False] * broken + before[fixed + broken :]


def test_impossible_counts() -> None:
    for function in (confidence_sequence, problems_to_show):
        for counts in ((0, 0, 0), (3, 2, 4)):
            with pytest.raises(ValueError, match="expected problems"):
                function(*counts)


ROUNDS = np.array([*accumulate(range(9), lambda size, _: int(1.5 * size), initial=50)])


def simulated(fixed: float, broken: float, seed: int, num: int = 2000) -> NDArray[np.int64]:
    """What `num` comparisons with these probabilities end with, if 5 points are enough: see `decide`."""
    steps = np.diff(ROUNDS, prepend=0)
    chances = [fixed, broken, 1 - fixed - broken]
    counts = np.cumsum(np.random.default_rng(seed).multinomial(steps, chances, size=(num, len(steps))), axis=1)
    decisions = decide(counts[..., 0], counts[..., 1], ROUNDS, 0.05)
    ended = np.where((decisions != 0).any(1), (decisions != 0).argmax(1), len(ROUNDS) - 1)
    found: NDArray[np.int64] = decisions[np.arange(num), ended]
    return found


def test_errors_are_rarer_than_one_in_twenty() -> None:
    for seed, unequal in enumerate((0.06, 0.3)):
        assert (np.abs(simulated(unequal / 2, unequal / 2, seed)) == 1).mean() <= ALPHA
        # a difference of exactly 5 points is not called smaller, nor the better model the worse one
        ended = simulated((unequal + 0.05) / 2, max(0, unequal - 0.05) / 2, seed)
        assert (ended == 2).mean() <= ALPHA and (ended == -1).mean() <= ALPHA / 2


def test_differences_are_found() -> None:
    assert (simulated(0.2, 0.1, 0) == 1).mean() > 0.95 and (simulated(0.1, 0.2, 1) == -1).mean() > 0.95
    assert (simulated(0.03, 0.03, 2) == 2).mean() > 0.95


@pytest.mark.parametrize(("fixed", "broken"), [(0.15, 0.05), (0.2, 0.1), (0.3, 0.2), (0.05, 0.01), (0.5, 0.0)])
def test_as_many_problems_as_are_promised_show_the_difference(fixed: float, broken: float) -> None:
    binom = pytest.importorskip("scipy.stats").binom
    num = math.ceil(problems_to_show(round(1e6 * fixed), round(1e6 * broken), 1_000_000))

    def power(size: int) -> float:
        right, wrong, _ = np.random.default_rng(1).multinomial(size, [fixed, broken, 1 - fixed - broken], 2000).T
        p = 2 * binom.cdf(np.minimum(right, wrong), right + wrong, 0.5)
        return float((p < 0.05).mean())

    assert power(num) > 0.78 and power(num // 2) < 0.7


def test_no_difference_needs_endlessly_many_problems() -> None:
    assert problems_to_show(5, 5, 100) == problems_to_show(0, 0, 1) == math.inf


CASES = {
    # fixed, broken, total: what is shown, by exact McNemar and at any time
    (30, 6, 200): ("better", "better"),
    (6, 30, 200): ("worse", "worse"),
    (20, 8, 100): ("better", None),
    (10, 8, 100): (None, None),
    (4, 4, 60): (None, None),
    (0, 0, 60): (None, None),
    (0, 0, 900): (None, "equal"),
    (8, 7, 1300): (None, "equal"),
    (1, 0, 1): (None, None),
    (0, 0, 1): (None, None),
    (40, 0, 40): ("better", "better"),
}


@pytest.mark.parametrize(("counts", "expected"), CASES.items(), ids=lambda value: "-".join(map(str, value)))
def test_words_follow_the_figures(counts: tuple[int, int, int], expected: tuple[str | None, str | None]) -> None:
    fixed, broken, total = counts
    for smallest, shown in zip((None, 5.0), expected, strict=True):
        found = {"base": "base", "other": "tuned", **paired(*outcomes_of(fixed, broken, total), smallest)}
        said, whole = verdict(found), sentence(found)
        assert {"better": "is better than" in said, "worse": "is worse than" in said,
                "equal": "no difference larger than 5 points" in said, None: "is shown" in said}[shown]  # fmt: skip
        excludes_0 = found["low"] > 0 or found["high"] < 0
        assert smallest is None or excludes_0 == (shown in ("better", "worse"))
        assert (found["p_value"] <= 0.05) == (shown in ("better", "worse"))
        assert (
            f"{points(found['difference'])} points" in whole and f"{fixed} fixed, {broken} broken of {total}" in whole
        )
        assert ("McNemar" in whole) == (smallest is None) == ("at any time" not in whole)
        assert "inf" not in whole.replace("information", "") and "nan" not in whole


def test_what_it_would_take_to_know() -> None:
    def found(*counts: int) -> dict:
        return paired(*outcomes_of(*counts))

    assert more_problems(found(30, 6, 200)) == 0 and outlook(found(30, 6, 200)) == ""
    assert more_problems(found(4, 4, 60)) is None and "as many were fixed as broken" in outlook(found(4, 4, 60))
    assert more_problems(found(0, 0, 60)) is None and "equally on every problem" in outlook(found(0, 0, 60))
    more = more_problems(found(10, 8, 100))
    assert more is not None and more > 1000 and f"{more:,} more problems" in outlook(found(10, 8, 100))
    assert more == math.ceil(problems_to_show(10, 8, 100)) - 100
    assert (more_problems(found(1, 0, 1)) or 0) >= 5  # exact McNemar needs six
    for fixed, broken in product(range(12), repeat=2):  # with and without a verdict, never nonsense
        counts = found(fixed, broken, 30)
        assert mcnemar_exact(*outcomes_of(fixed, broken, 30)).p_value < 0.05 or more_problems(counts) != 0


@pytest.mark.parametrize(("fixed", "broken"), [(0, 0), (3, 1), (12, 5), (40, 20)])
def test_more_to_decide_is_what_a_simulation_finds(fixed: int, broken: int) -> None:
    more = more_to_decide(fixed, broken)
    if fixed == broken:
        assert more is None
        return
    assert more is not None and more > 0
    rng, limit = np.random.default_rng(0), -math.log(ALPHA)
    wins = fixed + np.cumsum(rng.random((4000, more)) < fixed / (fixed + broken), axis=1)
    totals = fixed + broken + np.arange(1, more + 1)
    table = {n: log_capital(np.arange(n + 1), n - np.arange(n + 1), np.full(n + 1, n)) >= limit for n in totals}
    crossed = np.stack([table[n][wins[:, i]] for i, n in enumerate(totals)], axis=1)
    first = np.where(crossed.any(1), crossed.argmax(1), -1)
    is_right = (first >= 0) & (2 * wins[np.arange(4000), first] > totals[first])
    assert is_right.mean() == pytest.approx(0.8, abs=0.03)


def test_nothing_more_is_needed_for_what_is_decided_and_no_number_for_what_is_equal() -> None:
    assert more_to_decide(20, 0) == 0 and more_to_decide(0, 20) == 0
    assert more_to_decide(7, 7) is None and more_to_decide(10_100, 10_000) is None
    assert more_to_decide(30, 18) == more_to_decide(18, 30)
