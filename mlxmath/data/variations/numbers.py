"""Other numbers for a problem whose answer is a function of them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations

from mlxmath.data.variations.quantities import Numeral
from mlxmath.data.variations.tracing import Traced, Untraceable

_DRAWS = 1500
_LANDMARKS = {
    "day": (5, 7, 14, 28), "hour": (8, 12, 24), "minute": (60,), "second": (60,), "month": (12,), "week": (4, 52),
    "cent": (100,), "inch": (12,), "inche": (12,), "ounce": (16,), "year": (18, 100), "percent": (100,),
    "time": (3, 7), "grade": (12,), "mph": (15, 80), "kmph": (25, 130),
}  # fmt: skip
"""By what a number counts: where a change would mean something else (a month of 13 ...)."""


@dataclass(frozen=True)
class Drawn:
    """Other values of a problem's numerals, and what follows."""

    values: tuple[Fraction, ...]
    """Of all numerals."""
    results: tuple[Fraction, ...]

    @property
    def gold(self) -> Fraction:
        """The answer."""
        return self.results[-1]


def draw(traced: Traced, rng: random.Random) -> Drawn:
    """Other numbers under which the problem keeps its sense.

    What was whole stays whole; what had cents keeps no more digits; what was positive stays so; of any two
    quantities (numbers of the question, results, constants) the greater stays the greater, so that a part stays below
    its whole, an order that the text speaks of holds, and a day keeps its hours.

    Raises:
        Untraceable: no such numbers were found.
    """
    numerals, old = traced.question.numerals, [numeral.value for numeral in traced.question.numerals]
    before = traced.results(old)
    assert before is not None
    choices = {i: _choices(numerals[i]) for i in traced.free}
    order = _order(traced, old, before)
    stay = 0.0
    for attempt in range(_DRAWS):
        stay = 0.35 * attempt / _DRAWS
        values = list(old)
        for i in traced.free:
            if choices[i] and rng.random() >= stay:
                values[i] = rng.choice(choices[i])
        num_changed = sum(a != b for a, b in zip(values, old, strict=True))
        if 2 * num_changed < len(traced.free) or len({values[i] for i in traced.free}) < len(traced.free):
            continue
        after = traced.results(values)
        if (
            after is not None
            and after[-1] != before[-1]
            and _alike(before, after)
            and _holds(order, values, after, sorted(traced.constants))
        ):
            return Drawn(tuple(values), tuple(after))
    raise Untraceable("no other numbers that keep its sense")


def _choices(numeral: Numeral) -> list[Fraction]:
    """Values from half to twice a numeral's, as round as it is."""
    value, step = numeral.value, _step(numeral)
    count = min(int(value / step / 2), 40)
    near = [value + i * step for i in range(-count, 2 * count + 1) if i]
    bounds = [
        Fraction(mark) for mark in _LANDMARKS.get("percent" if numeral.percent else numeral.unit.removesuffix("s"), ())
    ]
    return [
        other for other in near
        if other > 2 * (value > 2) and other > 0 and numeral.fits_article(other) and len(numeral.written(other)) > 0
        and all((value > b) == (other > b) and (value < b) == (other < b) for b in bounds)
    ]  # fmt: skip


def _step(numeral: Numeral) -> Fraction:
    """The distance of values that are as round: 1 for 17, 5 for 60, 100 for 2,400; 0.25 for 2.50."""
    value = numeral.value
    if value.denominator == 1:
        if value <= 20 and not numeral.percent:
            return Fraction(1)
        for base in (10**k for k in range(6, -1, -1)):
            for step in (5 * base, base):
                if value % step == 0 and value / step >= 4:
                    return Fraction(step)
        return Fraction(1) if not numeral.percent or value % 5 else Fraction(5)
    if numeral.money and numeral.decimals == 2:
        cents = value % 1
        if cents in (Fraction(99, 100), Fraction(95, 100), Fraction(49, 100), Fraction(79, 100)) and value > 2:
            return Fraction(1)
        return (
            Fraction(1, 4)
            if value % Fraction(1, 4) == 0 and value > 1
            else Fraction(1, 20)
            if value % Fraction(1, 20) == 0
            else Fraction(1, 100)
        )
    return Fraction(1, 2) if value % Fraction(1, 2) == 0 and value > 1 else Fraction(1, 10**numeral.decimals)


def _order(traced: Traced, values: Sequence[Fraction], results: Sequence[Fraction]) -> list[tuple[int, int]]:
    """Pairs (smaller, greater) of quantities: numerals, results, constants, by their place in that order."""
    every = [*values, *results, *sorted(traced.constants)]
    return [
        (a, b) if every[a] < every[b] else (b, a) for a, b in combinations(range(len(every)), 2) if every[a] != every[b]
    ]


def _holds(
    order: Sequence[tuple[int, int]],
    values: Sequence[Fraction],
    results: Sequence[Fraction],
    constants: Sequence[Fraction],
) -> bool:
    every = [*values, *results, *constants]
    return all(every[a] < every[b] for a, b in order)


def _alike(before: Sequence[Fraction], after: Sequence[Fraction]) -> bool:
    """Whether whole results stay whole, positive ones positive, and others have no more digits."""
    return all(
        (was > 0) == (now > 0)
        and (was == 0) == (now == 0)
        and (now.denominator == 1 if was.denominator == 1 else digits(now) <= max(2, digits(was)))
        for was, now in zip(before, after, strict=True)
    )


def digits(value: Fraction) -> int:
    """How many digits stand behind the point; 99 if more than six."""
    return next((k for k in range(7) if (value * 10**k).denominator == 1), 99)
