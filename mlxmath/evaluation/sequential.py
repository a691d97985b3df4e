"""A paired comparison that may be looked at after every problem: its errors are bounded at whatever time one stops.

With X = +1 for a problem that was fixed, −1 for one that was broken, 0 for one with the same outcome, and m = E[X] the
difference of accuracies, a bet λ on each problem multiplies a capital by 1 + λ (X − m), which nobody can expect to gain
by if m is true (Waudby-Smith and Ramdas 2024, arXiv:2010.09686). The bets are mixed (Robbins 1970) over all that cannot
ruin, −1/(1 − m) < λ < 1/(1 + m). With u from 0 to 1 where λ is in this range, b fixed, c broken and t others:

    K(m) = E_u [ (2u/(1 + m))^b (2(1 − u)/(1 − m))^c ((1 + m − 2um)/(1 − m²))^t ],  u ~ Beta(a, a)

By Ville's inequality K of the true m ever reaches 1/α with a probability of at most α, whenever and however often one
looks. So the m with K(m) < 1/α are a confidence sequence, and min(1, 1/K(0)) is a p-value at any time (Johari et al.
2017, arXiv:1512.04922). K(0) is McNemar's setting: every problem whose outcomes differ is a fair coin,

    K(0) = 2^(b + c) B(a + b, a + c) / B(a, a)

The problems are taken to come in an order that their outcomes have no part in.

Shapes: U points of the mixture; counts and differences are numbers or arrays of one shape.
"""

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlxmath.evaluation.stats import Interval

ALPHA = 0.05
"""Probability of an error that is allowed."""
PRIOR = 5.5
"""a, the higher the more of the mixture bets on differences that are small beside the number of unequal outcomes."""
_NUM_POINTS = 512
_CLOSE = 1e-9
"""To an end of −1 to 1, at which K is not defined."""
_ANGLES = (np.arange(_NUM_POINTS) + 0.5) * (math.pi / _NUM_POINTS)
_U = (1 - np.cos(_ANGLES)) / 2  # Gauss and Chebyshev's points; a mixture over them alone is as valid as the integral
_WEIGHTS = np.sin(_ANGLES) ** (2 * PRIOR - 1)
_LOG_WEIGHTS = np.log(_WEIGHTS / _WEIGHTS.sum())

Decision = Literal["better", "worse", "equal"]


def log_capital(
    fixed: ArrayLike, broken: ArrayLike, total: ArrayLike, difference: ArrayLike = 0.0
) -> NDArray[np.float64]:
    """log K(m) after `total` problems: the evidence against m = `difference`, which lies between −1 and 1."""
    parts = (np.asarray(each, np.float64)[..., None] for each in (fixed, broken, total, difference))
    fixed_1, broken_1, total_1, m_1 = parts
    gain_U = fixed_1 * np.log(2 * _U / (1 + m_1)) + broken_1 * np.log(2 * (1 - _U) / (1 - m_1))
    same_U = (total_1 - fixed_1 - broken_1) * np.log((1 + m_1 - 2 * _U * m_1) / ((1 - m_1) * (1 + m_1)))
    logs_U = _LOG_WEIGHTS + gain_U + same_U
    most_1 = logs_U.max(-1, keepdims=True)
    found: NDArray[np.float64] = most_1[..., 0] + np.log(np.exp(logs_U - most_1).sum(-1))
    return found


def sequential_p(fixed: int, broken: int, total: int) -> float:
    """Always-valid p of no difference: min(1, 1/K(0))."""
    return math.exp(min(0.0, -float(log_capital(fixed, broken, total))))


def confidence_sequence(fixed: int, broken: int, total: int, alpha: float = ALPHA) -> Interval:
    """The difference of accuracies, and the m around it with K(m) < 1/α.

    It excludes 0 exactly if `sequential_p` is at most α. Raises ValueError without a problem.
    """
    if not 0 <= fixed + broken <= total or total == 0:
        raise ValueError(f"expected problems, and no more that differ; found {fixed} + {broken} of {total}")
    estimate, limit = (fixed - broken) / total, -math.log(alpha)

    def end(towards: float) -> float:
        inside, outside = estimate, towards * (1 - _CLOSE)
        if (outside - inside) * towards <= 0 or float(log_capital(fixed, broken, total, outside)) < limit:
            return towards
        while abs(outside - inside) > _CLOSE:
            middle = (inside + outside) / 2
            if float(log_capital(fixed, broken, total, middle)) < limit:
                inside = middle
            else:
                outside = middle
        return outside

    return Interval(estimate, end(-1.0), end(1.0))


def decide(fixed: ArrayLike, broken: ArrayLike, total: ArrayLike, smallest: float, alpha: float = ALPHA) -> Any:
    """What is known after `total` problems: an array of 1 (better), −1 (worse), 2 (equal) and 0 (nothing yet).

    Args:
        fixed: wrong before, right after.
        broken: right before, wrong after.
        total: problems so far.
        smallest: "equal" if every difference as large as this is excluded, and 0 is not.
        alpha: probability of an error that is allowed.
    """
    fixed, broken, total = (np.asarray(each) for each in (fixed, broken, total))
    limit, difference = -math.log(alpha), fixed - broken
    is_other = log_capital(fixed, broken, total) >= limit
    is_small = np.abs(difference) < smallest * total
    for end in (-smallest, smallest):
        is_small &= log_capital(fixed, broken, total, end) >= limit
    return np.where(is_other, np.sign(difference), np.where(is_small, 2, 0)).astype(int)


def more_to_decide(fixed: int, broken: int, power: float = 0.8, alpha: float = ALPHA, most: int = 5000) -> int | None:
    """How many more unequal outcomes decide, with a probability of `power`, what so many have not.

    Taken for granted is that each is as likely to be fixed as those so far were. K(0) depends on b and c alone, so the
    walk of b is followed exactly, as K(0) is looked at after each; that it decides the wrong way does not count.

    Returns:
        0 if it is decided already; None beyond `most`, or if as many were fixed as broken.
    """
    num, best = fixed + broken, max(fixed, broken)
    if best * 2 == num:
        return None
    chance = best / num
    bound = _least_to_decide(num, (num + 1) // 2, alpha)
    if best >= bound:
        return 0
    walking_W, decided = np.ones(1), 0.0  # the chance of w more for the better one, and none decided yet
    for more in range(1, most + 1):
        next_W = np.zeros(more + 1)
        next_W[1:] += chance * walking_W
        next_W[:-1] += (1 - chance) * walking_W
        bound = _least_to_decide(num + more, bound, alpha)
        upper, lower = max(0, bound - best), num + more - bound - best
        decided += float(next_W[upper:].sum())
        next_W[upper:] = 0
        next_W[: max(0, lower + 1)] = 0
        walking_W = next_W
        if decided >= power:
            return more
    return None


def _least_to_decide(num: int, start: int, alpha: float) -> int:
    """The least b from `start` on for which K(0) with c = num − b is 1/α or more; num + 1 or more if there is none."""

    def log_beta(one: float, other: float) -> float:
        return math.lgamma(one) + math.lgamma(other) - math.lgamma(one + other)

    least = start
    while least <= num and num * math.log(2) + log_beta(PRIOR + least, PRIOR + num - least) < (
        log_beta(PRIOR, PRIOR) - math.log(alpha)
    ):
        least += 1
    return least


DECISIONS: dict[int, Decision] = {1: "better", -1: "worse", 2: "equal"}
"""By what `decide` gives."""
