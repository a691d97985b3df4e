"""Arithmetic without `eval`: a recursive-descent parser over a whitelist of operations, exact where it can be."""

import math
import re
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

Value = Fraction | float
"""Exact, or a float where a root, π or a function came in."""

MAX_CHARACTERS = 400
MAX_DEPTH = 40
MAX_BITS = 1 << 16
MAX_FACTORIAL = 4000
_LARGEST = 10**8
"""Roots and functions of larger numbers may differ by less than the tolerance between floats."""
_ALMOST_ZERO = 1e-12
"""A function's value that may be zero but for the last bits of its argument."""
_LOST = 1e-6
"""A term of a sum that is smaller than this part of another leaves too few digits of a float."""

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+|\.(?!\.))?|\.\d+)"
    r"|(?P<command>\\[A-Za-z]+)"
    r"|(?P<word>[A-Za-z]+)"
    r"|(?P<symbol>\*\*|[-+*/^_(){}\[\]!|%°])"
    r"|(?P<unknown>\S))"
)
_FUNCTIONS: dict[str, Callable[[float], float]] = {
    "sin": math.sin, "cos": math.cos, "tan": math.tan, "arcsin": math.asin, "arccos": math.acos, "arctan": math.atan,
    "sinh": math.sinh, "cosh": math.cosh, "tanh": math.tanh, "exp": math.exp, "ln": math.log, "log": math.log,
    "sec": lambda x: 1 / math.cos(x), "csc": lambda x: 1 / math.sin(x), "cot": lambda x: 1 / math.tan(x),
}  # fmt: skip
_CONSTANTS = {"pi": math.pi, "e": math.e}
_TIMES = {"*", "\\cdot", "\\times", "\\ast"}
_OVER = {"/", "\\div"}
_MOD = {"\\bmod", "\\mod", "mod"}
_FACTORS = {"(", "[", "{", "e", "pi", "sqrt"}  # what multiplies straight behind a factor, as LaTeX commands do
_CLOSING = {"(": ")", "[": "]", "{": "}", "|": "|"}


class NotArithmetic(Exception):  # noqa: N818
    """The text is no arithmetic of the kinds known here, or beyond the limits on size."""


class Evaluated(NamedTuple):
    """The value of an expression, and the numbers that were written in it."""

    value: Value
    operands: list[Fraction]
    operations: int


def evaluate(text: str) -> Evaluated:
    r"""Value of plain or LaTeX arithmetic without variables.

    Knows + - * / ^ !, `\frac`, `\sqrt`, `\binom`, brackets, |x|, percent, π, e, functions, `2\frac{1}{3}` (mixed),
    `2\pi` (implied product). Raises NotArithmetic for all else.
    """
    if len(text) > MAX_CHARACTERS:
        raise NotArithmetic
    parser = _Parser(text)
    try:
        value = parser.remainder(0)
    except (ZeroDivisionError, OverflowError, ValueError) as error:
        raise NotArithmetic from error
    if parser.next.kind or (isinstance(value, float) and not math.isfinite(value)):
        raise NotArithmetic
    return Evaluated(value, parser.operands, parser.operations)


class _Token(NamedTuple):
    kind: str
    """Group of `_TOKEN`; empty at the end."""
    text: str
    spaced: bool
    """Whether a blank stood before it."""


