"""The settings of a run, out of layers (recipe < file < --set < option or argument), and where each value came from."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from mlxmath.config.schema import SECTIONS, SETTINGS, RowsConfig, RunConfig, keyword, option_name
from mlxmath.config.section import line_of, nearest, no_such, plain_type, read_toml, sentence, texts, validate
from mlxmath.errors import InputError
from mlxmath.parsing import parse_toml

Values = Mapping[str, Any]
"""Settings by "section.field"."""

RECIPE_FOLDER = Path(__file__).parent / "recipes"
RECIPES = tuple(sorted(path.stem for path in RECIPE_FOLDER.glob("*.toml")))
TEMPLATES = tuple(sorted(path.stem for path in Path(__file__).parents[1].glob("data/prompt_templates/*.toml")))
RUN_FILE = "run.toml"
"""In the adapter folder: all settings, as a file that repeats the run."""
RUN = "run.json"
"""In the adapter folder: what the run was."""
TRAINED_FROM = ("model", "data", "lora", "training", "runtime")
"""The sections that a fine-tuning uses."""
CONVERTED_FROM = ("model", "data", "runtime")
"""Those that a conversion uses; the last two where bits are chosen by layer."""

_ONE_OF = (
    ("data.template", "data.template_file"),
    ("training.warmup_steps", "training.warmup_ratio"),
    ("training.validation_split", "training.validation_dataset"),
)
"""Settings that exclude each other: a layer that sets one of them unsets the others of weaker layers."""
_OF_ONE_DATASET = tuple(
    f"data.{name}" for name in ("dataset_config", "dataset_revision", *RowsConfig.model_fields) if name != "dataset"
)
_BELONGS_TO: Mapping[str, tuple[str, ...]] = {
    "model.model": ("model.revision",),
    "data.dataset": ("data.sources", *_OF_ONE_DATASET),
    "data.sources": ("data.dataset", *_OF_ONE_DATASET),
}
"""What weaker layers say of their model or dataset does not hold for that of a stronger one."""
_OF_ONE_RUN = ("training.resume", "model.overwrite")
"""Settings that a run that repeats another does not share."""


class WrongSettingsError(InputError):
    """Settings have wrong values.

    Attributes:
        wrong: by "section.field", what is wrong with each, without its place.
    """

    def __init__(self, text: str, wrong: Mapping[str, str]) -> None:
        super().__init__(text)
        self.wrong = dict(wrong)


class Layer(NamedTuple):
    """Settings from one place."""

    name: str
    """For people: "option", "argument", "--set" (in Python "set="), "my.toml"."""
    values: Values
    text: str = ""
    """The file that they were read from, to tell lines."""

    def where(self, name: str, rest: Sequence[str | int] = ()) -> str:
        """How to find a setting in its layer: an option's or an argument's name, a line and a key."""
        if self.name in ("option", "default"):
            return f"{option_name(name)} ({self.name})"
        if self.name == "argument":
            return f"{'.'.join(map(str, (keyword(name), *rest)))}= (argument)"
        key = ".".join(map(str, (name, *rest)))
        if self.name in ("--set", "set="):
            return f"{self.name} {key}"
        line = line_of(self.text, (*name.split("."), *rest))
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
        return self.layers[self.origin[name]].where(name)

    def others(self, sections: tuple[str, ...]) -> list[str]:
        """The sections besides these in which something was set."""
        changed = (name.split(".")[0] for name, origin in self.origin.items() if origin != "default")
        return list(dict.fromkeys(section for section in changed if section not in sections))

    def lines(self, sections: tuple[str, ...]) -> list[str]:
        """One line a value of `sections`: name, value, origin."""
        shown = [(name, text) for name, value in self._used(sections).items() for text in texts(value)]
        width = max(len(name) for name, _ in shown)
        value_width = max(len(text) for _, text in shown if len(text) <= 60)
        return [f"  {name:{width}}  {text:{value_width}}  {self.origin[name]}" for name, text in shown]

    def as_toml(self, sections: tuple[str, ...], replaced: Values) -> str:
        """A TOML file of all values of `sections`, those in `replaced` instead, that repeats the run."""
        import tomli_w

        values = self._used(sections, exclude_none=True) | dict(replaced)
        kept = {name: value for name, value in values.items() if name not in _OF_ONE_RUN and value is not None}
        return tomli_w.dumps(_nested(kept))

    def _used(self, sections: tuple[str, ...], **kwargs: Any) -> dict[str, Any]:
        """The values that count: of a dataset and a mixture of sources only one does."""
        idle = ("data.dataset", *_OF_ONE_DATASET) if self.config.data.sources else ("data.sources",)
        return {
            f"{section}.{name}": value
            for section in sections
            for name, value in getattr(self.config, section).model_dump(mode="json", **kwargs).items()
            if f"{section}.{name}" not in idle
        }


def section_of(method: str) -> str:
    """The section with a method's own settings."""
    return "sft" if method == "train" else method.replace("-", "_")


