"""What a program calls: functions and attributes by their names, with values that may pass."""

import ast
import builtins
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from typing import Any

from mlxmath.tools.names import ATTRIBUTES, MATH, SYMPY, words
from mlxmath.tools.tree import Refused
from mlxmath.tools.values import Gate, Module, Named, bits

_SYMBOLS = re.compile(r"\s*[A-Za-z](?:_?[A-Za-z0-9]){0,19}(?:[\s,]+[A-Za-z](?:_?[A-Za-z0-9]){0,19}){0,19}\s*")
BY_NAME = {"Symbol", "symbols", "Function", "Dummy"}
"""What makes symbols of names."""
_METHODS: Mapping[type, frozenset[str]] = {
    list: words("append copy count extend index insert pop remove reverse sort"),
    dict: words("copy get items keys pop values"),
    str: words("count index isdigit join lstrip rstrip strip"),
    tuple: words("count index"),
    int: words("bit_length real imag numerator denominator conjugate"),
    float: words("is_integer real imag"),
}
_BUILTINS = words(
    "abs all any bool dict divmod enumerate float int len list max min pow range reversed round set sorted str "
    "sum tuple zip"
)
_ITERTOOLS = words("combinations combinations_with_replacement permutations product")
_OF_SINGLETONS = words("Half Infinity One Zero Complexes Reals Integers Naturals Naturals0 Rationals EmptySet")


def modules() -> dict[str, Module]:
    """What can be imported."""
    import sympy

    plain = lambda name, function: Named(name, function, is_plain=True)  # noqa: E731
    of_sympy = {
        name: Named(name, value) if callable(value) and not isinstance(value, sympy.Basic) else value
        for name in SYMPY if (value := getattr(sympy, name, None)) is not None
    }  # fmt: skip
    of_sympy["ln"] = Named("ln", sympy.log)
    of_math = {
        name: plain(name, value) if callable(value) else value
        for name in MATH if (value := getattr(math, name, None)) is not None
    }  # fmt: skip
    found = {
        "sympy": of_sympy,
        "math": of_math,
        "fractions": {"Fraction": Named("Fraction", sympy.Rational)},
        "itertools": {name: plain(name, getattr(itertools, name)) for name in _ITERTOOLS},
    }
    return {name: Module(name, names) for name, names in found.items()}


def known(found: Mapping[str, Module]) -> dict[str, Any]:
    """What programs know without an import."""
    plain = {name: Named(name, getattr(builtins, name), is_plain=True) for name in _BUILTINS}
    return {**found["sympy"].names, **plain, **found, "sp": found["sympy"]}


def of_module(module: Module, name: str) -> Any:
    """A name of a module.

    Raises:
        Refused: it has none of that name here.
    """
    if name not in module.names:
        raise Refused(f"ImportError: {module.name} has no {name[:40]!r} here")
    return module.names[name]


def call(gate: Gate, function: Named, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    """What a function returns.

    Raises:
        Refused: it is given what it may not have.
    """
    if function.is_plain:
        return _plain(gate, function, arguments, keywords)
    if function.name in BY_NAME and arguments and isinstance(arguments[0], str):
        if not _SYMBOLS.fullmatch(arguments[0]):
            raise Refused("ValueError: a symbol's name has up to twenty letters and digits")
        kind = keywords.pop("cls", None)
        more = {"cls": kind.function} if isinstance(kind, Named) and kind.name in BY_NAME else {}
        rest = gate.no_text(arguments[1:])
        return gate.checked(function.function(arguments[0], *rest, **gate.no_text(keywords), **more))
    return gate.checked(function.function(*gate.no_text(arguments), **gate.no_text(keywords)))


def call_method(gate: Gate, holder: Any, name: str, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    """What a value's method returns.

    Raises:
        Refused: the value has none of that name here, or it is given what it may not have.
    """
    method = attribute(gate, holder, name, called=True)
    if isinstance(holder, gate.values):
        return gate.checked(method(*gate.no_text(arguments), **gate.no_text(keywords)))
    if name in ("extend", "join"):
        arguments = [list(gate.items(arguments[0]))]
    return gate.bounded(method(*arguments, **keywords))


def _plain(gate: Gate, function: Named, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    """A function of Python, which is given no more items than are allowed."""
    name = function.name
    if name == "range":
        return range(*map(int, arguments))
    if name == "str":
        return gate.text(*arguments)
    if name == "pow" and len(arguments) == 2:
        return gate.operated(ast.Pow, *arguments)
    if name == "prod" and len(arguments) == 1:
        return reduce(lambda a, b: gate.operated(ast.Mult, a, b), gate.items(arguments[0]), 1)
    if name in ("factorial", "comb", "perm", "lcm") and any(bits(each) > 14 for each in arguments):
        raise Refused("OverflowError: the number is too large")
    if any(isinstance(each, str) for each in arguments) and name not in ("int", "float", "len"):
        raise Refused(f"TypeError: {name} takes no text")
    if name == "dict":
        arguments = [each.items() if isinstance(each, dict) else each for each in arguments]
    is_listed = [isinstance(each, Iterable) and not isinstance(each, str) and name != "len" for each in arguments]
    given = [list(gate.items(each)) if listed else each for each, listed in zip(arguments, is_listed, strict=True)]
    found = function.function(*given, **gate.no_text(keywords))
    return list(gate.items(found)) if isinstance(found, Iterator) else found


def attribute(gate: Gate, holder: Any, name: str, *, called: bool = False) -> Any:
    """An attribute that may be asked for; of SymPy's values a method is only called."""
    if isinstance(holder, Module):
        return of_module(holder, name)
    if isinstance(holder, Named):
        if holder.name == "S" and name in _OF_SINGLETONS:
            return getattr(gate.sympy.S, name)
        raise Refused(f"AttributeError: {holder.name} has no attribute {name[:40]!r} here")
    allowed = ATTRIBUTES if isinstance(holder, gate.values) else _METHODS.get(type(holder), frozenset())
    if name not in allowed:
        raise Refused(f"AttributeError: {type(holder).__name__} has no attribute {name[:40]!r} here")
    found = getattr(holder, name)
    if callable(found) and not isinstance(found, gate.values) and not called:
        raise Refused(f"TypeError: {name} is called, not used as a value")
    return found if called else gate.checked(found)
