"""A sweep's file: what all runs share, what varies between them, and how they are compared."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from mlxmath.config.load import TRAINED_FROM, section_of
from mlxmath.config.schema import SETTINGS, RunConfig
from mlxmath.config.section import Section, check_section, nearest, read_toml, require
from mlxmath.errors import InputError

METHODS = ("train", "dpo", "reward-model", "grpo", "gkd")
EVALUATE = "evaluate"
STAGES = "stages"
_OURS = ("training.adapter_path", "training.resume", "training.pause_at", "training.row_losses", "model.overwrite")
"""Settings that a sweep sets itself."""
_RANGE = {"low", "high", "log"}


class Range(Section):
    """Values to draw from, evenly or, with `log`, evenly in their logarithm."""

    low: float
    high: Annotated[float, require(lambda high, others: high > others.get("low", high - 1), "expected more than low")]
    log: Annotated[
        bool, require(lambda log, others: not log or others.get("low", 1) > 0, "a range by logarithm begins above 0")
    ] = False


class Halving(Section):
    """Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943): after each rung the best go on."""

    factor: Annotated[int, Field(ge=2)] = 2
    rungs: Annotated[int, Field(ge=2)] | None = None


class Outline(Section):
    """What a file says besides its tables of settings."""

    description: str = ""
    search: Literal["grid", "random", "ablation"] = "grid"
    runs: Annotated[int, Field(ge=1, le=1000)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = (0,)
    deadline_hours: Annotated[float, Field(gt=0)] | None = None
    stages: tuple[str, ...] | None = None
    halving: Halving | None = None


@dataclass(frozen=True)
class Choice:
    """One value of a dimension.

    Attributes:
        label: for people, for example "rank=16".
        values: settings by "section.field", or "stage.section.field" for one stage alone.
        stages: what the run consists of (None: as the file says).
    """

    label: str
    values: Mapping[str, Any]
    stages: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Dimension:
    """What varies: a list of choices, or a range to draw from."""

    name: str
    choices: tuple[Choice, ...] = ()
    range: Range | None = None
    whole: bool = False
    """Whether a range is one of whole numbers."""


@dataclass(frozen=True)
class Table:
    """What all runs of a stage share."""

    recipe: str | None
    values: Mapping[str, Any]


@dataclass(frozen=True)
class SweepFile:
    """A file, read and checked as far as that goes without the runs' settings."""

    path: Path
    outline: Outline
    tables: Mapping[str, Table]
    """By stage, `evaluate` among them."""
    dimensions: tuple[Dimension, ...]

    @property
    def stages(self) -> tuple[str, ...]:
        """What a run consists of where nothing varies it."""
        return self.outline.stages or tuple(name for name in self.tables if name != EVALUATE)


def read_sweep(path: Path) -> SweepFile:
    """Read a file.

    Raises:
        InputError: it cannot be read; something in it has no meaning.
    """
    contents = read_toml(path, "FILE")
    tables = {name: _table(path, name, contents.pop(name)) for name in (*METHODS, EVALUATE) if name in contents}
    varied, variants = contents.pop("vary", {}), contents.pop("variant", [])
    outline = check_section(Outline, contents, path)
    methods = [name for name in tables if name != EVALUATE]
    if not methods:
        raise InputError(f"{path}: says nothing to run; expected a table of settings, [{'], ['.join(METHODS)}].")
    if not isinstance(varied, dict) or not isinstance(variants, list):
        raise InputError(f"{path}: expected [vary] as a table and [[variant]] as tables.")
    if outline.stages is None and len(methods) > 1 and STAGES not in varied:
        raise InputError(f"{path}: has several stages; say in which order: stages = {methods}.".replace("'", '"'))
    _check_stages(path, outline.stages or (), methods)
    dimensions = [_dimension(path, name, value, methods) for name, value in _flat(path, "vary", varied)]
    if variants:
        found = [_variant(path, i, one, methods) for i, one in enumerate(variants)]
        plain = [Choice("", {})] if outline.search == "ablation" else []
        dimensions.append(Dimension("variant", (*plain, *found)))
    if outline.search == "random" and outline.runs is None:
        raise InputError(f"{path}: runs: is missing; say how many to draw at random.")
    for one in dimensions:
        if one.range and outline.search != "random":
            raise InputError(f'{path}: vary.{one.name}: a range is for search = "random"; give a list.')
    if len(set(outline.seeds)) != len(outline.seeds) or not outline.seeds:
        raise InputError(f"{path}: seeds: expected at least one, each once; found {list(outline.seeds)}")
    return SweepFile(path, outline, tables, tuple(dimensions))


