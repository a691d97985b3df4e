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


def paired_bootstrap(
    before: Sequence[float],
    after: Sequence[float],
    *,
    confidence: float = 0.95,
    num_samples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of mean(after) - mean(before), problems being drawn together with both scores.

    Scores are one number a problem: right or wrong, or the share of right samples.
    """
    _check_paired(before, after)
    differences = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    values, counts = np.unique(differences, return_counts=True)
    rng = np.random.default_rng(seed)
    # A resample's mean depends only on how often each distinct difference is drawn.
    drawn = rng.multinomial(len(differences), counts / len(differences), size=num_samples)
    means = drawn @ values / len(differences)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(differences.mean()), float(low), float(high))


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
    totals: dict[Hashable, float] = {}
    for answer, weight in zip(answers, weights or [1.0] * len(answers), strict=True):
        if answer is not None:
            totals[answer] = totals.get(answer, 0.0) + weight
    return max(totals, key=lambda answer: totals[answer], default=None)


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
    is_right = {answer: right for answer, right in zip(answers, correct, strict=True) if answer is not None}
    return sum(_vote_score(subset, answers, is_right, votes) for subset in subsets) / len(subsets)


def _vote_score(
    subset: Sequence[int], answers: Sequence[Hashable | None], is_right: dict[Hashable, bool], votes: Sequence[float]
) -> float:
    """Share of right answers among those with the most votes."""
    totals: dict[Hashable, float] = {}
    for i in subset:
        answer = answers[i]
        if answer is not None:
            totals[answer] = totals.get(answer, 0.0) + votes[i]
    if not totals:
        return 0.0
    most = max(totals.values())
    winners = [answer for answer, total in totals.items() if math.isclose(total, most)]
    return sum(is_right[answer] for answer in winners) / len(winners)
