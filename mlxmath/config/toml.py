"""Reads TOML, and tells in which line something stands."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlxmath.errors import InputError


def read_toml(path: Path, option: str) -> dict[str, Any]:
    """Parse a TOML file that the user named with `option`.

    Raises:
        InputError: it is absent, unreadable or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{option}: {path} does not exist; expected a TOML file.") from None
    except OSError as error:
        raise InputError(f"{option}: {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise InputError(f"{option}: {path} is not TOML: {error}.") from None


def line_of(text: str, place: Sequence[str | int]) -> int | None:
    """The line, from 1, in which the value at `place` is set; where it has none of its own, that of what holds it.

    Args:
        text: a whole TOML file.
        place: the keys and indexes that lead to the value.
    """
    if not place:
        return None
    lines, begins = text.split("\n"), 1
    for end in range(1, len(lines) + 1):
        try:
            value: Any = tomllib.loads("\n".join(lines[:end]))
        except ValueError:
            continue  # within a value of several lines
        try:
            for key in place:
                value = value[key]
            return begins
        except (KeyError, IndexError, TypeError):
            begins = end + 1
    return line_of(text, place[:-1])
