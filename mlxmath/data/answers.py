"""Where a row states its answer: in a column, or inside an object."""

from collections.abc import Mapping, Sequence
from typing import Any

from mlxmath.data.names import INSIDE_ANSWER, INSIDE_HOLDER
from mlxmath.data.options import chosen_of
from mlxmath.data.values import SkippedRowError, text_of
from mlxmath.runtime.files import parse_json


def answer_among(row: Mapping[str, Any], answer: str | None, holder: str | None, options: str | None) -> str | None:
    """The answer of a row; None where there is none, or no single text (several answers, true or false).

    Args:
        row: of a dataset.
        answer: the column that is the answer.
        holder: a column of objects of which an entry may be the answer.
        options: the column of the options to choose from.
    """
    value = inside(row.get(answer)) if answer else None
    if holder:
        value = inside(found := row.get(holder), INSIDE_HOLDER)
        value = None if value is found else value
    try:
        return text_of(chosen_of(value, row.get(options)) if options else value, "answer")
    except SkippedRowError:
        return None


def inside(value: Any, names: Sequence[str] = INSIDE_ANSWER) -> Any:
    """The answer in an object, also one written as JSON; anything else as it is."""
    entries = value
    if isinstance(value, str) and value.startswith("{") and any(f'"{name}"' in value for name in names):
        try:
            entries = parse_json(value)
        except ValueError:
            return value
    if isinstance(entries, Mapping):
        return next((entries[name] for name in names if entries.get(name) is not None), value)
    return value