class _Parser:
    """remainder := sum (mod sum)*; sum := product (± product)*; product := power ((×|÷)? power)*;
    power := postfix (^ power)?
    """

    def __init__(self, text: str) -> None:
        self._tokens = [
            _Token(match.lastgroup or "", match[match.lastgroup or 0], match[0][:1].isspace())
            for match in _TOKEN.finditer(text)
        ]
        self._tokens.append(_Token("", "", False))
        self._at = 0
        self.operands: list[Fraction] = []
        self.operations = 0

    @property
    def next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self, *texts: str) -> str:
        """The next token if it is one of these, else nothing."""
        text = self.next.text if self.next.text in texts else ""
        self._at += bool(text)
        return text

    def _expect(self, text: str) -> None:
        if not self._take(text):
            raise NotArithmetic

    def remainder(self, depth: int) -> Value:
        value = self._sum(depth)
        while self._take(*_MOD):
            modulus = self._sum(depth)
            if not isinstance(value, Fraction) or not isinstance(modulus, Fraction) or modulus <= 0:
                raise NotArithmetic
            value = value % modulus
            self.operations += 1
        return value

    def _sum(self, depth: int) -> Value:
        """Of floats only where no term is lost beside the other and they do not cancel: what is left would be noise."""
        total = self._product(depth)
        while sign := self._take("+", "-"):
            terms = total, self._product(depth) * (1 if sign == "+" else -1)
            total = _bounded(sum(terms))
            if isinstance(total, float) and all(terms):
                sizes = sorted(abs(float(part)) for part in (*terms, total))
                if sizes[0] < _LOST * sizes[-1]:
                    raise NotArithmetic
            self.operations += 1
        return total

    def _product(self, depth: int) -> Value:
        sign, value = self._sign(), self._power(depth)
        while mark := self._take(*_TIMES, *_OVER) or self._times_as_letter() or self._implies_product():
            right = self._sign() * self._power(depth) if isinstance(mark, str) else self._power(depth)
            value = _bounded(value / right if mark in _OVER else value * right)
            self.operations += 1
        return sign * value

    def _times_as_letter(self) -> str:
        """A letter is a sign for times only before a number: `2 x 3`, but not `2x + 3`."""
        is_before_number = self.next.kind == "word" and self._tokens[self._at + 1].kind == "number"
        return self._take("x", "X") if is_before_number else ""

    def _implies_product(self) -> bool:
        """A bracket, root, constant or function straight behind a factor; never a second bare number."""
        return self.next.text in _FACTORS or (self.next.kind == "command" and self.next.text not in _MOD)

    def _sign(self) -> int:
        sign = 1
        while mark := self._take("+", "-"):
            sign *= 1 if mark == "+" else -1
        return sign

    def _power(self, depth: int) -> Value:
        base = self._postfix(depth)
        if not self._take("^", "**"):
            return base
        if self.next.text == "{":
            exponent = self._primary(depth + 1)
        else:
            exponent = (-1 if self._take("-") else 1) * self._power(depth + 1)
        self.operations += 1
        return _power(base, exponent)

    def _postfix(self, depth: int) -> Value:
        value = self._primary(depth)
        while mark := self._take("!", "%", "°"):
            if mark == "!":
                if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= MAX_FACTORIAL:
                    raise NotArithmetic
                value = Fraction(math.prod(range(int(value), 0, -2 if self._take("!") else -1)))
            elif mark == "%":
                value = value / 100
        return value

    def _primary(self, depth: int) -> Value:
        kind, token, _ = self.next
        if depth > MAX_DEPTH or not token:
            raise NotArithmetic
        self._at += 1
        if kind == "number":
            return self._number(token)
        if token in _CLOSING:
            value = self.remainder(depth + 1)
            self._expect(_CLOSING[token])
            return -value if token == "|" and value < 0 else value
        name = token.lstrip("\\")
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        self.operations += 1
        if token in ("\\frac", "\\binom"):
            top, bottom = self._argument(depth), self._argument(depth)
            return _bounded(top / bottom) if token == "\\frac" else _binomial(top, bottom)
        if token in ("\\sqrt", "sqrt"):
            is_indexed = token == "\\sqrt" and self.next.text == "["
            degree = self._primary(depth + 1) if is_indexed else Fraction(2)
            return _power(self._argument(depth), 1 / degree)
        if name not in _FUNCTIONS:
            raise NotArithmetic
        return self._function(name, depth)

    def _number(self, token: str) -> Fraction:
        """A number, also a mixed one: `2\\frac{1}{3}`, `2 1/3`."""
        value = Fraction(token.replace(",", ""))
        self.operands.append(value)
        top, slash, below = [*self._tokens[self._at : self._at + 3], *self._tokens[-1:] * 2][:3]
        if "." not in token and top.text == "\\frac":
            part = self._primary(0)
        elif "." not in token and top.kind == below.kind == "number" and slash.text == "/" and top.spaced:
            self._at += 3
            part = Fraction(top.text.replace(",", "")) / Fraction(below.text.replace(",", ""))
        else:
            return value
        if not isinstance(part, Fraction) or not 0 <= part < 1:
            raise NotArithmetic
        return value + part

    def _argument(self, depth: int) -> Value:
        r"""A braced argument, or the first digit or symbol as in `\frac12`."""
        token = self.next
        if token.kind != "number":
            return self._primary(depth + 1)
        size = 1 if token.text.isdigit() else len(token.text)
        self._tokens[self._at] = token._replace(text=token.text[size:], spaced=False)
        self._at += size == len(token.text)
        self.operands.append(Fraction(token.text[:size].replace(",", "")))
        return self.operands[-1]

    def _function(self, name: str, depth: int) -> Value:
        base = None
        if name == "log":
            self._expect("_")
            base = self._argument(depth)
        exponent = self._argument(depth) if self._take("^") else None
        value = self._argument(depth) if self.next.text in ("(", "{") else self._power(depth + 1)
        at_degree = self._tokens[self._at - 1].text == "°"
        result = _FUNCTIONS[name](math.radians(value) if at_degree else _as_float(value))
        if 0 < abs(result) < _ALMOST_ZERO:  # or zero: the sine of the float nearest to π is not
            raise NotArithmetic
        if base is not None:
            result /= math.log(base)
        return result if exponent is None else _power(result, exponent)


