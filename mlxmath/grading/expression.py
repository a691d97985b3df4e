"""Arithmetic without `eval`: a recursive-descent parser over a whitelist of operations, exact where it can be."""

import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
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
    r"|(?P<symbol>\*\*|[-+*/^_(){}\[\]!|%°]))"
)
_FUNCTIONS: dict[str, Callable[[float], float]] = {
    "sin": math.sin, "cos": math.cos, "tan": math.tan, "arcsin": math.asin, "arccos": math.acos, "arctan": math.atan,
    "sinh": math.sinh, "cosh": math.cosh, "tanh": math.tanh, "exp": math.exp, "ln": math.log,
    "log": math.log,
    "sec": lambda x: 1 / math.cos(x), "csc": lambda x: 1 / math.sin(x), "cot": lambda x: 1 / math.tan(x),
}  # fmt: skip
_TIMES = {"*", "\\cdot", "\\times", "\\ast"}
_TIMES_OR_VARIABLE = {"x", "X"}
"""A sign for times only before a number: `2 x 3`, but not `2x + 3`."""
_OVER = {"/", "\\div"}
_MOD = {"\\bmod", "\\mod", "mod"}
_CLOSING = {"(": ")", "[": "]", "{": "}", "|": "|", "\\{": "\\}"}


class NotArithmetic(Exception):  # noqa: N818
    """The text is no arithmetic of the kinds known here, or beyond the limits on size."""


class _Token(NamedTuple):
    kind: str
    text: str
    spaced: bool
    """Whether a blank stood before it."""


@dataclass
class Evaluated:
    """The value of an expression, and the numbers that were written in it."""

    value: Value
    operands: list[Fraction] = field(default_factory=list)
    operations: int = 0


def evaluate(text: str) -> Evaluated:
    r"""Value of plain or LaTeX arithmetic without variables.

    Knows + - * / ^ !, `\frac`, `\sqrt`, `\binom`, brackets, |x|, percent, π, e, functions, `2\frac{1}{3}` (mixed),
    `2\pi` (implied product). Raises NotArithmetic for all else.
    """
    if len(text) > MAX_CHARACTERS:
        raise NotArithmetic
    parser = _Parser(_tokens(text))
    try:
        value = parser.remainder(0)
    except (ZeroDivisionError, OverflowError, ValueError) as error:
        raise NotArithmetic from error
    if parser.peek() or (isinstance(value, float) and not math.isfinite(value)):
        raise NotArithmetic
    return Evaluated(value, parser.operands, parser.operations)


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    position, end = 0, len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if not match or match.lastgroup is None:
            raise NotArithmetic
        word = match[match.lastgroup]
        tokens.append(_Token(match.lastgroup, word, match.start(match.lastgroup) > position))
        position = match.end()
    return tokens


