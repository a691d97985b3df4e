"""What may pass between a program and SymPy, and how much of it."""

import ast
import itertools
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import GeneratorType
from typing import Any

from mlxmath.tools.tree import Refused

_MOST_STEPS = 100_000
_MOST_ITEMS = 20_000
"""Of a list or a text."""
_MOST_BITS = 1 << 18
_MOST_DEPTH = 6
"""Of lists inside lists that SymPy is given."""
OPERATIONS: Mapping[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow, ast.MatMult: operator.matmul,
    ast.UAdd: operator.pos, ast.USub: operator.neg, ast.Not: operator.not_,
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.Is: operator.is_, ast.IsNot: operator.is_not,
}  # fmt: skip


@dataclass(frozen=True)
class Named:
    """A function by its name; of SymPy unless `is_plain`."""

    name: str
    function: Any
    is_plain: bool = False


@dataclass(frozen=True)
class Module:
    name: str
    names: Mapping[str, Any]


class Gate:
    """Lets values pass that a program may have, as many as it may have."""

    def __init__(self) -> None:
        import sympy
        from sympy.matrices.matrixbase import MatrixBase

        self.sympy = sympy
        self.values = sympy.Basic, MatrixBase, sympy.Poly
        """What of SymPy is a value."""
        self._num_steps = 0

    def start(self) -> None:
        """Of another program."""
        self._num_steps = 0

    def step(self) -> None:
        """Count one.

        Raises:
            Refused: it is one too many.
        """
        self._num_steps += 1
        if self._num_steps > _MOST_STEPS:
            raise Refused("TimeoutError: too many steps")

    def operated(self, kind: type[ast.operator], left: Any, right: Any) -> Any:
        """An operation, if its result is not too large."""
        texts = [isinstance(side, str) for side in (left, right)]
        if any(texts) and not (all(texts) and kind is ast.Add):
            raise Refused("TypeError: of texts there is only the sum")
        sizes = [len(side) for side in (left, right) if isinstance(side, str | list | tuple)]
        if kind is ast.Mult and sizes:
            count = right if isinstance(left, list | tuple) else left
            sizes.append((int(count) - 1) * sizes[0])
        if sum(sizes) > _MOST_ITEMS:
            raise Refused(f"MemoryError: more than {_MOST_ITEMS:,} items")
        sizes_of = bits(left), bits(right)
        if kind is ast.Pow and bits(right):
            _check_power(left, right)
        elif kind is ast.Mult and sum(sizes_of) > _MOST_BITS:
            raise Refused("OverflowError: the number is too large")
        return OPERATIONS[kind](left, right)

    def changed(self, kind: type[ast.operator], before: Any, more: Any) -> Any:
        """What `before` is after `+=` and the like; a list stays the same one, whatever other names it has."""
        if not isinstance(before, list):
            return self.operated(kind, before, more)
        before[:] = self.operated(kind, before, list(self.items(more)) if kind is ast.Add else more)
        return before

    def items(self, value: Any) -> Iterator[Any]:
        """Of what can be iterated over, each a step."""
        if isinstance(value, Named | Module | ast.AST):
            raise TypeError("not iterable")
        for number, item in enumerate(value):
            self.step()
            if number >= _MOST_ITEMS and not isinstance(value, range):
                raise Refused(f"MemoryError: more than {_MOST_ITEMS:,} items")
            yield item

    def bounded(self, value: Any) -> Any:
        """What Python's own functions return, as a value."""
        if isinstance(value, str | list) and len(value) > _MOST_ITEMS:
            raise Refused(f"MemoryError: more than {_MOST_ITEMS:,} items")
        return value if value is None or isinstance(value, str | bool | int | float) else self.checked(value)

    def no_text(self, value: Any, depth: int = 0) -> Any:
        """A value that holds no text: SymPy would evaluate it."""
        self.step()
        if isinstance(value, self.values) or value is None or isinstance(value, bool | int | float | complex | range):
            return value
        if isinstance(value, dict) and depth < 6:
            kept = depth == 0  # the keywords of a call
            return {k if kept and isinstance(k, str) else self.no_text(k, depth + 1): self.no_text(v, depth + 1)
                    for k, v in value.items()}  # fmt: skip
        if isinstance(value, list | tuple | set) and depth < 6:
            return type(value)(self.no_text(each, depth + 1) for each in value)
        raise Refused(f"TypeError: SymPy is given no {type(value).__name__} here")

    def checked(self, value: Any) -> Any:
        """What SymPy returns, as a value."""
        if isinstance(value, GeneratorType | itertools.chain | map | filter | zip):
            return list(self.items(value))
        if isinstance(value, self.sympy.core.function.UndefinedFunction):
            return Named(value.__name__, value)
        if isinstance(value, type({}.keys()) | type({}.values()) | type({}.items()) | frozenset):
            return list(value)
        if isinstance(value, self.values) or value is None or type(value) in _ANY:
            return value
        if isinstance(value, tuple):
            return tuple(map(self.checked, value))
        if isinstance(value, dict):
            return dict(value)
        raise Refused(f"TypeError: {type(value).__name__} is no value here")

    def text(self, value: Any) -> str:
        """As it is printed."""
        if isinstance(value, list | tuple | set | dict):
            self._no_cycle(value, 0)
        return self.bounded(str(value))

    def _no_cycle(self, value: Any, depth: int) -> None:
        self.step()
        if depth > 20:
            raise Refused("RecursionError: too deeply nested")
        if isinstance(value, list | tuple | set | dict):
            for item in value.values() if isinstance(value, dict) else value:
                self._no_cycle(item, depth + 1)


_ANY = {bool, int, float, complex, str, list, set, tuple, range}


def bits(value: Any) -> int:
    """Of a whole number or fraction; 0 for anything else."""
    if isinstance(value, int):
        return value.bit_length()
    numerator, denominator = getattr(value, "p", None), getattr(value, "q", None)
    if isinstance(numerator, int) and isinstance(denominator, int):
        return max(numerator.bit_length(), denominator.bit_length())
    return 0


def _check_power(base: Any, exponent: Any) -> None:
    """Refuse powers of numbers that have too many digits."""
    size = bits(base)
    if size > 1 and (bits(exponent) > 30 or abs(float(exponent)) * size > _MOST_BITS):
        raise Refused("OverflowError: the number is too large")
