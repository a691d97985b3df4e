"""What is wrong with a value, in a sentence: what was expected, what was found, which name is the nearest."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mlxmath.errors import InputError

S = TypeVar("S", bound=BaseModel)

_USER = re.compile(r"//[^/@\s]+@")
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text in quotes",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
}


def validate(model: type[S], values: Mapping[str, Any]) -> S:
    """`values` as `model`. No type is turned into another but whole numbers into numbers and lists into tuples.

    Raises:
        ValidationError: see pydantic.
    """
    return model.model_validate_json(json.dumps(values, default=str), strict=True)


def check_section(model: type[S], values: Mapping[str, Any], where: Path) -> S:
    """The contents of a file as `model`.

    Raises:
        InputError: every wrong key and value, with what was expected.
    """
    try:
        return validate(model, values)
    except ValidationError as error:
        wrong = (f"{'.'.join(map(str, detail['loc']))}: {sentence(detail, model)}" for detail in error.errors())
        raise InputError(f"{where}: {'; '.join(wrong)}") from None


def sentence(detail: Any, model: type[BaseModel]) -> str:
    """What is wrong with one value, without its place.

    Args:
        detail: one of `ValidationError.errors()`.
        model: what was validated.
    """
    kind, found = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        *parents, name = detail["loc"]
        return f"unknown{nearest(str(name), fields_at(model, parents))}"
    if kind == "missing":
        return "is missing"
    if kind == "literal_error":
        choices = detail["ctx"]["expected"]
        names = [choice.strip().strip("'") for choice in choices.replace(" or ", ",").split(",")]
        return f"expected {choices}; found {found!r}{nearest(str(found), names)}"
    if kind in _EXPECTED:
        shown = f"the text {found!r}" if isinstance(found, str) else repr(found)
        hint = " (numbers stand without quotes)" if isinstance(found, str) and _is_number(found) else ""
        return f"expected {_EXPECTED[kind]}; found {shown}{hint}"
    message = detail["msg"][0].lower() + detail["msg"][1:]
    shown = _USER.sub("//[hidden]@", found) if isinstance(found, str) else found
    return f"{message.removeprefix('value error, ')}; found {shown!r}"


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing where no name is near."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def fields_at(model: Any, place: Iterable[str | int]) -> list[str]:
    """The fields of the model that lies at `place` in `model`, through lists and optional values."""
    import typing

    current = model
    for part in place:
        if isinstance(part, str):
            current = current.model_fields[part].annotation
        while typing.get_args(current):
            current = typing.get_args(current)[0]
    return list(current.model_fields) if hasattr(current, "model_fields") else []


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
