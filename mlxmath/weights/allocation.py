"""A form for each layer's weight, so that all together cost least and fit into so many bytes.

Minimise Σ_l cost_l(f_l) over the forms f_l, while Σ_l bytes_l(f_l) <= budget: a knapsack of which one item of each
class is taken (Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, chapter 11), solved by dynamic programming
over bytes, so exactly but for their rounding to a unit.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from mlxmath.errors import InputError

_MOST_UNITS = 1 << 16
"""Of the budget: sizes are rounded up to whole units, by less than a 65,536th of the budget a layer."""


def allocate(sizes: Mapping[str, Sequence[int]], costs: Mapping[str, Sequence[float]], budget: int) -> dict[str, int]:
    """The number of each layer's form.

    Args:
        sizes: name of a layer -> bytes of each of its forms.
        costs: the same for what they cost.
        budget: bytes of all together.

    Raises:
        InputError: the smallest forms exceed the budget.
    """
    names = list(sizes)
    least = sum(min(sizes[name]) for name in names)
    if least > budget:
        raise InputError(
            f"--quantize auto: the smallest forms of all layers take {least:,} bytes, {budget:,} were asked for."
        )
    common = math.gcd(*(size for name in names for size in sizes[name]))
    unit = max(common, -(-budget // _MOST_UNITS))
    room = budget // unit
    if room < sum(-(-min(sizes[name]) // unit) for name in names):  # rounded up, not even the smallest forms fit
        return {name: sizes[name].index(min(sizes[name])) for name in names}
    best = np.zeros(room + 1)
    taken = np.zeros((len(names), room + 1), np.uint8)
    for row, name in enumerate(names):
        found = np.full(room + 1, np.inf)
        for number, (size, cost) in enumerate(zip(sizes[name], costs[name], strict=True)):
            units = -(-size // unit)
            if units > room:
                continue
            total = np.full(room + 1, np.inf)
            total[units:] = best[: room + 1 - units] + cost
            better = total < found
            found[better] = total[better]
            taken[row, better] = number
        best = found
    left, chosen = room, {}
    for row in reversed(range(len(names))):
        number = int(taken[row, left])
        chosen[names[row]] = number
        left -= -(-sizes[names[row]][number] // unit)
    return {name: chosen[name] for name in names}