def _bounded(value: Value) -> Value:
    if isinstance(value, Fraction):
        if value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
            raise NotArithmetic
    elif value and abs(value) < sys.float_info.min:
        raise NotArithmetic
    return value


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if exponent.denominator == 1:
            bits = base.numerator.bit_length() + base.denominator.bit_length()
            if abs(exponent) * bits > MAX_BITS:
                raise NotArithmetic
            return Fraction(base ** int(exponent))
        root = _exact_root(base, exponent.denominator)
        if root is not None:
            return _power(root, Fraction(exponent.numerator))
    if base < 0 and isinstance(exponent, Fraction) and exponent.denominator % 2:
        size = (-_as_float(base)) ** float(exponent)  # the real root
        return -size if exponent.numerator % 2 else size
    result = _as_float(base) ** _as_float(exponent)
    if isinstance(result, complex) or (base and abs(result) < sys.float_info.min):  # an underflow tells nothing
        raise NotArithmetic
    return result


def _as_float(value: Value) -> float:
    """For a root or a function; not of a fraction so large that what it says may be less than a float's last digits."""
    if isinstance(value, Fraction) and max(abs(value.numerator), value.denominator) > _LARGEST:
        raise NotArithmetic
    return float(value)


def _exact_root(value: Fraction, degree: int) -> Fraction | None:
    """The rational root, if there is one that is small enough to be found through floats."""
    if degree > 64 or (value < 0 and degree % 2 == 0):
        return None
    parts = abs(value.numerator), value.denominator
    if max(parts).bit_length() > 1000:
        return None
    top, below = roots = [round(part ** (1 / degree)) for part in parts]
    if any(root**degree != part for root, part in zip(roots, parts, strict=True)):
        return None
    return Fraction(top if value >= 0 else -top, below)


def _binomial(top: Value, bottom: Value) -> Value:
    whole = isinstance(top, Fraction) and isinstance(bottom, Fraction) and top.denominator == bottom.denominator == 1
    if not whole or not 0 <= bottom <= top <= MAX_FACTORIAL:
        raise NotArithmetic
    return _bounded(Fraction(math.comb(int(top), int(bottom))))
