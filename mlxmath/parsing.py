"""Texts of others: JSON and TOML whose every failure is a ValueError, and characters that no file can hold."""

import json
import re
import tomllib
from typing import Any

HALF_A_CHARACTER = re.compile(r"[\ud800-\udfff]")
"""A surrogate: half of a character of UTF-16, or a byte of an option that is not UTF-8."""

_MOST_PARTS = 200


def parse_json(text: str | bytes) -> Any:
    """`json.loads` whose every failure is a ValueError, that of a text nested too deeply too."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_toml(text: str) -> dict[str, Any]:
    """`tomllib.loads`, likewise; a name of very many parts would take it for ever."""
    if any(line.partition("=")[0].count(".") > _MOST_PARTS for line in text.splitlines()):
        raise ValueError("it is nested too deeply")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