def settings_from(
    sections: Sequence[str] = TRAINED_FROM, /, *, recipe: str | None = None, config: str | Path | None = None,
    set: Iterable[str] = (), debug: bool | None = False, origin: Literal["argument", "option"] = "argument",
    **settings: Any,
) -> Resolved:  # fmt: skip
    """The settings of a run, by the names of the options with `_` for `-`: `learning_rate=1e-4, lora_rank=16`.

    They count more than `set`, this more than the file, this more than the recipe. None is as if not given.

    Args:
        sections: those whose settings can be named.
        recipe: a published set-up.
        config: a TOML file.
        set: any settings, each as the text "section.field=value".
        debug: start from the recipe "debug".
        origin: what `settings` are called; errors name arguments or options accordingly.
        **settings: values by `keyword`.

    Raises:
        InputError: a name or a value is wrong.
    """
    layers = []
    named = str if origin == "option" else in_keywords
    try:
        if debug and recipe is not None:
            raise InputError("--debug is a recipe itself; give it or --recipe, not both.")
        if debug:
            layers.append(recipe_layer("debug", named("--debug")))
        if recipe is not None:
            layers.append(recipe_layer(recipe))
        if config is not None:
            layers.append(file_layer(Path(config).expanduser()))
        layers.append(set_layer(set, named("--set")))
        return resolve([*layers, Layer(origin, full_names(sections, settings))])
    except WrongSettingsError as error:
        raise WrongSettingsError(named(str(error)), {n: named(text) for n, text in error.wrong.items()}) from None
    except InputError as error:
        raise InputError(named(str(error))) from None


def full_names(sections: Sequence[str], settings: Values) -> dict[str, Any]:
    """Settings by `keyword`, by "section.field"; without those that are None.

    Raises:
        InputError: there is none of that name in `sections`; the nearest is given.
    """
    names = {keyword(name): name for name in SETTINGS if name.split(".")[0] in sections}
    for name in settings:
        if name not in names:
            raise InputError(f"{name}=: unknown setting{nearest(name, names)}")
    return {names[name]: value for name, value in settings.items() if value is not None}


def in_keywords(text: str) -> str:
    """A text that names options, for people who gave keyword arguments: lora_rank= for --lora-rank.

    What stands in backticks is a command, and stays.
    """

    names = r"`[^`]*`|(?<![\w-])--([a-z]+(?:-[a-z]+)*)"
    return re.sub(names, lambda found: found[1].replace("-", "_") + "=" if found[1] else found[0], text)


def file_layer(path: Path, name: str | None = None, option: str = "--config") -> Layer:
    """The settings in a TOML file.

    Raises:
        InputError: it cannot be read, or has something that is not a section's table.
    """
    values: dict[str, Any] = {}
    contents = read_toml(path, option)
    layer = Layer(name or str(path), values, path.read_text(encoding="utf-8"))
    contents.pop("description", None)
    for key, value in contents.items():
        if key not in SECTIONS:
            values[key] = value  # `resolve` refuses it
        elif isinstance(value, dict):
            values.update({f"{key}.{field}": inner for field, inner in value.items()})
        else:
            raise InputError(f"{layer.where(key)}: expected a table, [{key}]; found {value!r}")
    return layer


def recipe_path(name: str) -> Path:
    """The file of a recipe.

    Raises:
        InputError: there is none of that name; the nearest is given.
    """
    if name not in RECIPES:
        raise InputError(f"--recipe: {no_such('recipe', name, RECIPES)}")
    return RECIPE_FOLDER / f"{name}.toml"


