"""What all groups of settings share: strict types, one sentence for what is wrong with a value, and files in TOML."""

import difflib
import os.path
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, LiteralString, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError, ValidationInfo
from pydantic_core import InitErrorDetails, PydanticCustomError, to_json

from mlxmath.errors import InputError
from mlxmath.parsing import HALF_A_CHARACTER, parse_toml

S = TypeVar("S", bound=BaseModel)

DEMO = "demo"
"""The bundled model, and its problems."""

_MOST_LINES = 1000
"""In longer files a place is not looked for, since they are read once up to each line."""
_PASSWORD = re.compile(r"//[^/@\s]+@")
_QUERY = re.compile(r"(://[^\s?]*\?)\S+")
"""Of a URL; keys stand there too."""
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


class Section(BaseModel):
    """A group of settings. Unknown keys are errors; values do not change after the run has started."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


def parts(value: object, separator: str = ",") -> object:
    """The parts of a text that lists several; a list of parts as it is."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(separator) if part.strip())
    return tuple(value) if isinstance(value, list) else value


Folder = Annotated[str, AfterValidator(os.path.expanduser)]
Names = Annotated[tuple[str, ...], BeforeValidator(parts)]
"""A list, or a text with commas."""


def require(holds: Callable[[Any, Mapping[str, Any]], object], otherwise: str) -> AfterValidator:
    """A rule for a setting: `holds(value, others)`, or an error that says `otherwise`.

    `others` are the settings above it in its section; one that is wrong itself is absent.
    """

    def check(value: Any, info: ValidationInfo) -> Any:
        if not holds(value, info.data):
            raise ValueError(otherwise)
        return value

    return AfterValidator(check)


def plain_type(annotation: Any) -> Any:
    """A setting's type without limits and None: `Annotated[int, ...] | None` is int."""
    while get_origin(annotation) in (Annotated, Union, types.UnionType):
        annotation = get_args(annotation)[0]
    return annotation


def validate(model: type[S], values: Mapping[str, Any]) -> S:
    """`values` as `model`. No type is turned into another but whole numbers into numbers, and paths into text.

    Raises:
        ValidationError: see pydantic.
    """
    if wrong := [
        InitErrorDetails(type=PydanticCustomError("unheard_of", why), loc=place, input=found)
        for place, why, found in _unheard_of(values)
    ]:
        raise ValidationError.from_exception_data(model.__name__, wrong)
    return model.model_validate_json(to_json(values, inf_nan_mode="constants", fallback=str), strict=True)


def _unheard_of(value: Any, *place: str | int) -> Iterator[tuple[tuple[str | int, ...], LiteralString, str]]:
    """The places of what no setting can be, why, and what stands there: text that no file could hold, huge numbers."""
    if isinstance(value, str):
        if "\0" in value or (not value.isascii() and HALF_A_CHARACTER.search(value)):
            yield place, "expected text that is UTF-8 and has no zero byte", value
    elif isinstance(value, int):
        if abs(value) >= 1 << 63:
            yield place, "expected a number below 2^63", f"{value.bit_length():,} bits"
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _unheard_of(inner, *place, key)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _unheard_of(inner, *place, number)


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
    """What is wrong with one value (of `ValidationError.errors()` of `model`), without its place."""
    kind, found = detail["type"], detail["input"]
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        *parents, name = detail["loc"]
        known: Any = model
        for key in parents:
            known = get_args(known)[0] if isinstance(key, int) else plain_type(known.model_fields[key].annotation)
        return f"unknown{nearest(str(name), known.model_fields)}"
    if kind == "literal_error":
        choices = detail["ctx"]["expected"]
        near = nearest(str(found), re.findall("'([^']*)'", choices))
        return f"expected {choices}; found {found!r}{near}"
    if kind in _EXPECTED:
        if not isinstance(found, str):
            return f"expected {_EXPECTED[kind]}; found {found!r}"
        is_number = re.fullmatch(r"[-+]?\d*\.?\d+(e[-+]?\d+)?", found, re.IGNORECASE)
        hint = " (numbers stand without quotes)" if is_number else ""
        return f"expected {_EXPECTED[kind]}; found the text {found!r}{hint}"
    message = detail["msg"].removeprefix("Value error, ")
    shown = without_passwords(found) if isinstance(found, str) else found
    return f"{message[0].lower()}{message[1:]}; found {shown!r}"


def without_passwords(text: str) -> str:
    """Addresses without what lets somebody in: `user:password@`, and what follows a `?`."""
    return _QUERY.sub(r"\1[hidden]", _PASSWORD.sub("//[hidden]@", text))


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing where no name is near."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def no_such(what: str, name: str, names: Iterable[str]) -> str:
    """`no recipe 'x'; there are a, b; did you mean 'a'?`"""
    return f"no {what} {name!r}; there are {', '.join(names)}{nearest(name, names)}"


def read_toml(path: Path, option: str) -> dict[str, Any]:
    """Parse a TOML file that the user named with `option`.

    Raises:
        InputError: it is absent, unreadable or not TOML.
    """
    try:
        return parse_toml(path.read_text(encoding="utf-8"))
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
    lines, begins = text.split("\n"), 1
    if not place or len(lines) > _MOST_LINES:
        return None
    for end in range(1, len(lines) + 1):
        try:
            value: Any = parse_toml("\n".join(lines[:end]))
        except ValueError:
            continue  # within a value of several lines
        try:
            for key in place:
                value = value[key]
            return begins
        except (KeyError, IndexError, TypeError):
            begins = end + 1
    return line_of(text, place[:-1])


def texts(value: Any) -> list[str]:
    """A value for people: one line, or one for each table of a list."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [" ".join(f"{k}={texts(v)[0]}" for k, v in item.items() if v not in (None, [])) for item in value]
    if isinstance(value, list):
        return [",".join(map(str, value)) or "-"]
    if isinstance(value, dict):
        return [", ".join(f"{k}={v}" for k, v in value.items()) or "-"]
    return ["-" if value is None else str(value)]
