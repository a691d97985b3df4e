"""Exact arithmetic on what a model wrote between `<<` and `=`, as in GSM8K's annotations: `<<48/2=24>>`.

Cobbe et al. 2021 (arXiv:2110.14168) let a calculator write the number behind the `=`. It takes no process: sizes are
bounded before anything is computed.

    sum = product (("+" | "-") product)*
    product = signed (("*" | "/" | "×" | "÷") signed)*
    signed = ("-" | "+")* power
    power = atom ("%")? (("**" | "^") signed)?
    atom = number | "(" sum ")"
"""

import re
from fractions import Fraction

MOST_CHARACTERS = 200
_MOST_DIGITS = 40
_MOST_DEPTH = 20
_MOST_BITS = 1024
"""Of a numerator or denominator: some 300 digits."""
_MOST_WRITTEN = 60
_PLACES, _ROUNDED = 12, 6
"""Decimals up to which a result is written exactly, and to which one that does not end there is rounded."""
_TOKEN = re.compile(
    r"\s*(?:([0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?![0-9,.])|[0-9]+\.?[0-9]*|\.[0-9]+)|(\*\*|[-+*/×÷^%()])|\$)"
)
_NUMBER = re.compile(r"[0-9.]")


class NotArithmetic(Exception):  # noqa: N818
    """The text is no arithmetic, has no value, or is beyond the limits."""


def calculate(text: str) -> str | None:
    """The value of plain arithmetic as it is written; None where there is none, or it is too large to be written.

    Whole numbers and decimals of up to twelve places are exact; others are rounded to six.
    """
    try:
        return written(_Parser(text).value())
    except (NotArithmetic, ZeroDivisionError):
        return None


def written(value: Fraction) -> str:
    """A number as digits.

    Raises:
        NotArithmetic: there are too many.
    """
    scaled = value * 10**_PLACES
    places = _PLACES if scaled.denominator == 1 else _ROUNDED
    whole, part = divmod(round(abs(value) * 10**places), 10**places)
    digits = f"{whole}.{part:0{places}d}".rstrip("0").rstrip(".")
    if len(digits) > _MOST_WRITTEN:
        raise NotArithmetic
    return f"-{digits}" if value < 0 and digits != "0" else digits


class _Parser:
    """Recursive descent; see the module."""

    def __init__(self, text: str) -> None:
        if len(text) > MOST_CHARACTERS:
            raise NotArithmetic
        self._tokens: list[str] = []
        position, text = 0, text.rstrip()
        while position < len(text):
            found = _TOKEN.match(text, position)
            if not found:
                raise NotArithmetic
            self._tokens += filter(None, found.groups())
            position = found.end()
        self._depth = 0

    def value(self) -> Fraction:
        """Of the whole text."""
        value = self._sum()
        if self._tokens:
            raise NotArithmetic
        return value

    def _take(self, *symbols: str) -> str:
        return self._tokens.pop(0) if self._tokens and self._tokens[0] in symbols else ""

    def _sum(self) -> Fraction:
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise NotArithmetic
        value = self._product()
        while sign := self._take("+", "-"):
            other = self._product()
            value = _bounded(value + other if sign == "+" else value - other)
        self._depth -= 1
        return value

    def _product(self) -> Fraction:
        value = self._signed()
        while sign := self._take("*", "×", "/", "÷"):
            other = self._signed()
            value = _bounded(value * other if sign in "*×" else value / other)
        return value

    def _signed(self) -> Fraction:
        sign = 1
        while found := self._take("-", "+"):
            sign *= -1 if found == "-" else 1
        return sign * self._power()

    def _power(self) -> Fraction:
        value = self._atom()
        if self._take("%"):
            value /= 100
        if not self._take("**", "^"):
            return value
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise NotArithmetic
        exponent = self._signed()
        self._depth -= 1
        size = max(abs(value.numerator), value.denominator).bit_length()
        if exponent.denominator != 1 or abs(exponent) * size > _MOST_BITS:
            raise NotArithmetic
        return Fraction(value ** int(exponent))

    def _atom(self) -> Fraction:
        if self._take("("):
            value = self._sum()
            if not self._take(")"):
                raise NotArithmetic
            return value
        token = self._tokens.pop(0) if self._tokens else ""
        if not _NUMBER.match(token) or len(token) > _MOST_DIGITS:
            raise NotArithmetic
        return Fraction(token.replace(",", "").rstrip("."))


def _bounded(value: Fraction) -> Fraction:
    if max(abs(value.numerator), value.denominator).bit_length() > _MOST_BITS:
        raise NotArithmetic
    return value
