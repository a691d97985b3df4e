"""Reads and writes TOML, and tells in which line something stands."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlxmath.errors import InputError

_HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?")
_KEY = re.compile(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")

Place = tuple[str | int, ...]
"""Keys and indexes that lead to a value."""


def read_toml(path: Path, option: str) -> dict[str, Any]:
    """Parse a TOML file.

    Args:
        path: the file.
        option: what the user named it with, for errors.

    Raises:
        InputError: it is absent, unreadable or not TOML.
    """
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise InputError(f"{option}: {path} does not exist; expected a TOML file.") from None
    except OSError as error:
        raise InputError(f"{option}: {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise InputError(f"{option}: {path} is not TOML: {error}.") from None


def write_toml(values: Mapping[str, Any]) -> str:
    """TOML text of nested values; those that are None, which TOML cannot say, are left out."""
    import tomli_w

    return tomli_w.dumps(_without_none(values))


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_without_none(inner) for inner in value]
    return value


def line_of(text: str, place: Place) -> int | None:
    """The line, from 1, in which the value at `place` is set; where it has none of its own, that of what holds it."""
    best, best_length = None, 0
    for number, found in _places(text.splitlines()):
        if len(found) > best_length and found == place[: len(found)]:
            best, best_length = number, len(found)
    return best


def _places(lines: Iterable[str]) -> Iterable[tuple[int, Place]]:
    """The line of each table and key. (Values of several lines may look like keys; these only add places.)"""
    table: Place = ()
    counts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if header := _HEADER.fullmatch(line):
            table = _keys(header[2])
            if header[1] == "[[":
                index = counts[header[2]] = counts.get(header[2], -1) + 1
                table = (*table, index)
            yield number, table
        elif key := _KEY.match(line):
            yield number, (*table, *_keys(key[1]))


def _keys(dotted: str) -> Place:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))
