"""Builds a `RunConfig` out of layers and remembers which layer each value came from."""

import difflib
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from mlxmath.config.explain import nearest, sentence, validate
from mlxmath.config.schema import RunConfig
from mlxmath.config.section import Section
from mlxmath.config.toml import Place, line_of, read_toml, write_toml
from mlxmath.errors import InputError

Values = Mapping[str, Any]  # "section.field" -> value

RECIPE_FOLDER = Path(__file__).parent / "recipes"
RECIPES = tuple(sorted(path.stem for path in RECIPE_FOLDER.glob("*.toml")))
RUN_FILE = "run.toml"
"""In the adapter folder: all settings, as a file that repeats the run."""
TRAINED_FROM = ("model", "data", "lora", "training", "runtime")
"""The sections that a fine-tuning uses."""

_ONE_OF = (
    ("data.template", "data.template_file"),
    ("training.warmup_steps", "training.warmup_ratio"),
    ("training.validation_split", "training.validation_dataset"),
)
"""Settings that exclude each other: a layer that sets one of them unsets the others of weaker layers."""
_OF_ONE_DATASET = (
    "data.dataset_config", "data.dataset_revision", "data.split", "data.question_column", "data.solution_column",
    "data.answer_column", "data.solutions", "data.filters", "data.balance",
)  # fmt: skip
_BELONGS_TO: Mapping[str, tuple[str, ...]] = {
    "model.model": ("model.revision",),
    "data.dataset": ("data.sources", *_OF_ONE_DATASET),
    "data.sources": ("data.dataset", *_OF_ONE_DATASET),
}
"""What weaker layers say of their model or dataset does not hold for that of a stronger one."""
_OF_ONE_RUN = ("training.resume", "model.overwrite")
"""Settings that a run that repeats another does not share."""


class Layer(NamedTuple):
    """Settings from one place."""

    name: str
    """For people: "option", "--set", "my.toml"."""
    values: Values
    text: str | None = None
    """The file that they were read from, to tell lines."""

    def where(self, name: str, rest: Place = ()) -> str:
        """How to find a setting in its layer: an option's name, a line and a key."""
        key = ".".join(map(str, (name, *rest)))
        if self.name in ("option", "default"):
            return f"{option_name(name)} ({self.name})"
        if self.name == "--set":
            return f"--set {key}"
        line = line_of(self.text or "", (*name.split("."), *rest))
        return f"{self.name}, line {line}: {key}" if line else f"{self.name}: {key}"