def recipe_layer(name: str, label: str | None = None) -> Layer:
    """The settings of a recipe, called `label` in origins."""
    return file_layer(recipe_path(name), label or f"recipe {name}", "--recipe")


def set_layer(assignments: Iterable[str], label: str = "--set") -> Layer:
    """The settings of `--set section.field=value`: a TOML value, or text as it is; called `label` in origins.

    Raises:
        InputError: there is no `=`.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = map(str.strip, assignment.partition("="))
        if not equals:
            raise InputError(f"--set: expected SECTION.FIELD=VALUE, for example lora.rank=16; found {assignment!r}")
        try:
            found = parse_toml(f"value = {text}")
        except ValueError:
            found = {}
        is_text = name in SETTINGS and plain_type(SETTINGS[name].annotation) is str
        is_value = len(found) == 1 and (isinstance(found["value"], str) or not is_text)
        values[name] = found["value"] if is_value else text
    return Layer(label, values)


def resolve(layers: Sequence[tuple[str, Values] | Layer]) -> Resolved:
    """Merge `layers`, weakest first, over the schema's defaults.

    Args:
        layers: settings by "section.field" with the name of the place that they came from.

    Raises:
        InputError: an unknown name (the nearest known one is given), or a value of another type or outside its limits.
    """
    origin = dict.fromkeys(SETTINGS, "default")
    merged: dict[str, Any] = {}
    named = {"default": Layer("default", {}), **{layer[0]: Layer(*layer) for layer in layers}}
    for layer in named.values():
        for name in layer.values:
            if name not in SETTINGS:
                raise InputError(f"{layer.where(name)}: unknown setting{_nearest_setting(name)}")
        if layer.values.get("data.sources") and layer.values.get("data.dataset"):
            raise InputError(f"{layer.where('data.dataset')}: excludes data.sources; give one of them.")
        for name in _overruled(layer.values):
            merged.pop(name, None)
            origin[name] = "default"
        merged |= layer.values
        origin |= dict.fromkeys(layer.values, layer.name)
    try:
        config = validate(RunConfig, _nested(merged))
    except ValidationError as error:
        lines, wrong = [], dict[str, str]()
        for detail in error.errors():
            section, field, *rest = detail["loc"]
            name = f"{section}.{field}"
            wrong[name] = sentence(detail, RunConfig)
            lines.append(f"{named[origin[name]].where(name, rest)}: {wrong[name]}")
        raise WrongSettingsError("; ".join(lines), wrong) from None
    resolved = Resolved(config, origin, named)
    for name in _OF_ONE_DATASET:
        if config.data.sources and origin[name] != "default":
            why = (
                f"describes data.dataset, but the data come from data.sources ({origin['data.sources']}); say it of a "
                "source there, or name a dataset."
            )
            raise WrongSettingsError(f"{resolved.where(name)}: {why}", {name: why})
    template = config.data.template
    if config.data.template_file is None and template not in TEMPLATES:
        why = no_such("template", template, TEMPLATES)
        raise WrongSettingsError(f"{resolved.where('data.template')}: {why}", {"data.template": why})
    return resolved


def _nested(values: Values) -> dict[str, dict[str, Any]]:
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, field = name.split(".")
        sections.setdefault(section, {})[field] = value
    return sections


def _overruled(values: Values) -> list[str]:
    """Settings of weaker layers that those in `values` make void."""
    given = [(name, group) for group in _ONE_OF for name in group if values.get(name) is not None]  # 0 is, too
    void = [other for name, group in given for other in group if other != name]
    return void + [name for owner, belonging in _BELONGS_TO.items() if owner in values for name in belonging]


def _nearest_setting(name: str) -> str:
    """The nearest "section.field", by the whole name or, for a name without its section, by the field alone."""
    by_field = {full.split(".")[1]: full for full in SETTINGS}
    fields = difflib.get_close_matches(name.rpartition(".")[2], by_field, n=1)
    return nearest(name, SETTINGS) or "".join(f"; did you mean {by_field[field]!r}?" for field in fields)
