"""When two numbers count as the same: units, percent, rounding, the noise of floats."""

import math
from fractions import Fraction

from mlxmath.grading.expression import Value
from mlxmath.grading.quantity import Quantity
from mlxmath.grading.units import is_left_out_of, is_same_word, ratio_of_units

RELATIVE_TOLERANCE = Fraction(1, 10**9)
"""Between numbers of which one is a float: the noise of its computation."""
_LEAST_DIGITS = 3
"""A decimal gold with so many significant digits may be the rounding of a fraction."""
_LEAST_DIGITS_OF_A_ROOT = 6
"""The same of a root, of π, of a function's value."""
LONG_DECIMALS = 5
"""A gold with so many decimals is a computed float; an answer may be its rounding to four significant digits."""
_NOISE_DIGITS = 15
_NOISE_DECIMALS = 9
_NOISE_AT_ZERO = Fraction(1, 10**12)


def same_quantity(answer: Quantity, gold: Quantity) -> bool:
    """Same number in the same unit, as far as both units are known; 28 % is 28 and is 0.28, but 0.28 is not 28.

    Of two units that measure the same thing the answer's is converted. A rate may leave out what it is per.
    """
    units = answer.unit, gold.unit
    if all(units) and answer.unit != gold.unit and not is_same_word(*units):
        if ratio := ratio_of_units(*units):
            return _converted(answer.value * ratio, gold.value)
        if not is_left_out_of(*units) and not is_left_out_of(*units[::-1]):
            return False
    if answer.percent == gold.percent or gold.value == 0:
        return _same_value(answer, gold, Fraction(1))
    if answer.percent:
        return _same_value(answer, gold, Fraction(1)) or _same_value(answer, gold, Fraction(1, 100))
    return _same_value(answer, gold, Fraction(1)) or _same_value(answer, gold, Fraction(100))


def _converted(value: Value, gold: Value) -> bool:
    return value == gold if isinstance(value, Fraction) and isinstance(gold, Fraction) else _close(value, gold)


def _same_value(answer: Quantity, gold: Quantity, factor: Fraction) -> bool:
    """Exact for whole numbers and fractions; a decimal gold may be the rounding of a float, a fraction or a root.

    The other way round it is no answer: 0.333333 is not 1/3, only what a float prints in full is.
    """
    value, reference = answer.value * factor, gold.value
    if value == reference or _is_noise(answer, value, reference) or _is_noise(gold, reference, value):
        return True
    if isinstance(value, Fraction) and isinstance(reference, Fraction):
        if value.denominator == 1 and reference.denominator == 1:
            return False
        if gold.decimals is not None and gold.decimals >= LONG_DECIMALS:
            close = _close(value, reference) or _is_rounding(gold, value, 6)
            return close or _is_rounding(answer, reference, 4 if answer.decimals else 6)
        if gold.decimals is None:
            return False
        return answer.decimals is None and bool(gold.decimals) and _is_rounding(gold, value, _LEAST_DIGITS)
    if _close(value, reference):
        return True
    return bool(gold.decimals) and _is_rounding(gold, value, _LEAST_DIGITS_OF_A_ROOT)


def _is_noise(decimal: Quantity, value: Value, other: Value) -> bool:
    """Whether a decimal with as many digits as a float prints is `other` but for the float's last bits."""
    if other == 0:
        return (decimal.digits or 0) >= _NOISE_DIGITS and -_NOISE_AT_ZERO <= value <= _NOISE_AT_ZERO
    is_long = (decimal.digits or 0) >= _NOISE_DIGITS and (decimal.decimals or 0) >= _NOISE_DECIMALS
    return is_long and _close(value, other)


def _is_rounding(decimal: Quantity, exact: Value, least_digits: int) -> bool:
    """Whether a printed decimal is `exact` rounded to its last digit, with so many significant digits or more."""
    if decimal.decimals is None or isinstance(decimal.value, float):
        return False
    digits = len(str(abs(decimal.value.numerator * 10**decimal.decimals // decimal.value.denominator)))
    half_step = Fraction(1, 2 * 10**decimal.decimals)
    return digits >= least_digits and abs(decimal.value - Fraction(exact)) <= half_step * Fraction(1001, 1000)


def _close(a: Value, b: Value) -> bool:
    if not (math.isfinite(a) and math.isfinite(b)):
        return False
    first, second = Fraction(a), Fraction(b)
    return abs(first - second) <= RELATIVE_TOLERANCE * max(abs(first), abs(second))