@dataclass(frozen=True)
class Resolved:
    """A configuration and, for each "section.field", the layer that set it."""

    config: RunConfig
    origin: Mapping[str, str]
    layers: Mapping[str, Layer]
    """By name."""

    def where(self, name: str) -> str:
        """Where a "section.field" was set, for errors."""
        layer = self.layers.get(self.origin[name])
        return layer.where(name) if layer else f"{name} (default)"

    def others(self, sections: tuple[str, ...]) -> list[str]:
        """The sections besides these in which something was set."""
        changed = (name.split(".")[0] for name, origin in self.origin.items() if origin != "default")
        return list(dict.fromkeys(section for section in changed if section not in sections))

    def lines(self, sections: tuple[str, ...]) -> list[str]:
        """One line a value of `sections`: name, value, origin."""
        rows = [
            (f"{section}.{name}", value)
            for section, values in self._used(sections).items()
            for name, value in values.items()
        ]
        width = max(len(name) for name, _ in rows)
        shown = [(name, line) for name, value in rows for line in _texts(value)]
        value_width = max(len(text) for _, text in shown if len(text) <= 60)
        return [f"  {name:{width}}  {text:{value_width}}  {self.origin[name]}" for name, text in shown]

    def as_toml(self, sections: tuple[str, ...], replaced: Values) -> str:
        """A TOML file of all values of `sections`, those in `replaced` instead, that repeats the run."""
        values = self._used(sections)
        for name in _OF_ONE_RUN:
            section, field = name.split(".")
            values.get(section, {}).pop(field, None)
        for name, value in replaced.items():
            section, field = name.split(".")
            values[section][field] = value
        return write_toml(values)

    def _used(self, sections: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        """The values that count: of a dataset and a mixture of sources only one does."""
        values = {section: getattr(self.config, section).model_dump(mode="json") for section in sections}
        idle = ("data.dataset", *_OF_ONE_DATASET) if self.config.data.sources else ("data.sources",)
        for name in idle:
            values.get("data", {}).pop(name.split(".")[1], None)
        return values


def setting_names() -> dict[str, Any]:
    """All "section.field" and the type of each."""
    return {
        f"{section}.{field}": info.annotation
        for section, model in _sections().items()
        for field, info in model.model_fields.items()
    }


def _sections() -> dict[str, type[Section]]:
    return {name: field.annotation for name, field in RunConfig.model_fields.items()}  # type: ignore[misc]


def file_layer(path: Path, name: str | None = None, option: str = "--config") -> Layer:
    """The settings in a TOML file.

    Raises:
        InputError: it cannot be read, or has something that is not a section's table.
    """
    values: dict[str, Any] = {}
    contents = read_toml(path, option)
    text = path.read_text(encoding="utf-8")
    layer = Layer(name or str(path), values, text)
    for key, value in contents.items():
        if key == "description" and isinstance(value, str):
            continue
        if key in _sections() and not isinstance(value, dict):
            raise InputError(f"{layer.where(key)}: expected a table, [{key}]; found {value!r}")
        if isinstance(value, dict) and key in _sections():
            values.update({f"{key}.{field}": inner for field, inner in value.items()})
        else:
            values[key] = value
    return layer


def recipe_path(name: str) -> Path:
    """The file of a recipe.

    Raises:
        InputError: there is none of that name; the nearest is given.
    """
    if name not in RECIPES:
        raise InputError(f"--recipe: no recipe {name!r}; there are {', '.join(RECIPES)}{nearest(name, RECIPES)}")
    return RECIPE_FOLDER / f"{name}.toml"


def recipe_layer(name: str, label: str | None = None) -> Layer:
    """The settings of a recipe, called `label` in origins."""
    return file_layer(recipe_path(name), label or f"recipe {name}", "--recipe")


def set_layer(assignments: typing.Iterable[str]) -> Layer:
    """The settings of `--set section.field=value`: a TOML value, or text as it is.

    Raises:
        InputError: there is no `=`.
    """
    types = setting_names()
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise InputError(f"--set: expected SECTION.FIELD=VALUE, for example lora.rank=16; found {assignment!r}")
        name = name.strip()
        values[name] = _parse(text.strip(), is_text=str in _alternatives(types.get(name)))
    return Layer("--set", values)


def _parse(text: str, *, is_text: bool) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except ValueError:
        return text
    value = parsed["value"] if len(parsed) == 1 else text
    return value if isinstance(value, str) or not is_text else text


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """The types that a field can have, without annotations."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _alternatives(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, type(int | None)):
        return tuple(inner for part in typing.get_args(annotation) for inner in _alternatives(part))
    return (annotation,)


def resolve(layers: typing.Sequence[tuple[str, Values] | Layer]) -> Resolved:
    """Merge `layers`, weakest first, over the schema's defaults.

    Args:
        layers: settings by "section.field" with the name of the place that they came from.

    Raises:
        InputError: an unknown name (the nearest known one is given), or a value of another type or outside its limits.
    """
    origin = dict.fromkeys(setting_names(), "default")
    merged: dict[str, dict[str, Any]] = {section: {} for section in _sections()}
    named = {layer[0]: Layer(*layer) for layer in layers}
    for layer in named.values():
        for name in layer.values:
            if name not in origin:
                raise InputError(f"{layer.where(name)}: unknown setting{_near_setting(name, origin)}")
        _check_one_dataset(layer)
        for name in _overruled(layer.values):
            section, field = name.split(".")
            merged[section].pop(field, None)
            origin[name] = "default"
        for name, value in layer.values.items():
            section, field = name.split(".")
            merged[section][field] = value
            origin[name] = layer.name
    try:
        resolved = Resolved(validate(RunConfig, merged), origin, named)
    except ValidationError as error:
        wrong = []
        for detail in error.errors():
            place = detail["loc"]
            name = f"{place[0]}.{place[1]}"
            layer = named.get(origin.get(name, ""), Layer("default", {}))
            wrong.append(f"{layer.where(name, place[2:])}: {sentence(detail, RunConfig)}")
        raise InputError("; ".join(wrong)) from None
    for name in _OF_ONE_DATASET:
        if resolved.config.data.sources and origin[name] != "default":
            raise InputError(
                f"{resolved.where(name)}: describes data.dataset, but the data come from data.sources "
                f"({origin['data.sources']}); say it of a source there, or name a dataset."
            )
    return resolved


def _check_one_dataset(layer: Layer) -> None:
    """A layer names a dataset or a mixture."""
    if layer.values.get("data.sources") and layer.values.get("data.dataset"):
        raise InputError(f"{layer.where('data.dataset')}: excludes data.sources; give one of them.")


def _overruled(values: Values) -> list[str]:
    """Settings of weaker layers that those in `values` make void."""
    void = [other for group in _ONE_OF for name in group if values.get(name) for other in group if other != name]
    for owner, belonging in _BELONGS_TO.items():
        void += belonging if owner in values else ()
    return void


def _near_setting(name: str, names: typing.Iterable[str]) -> str:
    """The nearest "section.field", by the whole name or, for a name without its section, by the field alone."""
    by_field = {full.split(".")[1]: full for full in names}
    near = difflib.get_close_matches(name, list(names), n=1) or [
        by_field[field] for field in difflib.get_close_matches(name.rpartition(".")[2], list(by_field), n=1)
    ]
    return f"; did you mean {near[0]!r}?" if near else ""


def option_name(name: str) -> str:
    """The option of a "section.field": `--rank` of the LoRA section is called `--lora-rank`."""
    section, _, field = name.rpartition(".")
    return f"--{section}-{field}".replace("_", "-") if section == "lora" else f"--{field}".replace("_", "-")


def _texts(value: Any) -> list[str]:
    """A value for people: one line, or one for each table of a list."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [" ".join(f"{k}={_texts(v)[0]}" for k, v in item.items() if v not in (None, [])) for item in value]
    if isinstance(value, list):
        return [",".join(map(str, value)) or "-"]
    if isinstance(value, dict):
        return [", ".join(f"{k}={v}" for k, v in value.items()) or "-"]
    return ["-" if value is None else str(value)]
