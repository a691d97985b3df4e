"""How many problems each source of a mixture gives, and which."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mlxmath.config.schema import DataConfig
from mlxmath.data.dedup import mix
from mlxmath.data.survey import Survey

RANKS = 1000
"""Steps of a curriculum's scale: a row's rank is the share of its source's rows that are easier, in thousandths."""

Ids = NDArray[np.int64]


def sizes(surveys: Sequence[Survey], config: DataConfig) -> list[int]:
    """How many problems each source gives.

    A count is taken as it is; the weights share out what `num_examples` leaves, or as much as lets no source run out.
    Where all is more than `num_examples`, every source is cut in proportion.
    """
    most = [survey.most() for survey in surveys]
    result = [min(most_i, survey.loaded.source.count or most_i) for most_i, survey in zip(most, surveys, strict=True)]
    weights = [survey.loaded.source.weight or 0.0 for survey in surveys]
    if any(weights):
        fixed = sum(size for size, weight in zip(result, weights, strict=True) if not weight)
        total = min(m * sum(weights) / w for m, w in zip(most, weights, strict=True) if w)
        if config.num_examples is not None:
            total = min(total, max(0, config.num_examples - fixed))
        shares = _apportion(weights, int(total))
        result = [share if weight else size for share, size, weight in zip(shares, result, weights, strict=True)]
    if config.num_examples is not None and sum(result) > config.num_examples:
        result = _apportion(result, config.num_examples)
    return result


def _apportion(shares: Sequence[float], total: int) -> list[int]:
    """`total` in whole parts, as near to proportional as can be: largest remainders, the first of equal ones."""
    exact = [share * total / sum(shares) for share in shares]
    parts = [int(part) for part in exact]
    by_remainder = sorted(range(len(parts)), key=lambda i: parts[i] - exact[i])
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts


def draw(survey: Survey, size: int, seed: int) -> Ids:
    """Which of a survey's problems are taken, ascending: those with the least seeded hash (in each bucket)."""
    if size >= len(survey.ids):
        chosen = np.arange(len(survey.ids))
    else:
        hashed = mix(np.arange(len(survey.ids), dtype=np.uint64) ^ np.uint64(seed))
        order = np.argsort(hashed, kind="stable")
        if survey.plain:
            chosen = np.arange(size)
        elif not survey.buckets:
            chosen = np.sort(order[:size])
        else:
            chosen = _draw_balanced(survey.buckets, order, size)
    if survey.buckets:
        left, taken = Counter(survey.buckets), Counter(survey.buckets[i] for i in chosen)
        survey.report.buckets = {name: (left[name], taken[name]) for name in sorted(left)}
    return chosen


def _draw_balanced(buckets: Sequence[str], order: Ids, size: int) -> Ids:
    """Equally many of each bucket; what a short one lacks comes from the others."""
    counts = Counter(buckets)
    quotas: dict[str, int] = {}
    rest, names = size, sorted(counts, key=lambda name: (counts[name], name))
    for i, name in enumerate(names):
        quotas[name] = min(counts[name], rest // (len(names) - i))
        rest -= quotas[name]
    chosen = []
    for i in order.tolist():
        if quotas[buckets[i]]:
            quotas[buckets[i]] -= 1
            chosen.append(i)
    return np.sort(np.array(chosen, np.int64))


def ranks_of(survey: Survey, chosen: Ids) -> NDArray[np.int32]:
    """(P,) where each problem stands between the easiest (0) and the hardest of its source."""
    by_difficulty = all(survey.difficulty[i] is not None for i in chosen)
    survey.report.order = "difficulty" if by_difficulty else "solution length"
    measure = survey.difficulty if by_difficulty else survey.lengths
    values = np.array([measure[i] for i in chosen], np.float64)
    return (RANKS * np.searchsorted(np.sort(values), values) // max(1, len(values))).astype(np.int32)
