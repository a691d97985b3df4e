"""Builds a `RunConfig` out of layers and remembers which layer each value came from."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from mlxmath.config.schema import RunConfig, Section
from mlxmath.errors import InputError

Values = Mapping[str, Any]  # "section.field" -> value


@dataclass(frozen=True)
class Resolved:
    """A configuration and, for each "section.field", the layer that set it."""

    config: RunConfig
    origin: Mapping[str, str]

    def lines(self, sections: tuple[str, ...]) -> list[str]:
        """One line a value of `sections`: name, value, origin."""
        rows = [
            (f"{section}.{name}", value)
            for section in sections
            for name, value in getattr(self.config, section).model_dump(mode="json").items()
        ]
        width = max(len(name) for name, _ in rows)
        shown = [(name, "-" if value is None else _text(value)) for name, value in rows]
        value_width = max(len(text) for _, text in shown)
        return [f"  {name:{width}}  {text:{value_width}}  {self.origin[name]}" for name, text in shown]


def resolve(layers: list[tuple[str, Values]]) -> Resolved:
    """Merge `layers`, weakest first, over the schema's defaults.

    Args:
        layers: pairs of a name for people ("--debug", "option") and values by "section.field".

    Raises:
        InputError: an unknown name (the nearest known one is given) or a value outside its limits.
    """
    sections: dict[str, type[Section]] = {
        name: field.annotation  # type: ignore[misc]
        for name, field in RunConfig.model_fields.items()
    }
    origin = {f"{s}.{f}": "default" for s, model in sections.items() for f in model.model_fields}
    merged: dict[str, dict[str, Any]] = {section: {} for section in sections}
    for layer, values in layers:
        for name, value in values.items():
            if name not in origin:
                near = difflib.get_close_matches(name, origin, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise InputError(f"{layer}: unknown setting {name!r}{hint}")
            section, field = name.split(".")
            merged[section][field] = value
            origin[name] = layer
    try:
        return Resolved(RunConfig.model_validate(merged), origin)
    except ValidationError as error:
        raise InputError("; ".join(_sentence(detail, origin) for detail in error.errors())) from None


def option_name(name: str) -> str:
    """The option of a "section.field": `--rank` of the LoRA section is called `--lora-rank`."""
    section, field = name.split(".")
    return f"--{section}-{field}".replace("_", "-") if section == "lora" else f"--{field}".replace("_", "-")


def _sentence(detail: Any, origin: Mapping[str, str]) -> str:
    name = ".".join(str(part) for part in detail["loc"][:2])
    where = f"{option_name(name)} ({origin.get(name, 'option')})"
    message = detail["msg"][0].lower() + detail["msg"][1:]
    return f"{where}: {message.removeprefix('value error, ')}; found {detail['input']!r}"


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
