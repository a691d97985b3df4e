"""Statistics of graded answers: intervals, paired tests, pass@k and majority votes."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its confidence interval."""

    estimate: float
    low: float
    high: float


def wilson_interval(num_correct: int, num_total: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927): (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n).

    Raises ValueError unless 0 <= `num_correct` <= `num_total` and `num_total` > 0.
    """
    if not 0 <= num_correct <= num_total or num_total == 0:
        raise ValueError(f"a proportion needs 0 <= correct <= total and total > 0, not {num_correct} of {num_total}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = num_correct / num_total
    scale = 1 + z * z / num_total
    centre = (share + z * z / (2 * num_total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / num_total + z * z / (4 * num_total**2))
    low = 0.0 if num_correct == 0 else centre - half
    high = 1.0 if num_correct == num_total else centre + half
    return Interval(share, low, high)


@dataclass(frozen=True)
class McNemar:
    """A paired comparison of two models on the same problems."""

    num_fixed: int
    """Wrong before, right after."""
    num_broken: int
    """Right before, wrong after."""
    p_value: float
    """Two-sided exact p of as uneven a split under equal odds of fixing and breaking."""


def mcnemar_exact(before: Sequence[bool], after: Sequence[bool]) -> McNemar:
    """Exact McNemar test: two-sided binomial test of the discordant pairs at one half, min(1, 2 P(X <= min(b, c)))."""
    _check_paired(before, after)
    num_fixed = sum(not b and a for b, a in zip(before, after, strict=True))
    num_broken = sum(b and not a for b, a in zip(before, after, strict=True))
    num_discordant = num_fixed + num_broken
    tail = sum(math.comb(num_discordant, i) for i in range(min(num_fixed, num_broken) + 1))
    return McNemar(num_fixed, num_broken, min(1.0, 2 * tail / 2**num_discordant))


def problems_to_show(num_fixed: int, num_broken: int, num_total: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """Problems on which exact McNemar shows a difference as large as the one seen, with a probability of `power`.

    With d the difference and s the share of unequal outcomes, Connor (1987) has

        n = (z_(1 − α/2) √s + z_power √(s − d²))² / d²

    and as the test is exact, Fleiss's correction n/4 (1 + √(1 + 4 / (n |d|)))² follows. Infinite without a difference.
    Raises ValueError unless there are problems, of which no more differ.
    """
    if not 0 <= num_fixed + num_broken <= num_total or num_total == 0:
        raise ValueError(f"expected problems, and no more that differ; found {num_fixed} + {num_broken} of {num_total}")
    unequal, difference = (num_fixed + num_broken) / num_total, abs(num_fixed - num_broken) / num_total
    if not difference:
        return math.inf
    z_alpha, z_power = NormalDist().inv_cdf(1 - alpha / 2), NormalDist().inv_cdf(power)
    found = ((z_alpha * math.sqrt(unequal) + z_power * math.sqrt(unequal - difference**2)) / difference) ** 2
    return found / 4 * (1 + math.sqrt(1 + 4 / (found * difference))) ** 2


def paired_interval(before: Sequence[bool], after: Sequence[bool], confidence: float = 0.95) -> Interval:
    """Interval of the difference of two proportions on the same problems (Newcombe 1998, method 10).

    With p1 and p2 after and before, their Wilson intervals (l1, u1) and (l2, u2), and the counts a of both right, b of
    only after, c of only before, d of neither, n in all:

        low  = p1 - p2 - √((p1 - l1)² - 2 φ (p1 - l1)(u2 - p2) + (u2 - p2)²)
        high = p1 - p2 + √((u1 - p1)² - 2 φ (u1 - p1)(p2 - l2) + (p2 - l2)²)
        φ = C / √((a + b)(c + d)(a + c)(b + d)), C = ad - bc, less n/2 but not below 0 where it is above 0

    φ is 0 where a margin is empty. Without a pair that differs it is as wide as the number of problems allows.
    """
    _check_paired(before, after)
    pairs = [(bool(x), bool(y)) for x, y in zip(after, before, strict=True)]
    a, b, c, d = (pairs.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False)))
    first, second = (wilson_interval(count, len(pairs), confidence) for count in (a + b, a + c))
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    excess: float = a * d - b * c
    if excess > 0:
        excess = max(excess - len(pairs) / 2, 0)
    phi = excess / math.sqrt(margins) if margins else 0.0

    def distance(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))

    difference = (b - c) / len(pairs)
    return Interval(
        difference,
        difference - distance(first.estimate - first.low, second.high - second.estimate),
        difference + distance(first.high - first.estimate, second.estimate - second.low),
    )


def adjusted_mean(shares: Sequence[float], confidence: float = 0.95) -> Interval:
    """Interval of the mean of values from 0 to 1: Wald's, with z²/2 more zeros and as many more ones.

    Where each value is 0 or 1 it is Agresti and Coull's (1998). Values that are all equal do not make it a point.
    """
    return _adjusted(shares, 0.0, 1.0, 0.5, confidence)


def adjusted_difference(before: Sequence[float], after: Sequence[float], confidence: float = 0.95) -> Interval:
    """Interval of mean(after) - mean(before) of values from 0 to 1 on the same problems: Wald's, adjusted likewise.

    z²/4, which is about one, more problems each are wholly better and wholly worse. Where each value is 0 or 1 it is
    Bonett and Price's (2012).
    """
    _check_paired(before, after)
    return _adjusted([y - x for x, y in zip(before, after, strict=True)], -1.0, 1.0, 0.25, confidence)


def _adjusted(values: Sequence[float], low: float, high: float, weight: float, confidence: float) -> Interval:
    """Wald's interval of a mean after adding weight · z² values at either end of their range."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    added = weight * z * z
    total = len(values) + 2 * added
    mean = (sum(values) + added * (low + high)) / total
    variance = (sum(x * x for x in values) + added * (low * low + high * high)) / total - mean * mean
    half = z * math.sqrt(variance / total)
    return Interval(sum(values) / len(values), max(low, mean - half), min(high, mean + half))


