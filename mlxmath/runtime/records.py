"""JSON that others may have written: text into values, lines into dataclasses, their types checked."""

import json
import types
import typing
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


def parse_json(text: str | bytes) -> Any:
    """`json.loads` whose every failure is a ValueError, that of a text nested too deeply too."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_record(kind: Callable[..., T], line: str | bytes) -> T | None:
    """A JSON line as a dataclass, None unless it is an object with a value of the right type for each field."""
    try:
        row = parse_json(line)
    except ValueError:
        return None
    return kind(**{name: row[name] for name, _ in _kinds(kind)}) if fits(row, kind) else None


def fits(value: Any, kind: Callable[..., Any]) -> bool:
    """Whether a JSON value is an object with a value of the right type for each field of a class, and maybe others."""
    return isinstance(value, dict) and all(name in value and _is(value[name], types_) for name, types_ in _kinds(kind))


@cache
def _kinds(kind: Hashable) -> tuple[tuple[str, tuple[type, ...]], ...]:
    return tuple((name, _allowed(hint)) for name, hint in typing.get_type_hints(kind).items())


def _allowed(hint: Any) -> tuple[type, ...]:
    if isinstance(hint, types.UnionType):
        return tuple(one for part in typing.get_args(hint) for one in _allowed(part))
    return (float, int) if hint is float else (hint,)


def _is(value: Any, allowed: tuple[type, ...]) -> bool:
    return isinstance(value, allowed) and (bool in allowed or not isinstance(value, bool))
