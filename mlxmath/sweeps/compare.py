"""Runs compared on the same held-out rows.

Shapes: K rows.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import NormalDist

import numpy as np

from mlxmath.errors import MlxmathError
from mlxmath.evaluation.stats import Interval
from mlxmath.runtime.sealed import unsealed_json
from mlxmath.training.validation import HELD_OUT

Rows = Mapping[tuple[str, int], tuple[float, int]]
"""By what was held out and measured and the row's number: the sum of its losses (or 1 if right), and of how many."""
LEAST_ROWS = 5
"""Fewer say nothing of their spread."""


def rows_of(folders: Iterable[tuple[Path, int]]) -> Rows | None:
    """The rows of runs that differ in their seed alone, added up where they hold out the same.

    Args:
        folders: of the runs, with the step of their best adapters.

    Returns:
        None where a run has not told all of them, or not of these adapters.
    """
    found: dict[tuple[str, int], tuple[float, int]] = {}
    for folder, step in folders:
        try:
            told = unsealed_json(folder / HELD_OUT, None)
            rows = [(int(number), float(value), int(count)) for number, value, count in told["rows"]]
            fingerprint = f"{told['fingerprint']} {told['metric']}"
        except (MlxmathError, KeyError, TypeError, ValueError):
            return None
        if told.get("step") != step:
            return None
        for number, value, count in rows:
            before = found.get((fingerprint, number), (0.0, 0))
            found[fingerprint, number] = (before[0] + value, before[1] + count)
    return found


def difference(one: Rows | None, other: Rows | None, confidence: float = 0.95) -> Interval | None:
    """The mean of `one` less that of `other`, over the same rows; None where these are others, or too few.

    With d the differences of the rows' sums and t what they are sums over, D = Σ d / Σ t, and by linearisation (Cochran
    1977, section 6.3) Var D = K / (K − 1) Σ (d − D t)² / (Σ t)²; the interval is Student's with K − 1 degrees of
    freedom. It is over the choice of the rows, given the runs.
    """
    if one is None or other is None or one.keys() != other.keys() or len(one) < LEAST_ROWS:
        return None
    pairs = [(one[key], other[key]) for key in sorted(one)]
    if any(first[1] != second[1] or not first[1] for first, second in pairs):
        return None
    d_K = np.array([first[0] - second[0] for first, second in pairs])
    t_K = np.array([first[1] for first, _ in pairs], np.float64)
    if not np.isfinite(d_K).all():
        return None
    ratio, num = float(d_K.sum() / t_K.sum()), len(pairs)
    variance = num / (num - 1) * float(((d_K - ratio * t_K) ** 2).sum()) / float(t_K.sum()) ** 2
    half = student(0.5 + confidence / 2, num - 1) * math.sqrt(variance)
    return Interval(ratio, ratio - half, ratio + half)


def student(share: float, freedom: int) -> float:
    """A quantile of Student's t, to 0.3 % from 4 degrees of freedom on (Abramowitz and Stegun, 26.7.5)."""
    z = NormalDist().inv_cdf(share)
    parts = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(part / freedom**i for i, part in enumerate(parts, 1))