def _check_paired(before: Sequence[object], after: Sequence[object]) -> None:
    if len(before) != len(after) or not before:
        raise ValueError(
            f"paired scores need the same problems, at least one; there are {len(before)} and {len(after)}"
        )


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that at least one of k of the n samples is right, unbiased: 1 - C(n-c, k) / C(n, k).

    Chen et al. 2021 (arXiv:2107.03374), equation 1. Raises ValueError unless 1 <= k <= n and 0 <= c <= n.
    """
    if not 1 <= k <= num_samples or not 0 <= num_correct <= num_samples:
        raise ValueError(
            f"pass@{k} needs 1 <= k <= samples and 0 <= correct <= samples, not {num_correct} of {num_samples}"
        )
    return 1 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def vote(answers: Sequence[Hashable | None], weights: Sequence[float] | None = None) -> Hashable | None:
    """The answer with the most votes, or the greatest sum of weights; of equals the one given first.

    None is no answer and gets no vote; the result is None if there is no answer at all. Equal answers must compare
    equal: map them to one representative before (`mlxmath.grading.cluster`).
    """
    totals = _totals(answers, weights or [1.0] * len(answers))
    return max(totals, key=lambda answer: totals[answer], default=None)


def _totals(answers: Sequence[Hashable | None], weights: Sequence[float]) -> dict[Hashable, float]:
    """The weight of each answer, in the order in which they were given first."""
    totals: dict[Hashable, float] = {}
    for answer, weight in zip(answers, weights, strict=True):
        if answer is not None:
            totals[answer] = totals.get(answer, 0.0) + weight
    return totals


def maj_at_k(
    answers: Sequence[Hashable | None],
    correct: Sequence[bool],
    k: int,
    *,
    weights: Sequence[float] | None = None,
    num_draws: int = 2000,
    seed: int = 0,
) -> float:
    """Expected accuracy of the majority vote over k of the n samples, drawn without replacement, ties shared evenly.

    `correct` says of each sample whether its answer is right; samples without an answer (None) do not vote, a draw
    without any answer is wrong. Exact where there are at most `num_draws` subsets, else over as many random ones.
    """
    num_samples = len(answers)
    if not 1 <= k <= num_samples or len(correct) != num_samples:
        raise ValueError(f"maj@{k} needs 1 <= k <= samples and as many verdicts, not {num_samples} and {len(correct)}")
    votes = [1.0] * num_samples if weights is None else list(weights)
    if math.comb(num_samples, k) <= num_draws:
        subsets: Sequence[Sequence[int]] = list(combinations(range(num_samples), k))
    else:
        rng = np.random.default_rng(seed)
        subsets = [rng.choice(num_samples, k, replace=False).tolist() for _ in range(num_draws)]
    is_right = dict(zip(answers, correct, strict=True))

    def score(subset: Sequence[int]) -> float:
        """Share of right answers among those with the most votes."""
        totals = _totals([answers[i] for i in subset], [votes[i] for i in subset])
        most = max(totals.values(), default=0.0)
        winners = [answer for answer, total in totals.items() if math.isclose(total, most)]
        return sum(is_right[answer] for answer in winners) / max(1, len(winners))

    return sum(map(score, subsets)) / len(subsets)