class _Parser:
    """remainder := sum (mod sum)*; sum := product (± product)*; product := power ((×|÷)? power)*;
    power := postfix (^ power)?
    """

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self.operands: list[Fraction] = []
        self.operations = 0

    def peek(self) -> str:
        return self._tokens[self._at].text if self._at < len(self._tokens) else ""

    def _kind(self) -> str:
        return self._tokens[self._at].kind if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        text = self.peek()
        if not text:
            raise NotArithmetic
        self._at += 1
        return text

    def _expect(self, text: str) -> None:
        if self._next() != text:
            raise NotArithmetic

    def remainder(self, depth: int) -> Value:
        value = self.sum(depth)
        while self.peek() in _MOD:
            self._next()
            modulus = self.sum(depth)
            if not isinstance(value, Fraction) or not isinstance(modulus, Fraction) or modulus <= 0:
                raise NotArithmetic
            value = value % modulus
            self.operations += 1
        return value

    def sum(self, depth: int) -> Value:
        if depth > MAX_DEPTH:
            raise NotArithmetic
        value = self._product(depth)
        while self.peek() in ("+", "-"):
            sign = 1 if self._next() == "+" else -1
            value = _sum(value, sign * self._product(depth))
            self.operations += 1
        return value

    def _product(self, depth: int) -> Value:
        signs = 0
        while self.peek() in ("+", "-"):
            signs += self._next() == "-"
        value = self._power(depth)
        while token := self.peek():
            if token in _TIMES or token in _OVER or (token in _TIMES_OR_VARIABLE and self._number_follows()):
                self._next()
                right = self._signed_power(depth)
                value = _bounded(value / right if token in _OVER else value * right)
            elif self._implies_product():
                value = _bounded(value * self._power(depth))
            else:
                break
            self.operations += 1
        return -value if signs % 2 else value

    def _number_follows(self) -> bool:
        return self._at + 1 < len(self._tokens) and self._tokens[self._at + 1].kind == "number"

    def _signed_power(self, depth: int) -> Value:
        sign = Fraction(1)
        while self.peek() in ("+", "-"):
            sign = -sign if self._next() == "-" else sign
        return sign * self._power(depth)

    def _implies_product(self) -> bool:
        """A bracket, root, constant or function straight behind a factor; never a second bare number."""
        if self.peek() in ("(", "[", "{", "\\{", "e", "pi", "sqrt"):
            return True
        return self._kind() == "command" and self.peek() not in ("\\%", *_MOD)

    def _power(self, depth: int) -> Value:
        base = self._postfix(depth)
        if self.peek() not in ("^", "**"):
            return base
        self._next()
        if depth + 1 > MAX_DEPTH:
            raise NotArithmetic
        braced = self.peek() == "{"
        exponent = self._signed_exponent(depth + 1) if not braced else self._primary(depth + 1)
        self.operations += 1
        return _power(base, exponent)

    def _signed_exponent(self, depth: int) -> Value:
        if self.peek() == "-":
            self._next()
            return -self._power(depth)
        return self._power(depth)

    def _postfix(self, depth: int) -> Value:
        value = self._primary(depth)
        while self.peek() in ("!", "%", "°"):
            mark = self._next()
            if mark == "!":
                if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= MAX_FACTORIAL:
                    raise NotArithmetic
                step = 1
                if self.peek() == "!":
                    self._next()
                    step = 2
                value = Fraction(math.prod(range(int(value), 0, -step)))
            elif mark == "%":
                value = value / 100
        return value

    def _primary(self, depth: int) -> Value:
        if depth > MAX_DEPTH:
            raise NotArithmetic
        kind, token = self._kind(), self._next()
        if kind == "number":
            return self._number(token)
        if token in _CLOSING:
            value = self.remainder(depth + 1)
            self._expect(_CLOSING[token])
            return -value if token == "|" and value < 0 else value
        if token in ("\\frac", "\\binom"):
            top, bottom = self._argument(depth), self._argument(depth)
            self.operations += 1
            return _bounded(top / bottom) if token == "\\frac" else _binomial(top, bottom)
        if token in ("\\sqrt", "sqrt"):
            root: Value = Fraction(2)
            if token == "\\sqrt" and self.peek() == "[":
                root = self._primary(depth + 1)
            self.operations += 1
            return _power(self._argument(depth), 1 / root)
        if token in ("\\pi", "pi"):
            return math.pi
        if token in ("e", "\\e"):
            return math.e
        if kind in ("command", "word") and token.lstrip("\\") in _FUNCTIONS:
            return self._function(token.lstrip("\\"), depth)
        raise NotArithmetic

    def _number(self, token: str) -> Fraction:
        value = _bounded_number(token)
        self.operands.append(value)
        is_whole = "." not in token
        following = self._tokens[self._at : self._at + 3]
        if is_whole and following and following[0].text == "\\frac":
            part = self._primary(0)
            if isinstance(part, Fraction) and 0 < part < 1:
                return value + part
            raise NotArithmetic
        if (
            is_whole
            and [t.kind for t in following] == ["number", "symbol", "number"]
            and following[0].spaced
            and following[1].text == "/"
        ):
            self._at += 3
            top, bottom = (_bounded_number(following[i].text) for i in (0, 2))
            if top < bottom:
                return value + top / bottom
            raise NotArithmetic
        return value

    def _argument(self, depth: int) -> Value:
        r"""A braced argument, or the first digit or symbol as in `\frac12`."""
        if self.peek() in ("{", "("):
            return self._primary(depth + 1)
        if self._kind() == "number" and self.peek().isdigit() and len(self.peek()) > 1:
            token = self._tokens[self._at]
            self._tokens[self._at] = token._replace(text=token.text[1:], spaced=False)
            self.operands.append(Fraction(token.text[0]))
            return Fraction(token.text[0])
        if self._kind() == "number":
            value = _bounded_number(self._next())
            self.operands.append(value)
            return value
        return self._primary(depth + 1)

    def _function(self, name: str, depth: int) -> Value:
        exponent = base = None
        if name == "log":
            self._expect("_")
            base = self._argument(depth)
        if self.peek() == "^":
            self._next()
            exponent = self._argument(depth)
        value = self._argument(depth) if self.peek() in ("(", "{") else self._power(depth + 1)
        at_degree = self._at > 0 and self._tokens[self._at - 1].text == "°"
        result = _FUNCTIONS[name](math.radians(value) if at_degree else _as_float(value))
        if 0 < abs(result) < _ALMOST_ZERO:  # or zero: the sine of the float nearest to π is not
            raise NotArithmetic
        if base is not None:
            result /= math.log(base)
        self.operations += 1
        return result if exponent is None else _power(result, exponent)


def _bounded_number(token: str) -> Fraction:
    return Fraction(token.replace(",", ""))


def _bounded(value: Value) -> Value:
    if isinstance(value, Fraction):
        if value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
            raise NotArithmetic
    elif value and abs(value) < sys.float_info.min:
        raise NotArithmetic
    return value


def _sum(a: Value, b: Value) -> Value:
    """Of floats only where no term is lost beside the other and they do not cancel: what is left would be noise."""
    total = _bounded(a + b)
    if isinstance(total, float) and a and b:
        sizes: list[float] = sorted(float(part) if part > 0 else -float(part) for part in (a, b, total))
        if sizes[0] < _LOST * sizes[-1]:
            raise NotArithmetic
    return total


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
    parts = []
    for number in (abs(value.numerator), value.denominator):
        if number.bit_length() > 1000:
            return None
        guess = round(number ** (1 / degree))
        if guess**degree != number:
            return None
        parts.append(guess)
    return Fraction(parts[0] if value >= 0 else -parts[0], parts[1])


def _binomial(top: Value, bottom: Value) -> Value:
    whole = isinstance(top, Fraction) and isinstance(bottom, Fraction) and top.denominator == bottom.denominator == 1
    if not whole or not 0 <= bottom <= top <= MAX_FACTORIAL:
        raise NotArithmetic
    return _bounded(Fraction(math.comb(int(top), int(bottom))))
