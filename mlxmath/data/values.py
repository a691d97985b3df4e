"""The values of a row's columns as text."""

import math
import re
from decimal import Decimal
from typing import Any

_HALF_A_CHARACTER = re.compile("[\ud800-\udfff]")


class SkippedRowError(Exception):
    """A row that cannot be trained on; the message is the reason, the same for all rows of its kind."""


def text_of(value: Any, what: str) -> str | None:
    """Text as it is, a number as text, NaN (an empty cell) as None, a list of one value as that value.

    Raises:
        SkippedRowError: it is anything else, or text with half a character (a lone surrogate), which has no bytes.
    """
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, str):
        if not value.isascii() and _HALF_A_CHARACTER.search(value):
            raise SkippedRowError(f"{what} with half a character (a lone surrogate)")
        return value
    if value is None:
        return None
    if isinstance(value, Decimal):
        return None if value.is_nan() else format(value, "f")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return None if math.isnan(value) else str(value)
    raise SkippedRowError(f"{what} is not text")