def _table(path: Path, stage: str, table: Any) -> Table:
    if not isinstance(table, dict):
        raise InputError(f"{path}: {stage}: expected a table of settings, [{stage}].")
    recipe = table.pop("recipe", None)
    if not isinstance(recipe, str | None):
        raise InputError(f"{path}: {stage}.recipe: expected a name; found {recipe!r}")
    values: dict[str, Any] = {}
    for section, fields in table.items():
        if not isinstance(fields, dict):
            raise InputError(f"{path}: [{stage}] {section}: expected SECTION.FIELD, for example lora.rank.")
        values |= {f"{section}.{name}": value for name, value in fields.items()}
    for name in values:
        _check_ours(path, f"[{stage}] {name}", name)
    return Table(recipe, values)


def _flat(path: Path, where: str, table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of what is no table, ranges whole, settings that are tables themselves too."""
    for key, value in table.items():
        name = f"{before}{key}"
        if isinstance(value, dict) and not (value and value.keys() <= _RANGE) and name not in SETTINGS:
            if before.count(".") > 1:
                raise InputError(f"{path}: {where}.{name}: expected SECTION.FIELD, for example lora.rank.")
            yield from _flat(path, where, value, f"{name}.")
        else:
            yield name, value


def _check_setting(path: Path, where: str, name: str, methods: list[str]) -> None:
    """Refuse a name that no stage takes.

    Raises:
        InputError: there is none of that name.
    """
    stage, _, rest = name.partition(".")
    one_stage = stage in methods and rest in SETTINGS
    setting = rest if one_stage else name
    if setting not in SETTINGS:
        raise InputError(f"{path}: {where}: unknown setting{nearest(name, SETTINGS)}")
    _check_ours(path, where, setting)
    if setting == "training.seed":
        raise InputError(f"{path}: {where}: varies with seeds = [0, 1, 2], which every configuration is run with.")
    if not any(takes(method, setting) for method in ([stage] if one_stage else methods)):
        raise InputError(f"{path}: {where}: has no use in {', '.join(methods)}.")


def takes(method: str, setting: str) -> bool:
    """Whether a stage uses a setting."""
    return setting.split(".")[0] in (*TRAINED_FROM, section_of(method))


def ranked_by(method: str, config: RunConfig) -> str:
    """What a run of a method measures on what it holds out, in words."""
    is_loss = method not in ("grpo", "gkd") and config.training.validation_metric != "answers"
    return f"a held-out loss of {method}" if is_loss else "a share of right answers"


def _check_ours(path: Path, where: str, name: str) -> None:
    if name in _OURS:
        raise InputError(f"{path}: {where}: the sweep sets it itself; leave it out.")


def _check_stages(path: Path, stages: Any, methods: list[str]) -> None:
    if not isinstance(stages, list | tuple) or any(stage not in methods for stage in stages):
        raise InputError(f"{path}: stages: expected some of the tables {', '.join(methods)}; found {stages!r}")


def _dimension(path: Path, name: str, value: Any, methods: list[str]) -> Dimension:
    where = f"vary.{name}"
    if name != STAGES:
        _check_setting(path, where, name, methods)
    if isinstance(value, dict) and name != STAGES:
        found = check_section(Range, value, path)
        whole = all(type(value[end]) is int for end in ("low", "high")) and not found.log
        return Dimension(name, range=found, whole=whole)
    if not isinstance(value, list) or not value:
        raise InputError(f"{path}: {where}: expected a list of values, or a range; found {value!r}")
    if name == STAGES:
        for stages in value:
            _check_stages(path, stages or None, methods)
        return Dimension(name, tuple(Choice("+".join(stages), {}, tuple(stages)) for stages in value))
    return Dimension(name, tuple(Choice(label_of(name, one), {name: one}) for one in value))


def label_of(name: str, value: Any) -> str:
    """A setting's value, short, for people."""
    stage, field = name.split(".")[:-2], name.split(".")[-1]
    return f"{'.'.join([*stage, field])}={_short(value)}"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return "+".join(map(_short, value))
    if isinstance(value, dict):
        return (
            Path(str(value["dataset"])).name if "dataset" in value else ",".join(f"{k}={v}" for k, v in value.items())
        )
    return str(value).lower() if isinstance(value, bool) else str(value)


def _variant(path: Path, number: int, table: Any, methods: list[str]) -> Choice:
    where = f"variant {number + 1}"
    name = table.pop("name", None) if isinstance(table, dict) else None
    if not isinstance(name, str) or not name:
        raise InputError(f"{path}: {where}: expected a table with a name and settings.")
    stages = table.pop(STAGES, None)
    if stages is not None:
        _check_stages(path, stages or None, methods)
    values = dict(_flat(path, where, table))
    for setting in values:
        _check_setting(path, f"{where}: {setting}", setting, methods)
    return Choice(name, values, stages and tuple(stages))
