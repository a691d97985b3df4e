"""Whether two who judge the same things agree, beyond what chance would bring."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from mlxmath.evaluation.stats import Interval, wilson_interval


@dataclass(frozen=True)
class Agreement:
    """Of two who judged the same things."""

    num_both: int
    """Things that both judged."""
    share: Interval
    """Of them, on which they agree; Wilson's interval."""
    kappa: Interval | None
    """None where chance alone makes them agree, since both say the same of everything."""


def agreement(one: Sequence[Hashable], other: Sequence[Hashable], confidence: float = 0.95) -> Agreement:
    """How far two sequences of verdicts on the same things agree.

    Raises ValueError unless both are of one length, at least one.
    """
    if len(one) != len(other) or not one:
        raise ValueError(f"expected verdicts of both on the same things, at least one; found {len(one)}, {len(other)}")
    num_equal = sum(x == y for x, y in zip(one, other, strict=True))
    share = wilson_interval(num_equal, len(one), confidence)
    return Agreement(len(one), share, cohens_kappa(one, other, confidence))


def cohens_kappa(one: Sequence[Hashable], other: Sequence[Hashable], confidence: float = 0.95) -> Interval | None:
    """Cohen's kappa of two raters, with its large-sample interval, cut at −1 and 1; None where p_e = 1.

    With p_ij the share of things that the first calls i and the second j, and p_i., p_.j the margins (Cohen 1960):

        κ = (p_o − p_e) / (1 − p_e),  p_o = Σ p_ii,  p_e = Σ p_i. p_.i

    and the standard error of Fleiss, Cohen and Everitt (1969), equation 13, without weights:

        n (1 − p_e)² SE² = Σ_i p_ii (1 − (p_i. + p_.i)(1 − κ))² + (1 − κ)² Σ_(i≠j) p_ij (p_.i + p_j.)²
                           − (κ − p_e (1 − κ))²
    """
    num = len(one)
    cells, rows, columns = Counter(zip(one, other, strict=True)), Counter(one), Counter(other)
    observed = sum(count for (i, j), count in cells.items() if i == j) / num
    expected = sum(rows[i] * columns[i] for i in rows) / num**2
    if expected == 1:
        return None
    kappa = (observed - expected) / (1 - expected)
    spread = -((kappa - expected * (1 - kappa)) ** 2)
    for (i, j), count in cells.items():
        if i == j:
            spread += count / num * (1 - (rows[i] + columns[i]) / num * (1 - kappa)) ** 2
        else:
            spread += count / num * ((columns[i] + rows[j]) / num * (1 - kappa)) ** 2
    error = math.sqrt(max(0.0, spread) / num) / (1 - expected)
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * error
    return Interval(kappa, max(-1.0, kappa - half), min(1.0, kappa + half))
