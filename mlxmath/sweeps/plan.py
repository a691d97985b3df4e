"""Which runs a sweep has: configurations, each with all seeds, and the command lines that a person would type."""

import itertools
import json
import math
import random
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxmath.config.load import Layer, recipe_layer, resolve
from mlxmath.config.schema import RunConfig
from mlxmath.errors import InputError
from mlxmath.evaluation.benchmarks import named
from mlxmath.sweeps.file import EVALUATE, Choice, Dimension, SweepFile, label_of, ranked_by, takes

_MOST = 1000
_LONGEST_NAME = 60
_DRAWS = 100
"""Draws for each run that is another one; a few values give no more."""
_WORD = re.compile(r"[A-Za-z][\w./:-]*")
ADAPTERS = "adapters"


@dataclass(frozen=True)
class Stage:
    """One command of a run."""

    method: str
    folder: Path
    arguments: tuple[str, ...]
    """All but what says how far it goes now."""

    @property
    def command(self) -> str:
        """As a person would type it."""
        return shlex.join(["mlxmath", *self.arguments])


@dataclass(frozen=True)
class Run:
    """A configuration with one seed: its stages, of which the last one's adapters count."""

    seed: int
    stages: tuple[Stage, ...]

    @property
    def folder(self) -> Path:
        """Of the adapters that it comes to."""
        return self.stages[-1].folder


@dataclass(frozen=True)
class Configuration:
    """A choice of everything that varies."""

    number: int
    """From 1."""
    label: str
    values: Mapping[str, Any]
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Plan:
    """Everything that a sweep does.

    Attributes:
        rungs: steps after which the best configurations go on; None: to the end.
        keep: configurations that each rung begins with.
        files: the settings that the commands name, by path.
        evaluation: arguments of the evaluation, without its adapters; None if there is none.
        is_measured: whether all runs measure on what they hold out.
    """

    file: SweepFile
    folder: Path
    configurations: tuple[Configuration, ...]
    rungs: tuple[int | None, ...]
    keep: tuple[int, ...]
    files: Mapping[Path, Mapping[str, Any]]
    evaluation: tuple[str, ...] | None
    is_measured: bool

    @property
    def identity(self) -> dict[str, Any]:
        """What a sweep that goes on must share with the one that it continues."""
        found = {
            "commands": [stage.command for one in self.configurations for run in one.runs for stage in run.stages],
            "settings": {path.name: dict(values) for path, values in self.files.items()},
            "rungs": list(self.rungs), "keep": list(self.keep), "search": self.file.outline.search,
            "evaluation": self.evaluation and shlex.join(self.evaluation),
        }  # fmt: skip
        same: dict[str, Any] = json.loads(json.dumps(found, default=str))
        return same


def plan_of(file: SweepFile, folder: Path) -> Plan:
    """The plan of a file, all of whose settings are right.

    Raises:
        InputError: a setting of some run is wrong; there is nothing to compare the runs by; the rungs do not fit.
    """
    chosen = _chosen(file)
    if len(chosen) * len(file.outline.seeds) > _MOST:
        raise InputError(
            f"{file.path}: these are {len(chosen) * len(file.outline.seeds):,} runs; at most {_MOST:,} are taken. Draw "
            'some of them with search = "random" and runs.'
        )
    bases = {stage: folder / f"{stage}.toml" for stage, table in file.tables.items() if table.values}
    maker = _Maker(file, folder, bases)
    made = tuple(maker.configuration(number, choices) for number, choices in enumerate(chosen, 1))
    is_measured = all(config.training.validation_split is not None or config.training.validation_dataset is not None
                      for config in maker.last)  # fmt: skip
    evaluation = _evaluation(file, folder, bases, maker.last)
    if not is_measured and (evaluation is None or file.outline.halving):
        raise InputError(
            f"{file.path}: there is nothing to compare the runs by; hold problems out (training.validation_split or "
            "training.validation_dataset)" + (", or add [evaluate]." if not file.outline.halving else ".")
        )
    metrics = set(map(ranked_by, (run.stages[-1].method for one in made for run in one.runs), maker.last))
    if len(metrics) > 1 and (evaluation is None or file.outline.halving):
        raise InputError(
            f"{file.path}: runs that end in {' or '.join(sorted(metrics))} cannot be ranked among each other; give the "
            "same training.validation_metric to all" + (", or add [evaluate]." if not file.outline.halving else ".")
        )
    rungs, keep = _rungs(file, made, maker.last)
    files = {path: _nested(file.tables[stage].values) for stage, path in bases.items()}
    return Plan(file, folder, made, rungs, keep, files, evaluation, is_measured)


def _chosen(file: SweepFile) -> list[tuple[Choice, ...]]:
    """Of each configuration a choice of every dimension, the first one first."""
    dimensions, outline = file.dimensions, file.outline
    if outline.search == "random":
        return _drawn(dimensions, outline.runs or 1, outline.seed)
    if outline.search == "grid":
        return list(itertools.islice(itertools.product(*(one.choices for one in dimensions)), _MOST + 1))
    base = tuple(one.choices[0] for one in dimensions)
    others = [(i, choice) for i, one in enumerate(dimensions) for choice in one.choices[1:]]
    return [base, *(tuple(choice if i == at else own for i, own in enumerate(base)) for at, choice in others)]


def _drawn(dimensions: Sequence[Dimension], count: int, seed: int) -> list[tuple[Choice, ...]]:
    """Different ones, as many as there are; the same for the same seed."""
    source = random.Random(seed)
    found: dict[str, tuple[Choice, ...]] = {}
    for _ in range(count * _DRAWS):
        drawn = tuple(_draw(one, source) for one in dimensions)
        found.setdefault(json.dumps([[one.values, one.stages] for one in drawn], default=str), drawn)
        if len(found) == count:
            break
    return list(found.values())


def _draw(one: Dimension, source: random.Random) -> Choice:
    if one.range is None:
        return source.choice(one.choices)
    low, high = one.range.low, one.range.high
    value: float = (
        math.exp(source.uniform(math.log(low), math.log(high))) if one.range.log else source.uniform(low, high)
    )
    if one.whole:
        value = source.randint(int(low), int(high))
    else:
        value = min(high, max(low, float(f"{value:.3g}")))
    return Choice(label_of(one.name, value), {one.name: value})


class _Maker:
    """Makes configurations; equal beginnings of runs are one stage."""

    def __init__(self, file: SweepFile, folder: Path, bases: Mapping[str, Path]) -> None:
        self._file, self._folder, self._bases = file, folder, bases
        self._made: dict[tuple[Any, ...], Stage] = {}
        self._recipes = {stage: [recipe_layer(table.recipe)] if table.recipe else [] for stage, table in
                         file.tables.items()}  # fmt: skip
        self.last: list[RunConfig] = []
        """Settings of the runs' last stages."""

    def configuration(self, number: int, choices: Sequence[Choice]) -> Configuration:
        """With all seeds."""
        labels = [one.label for one in choices if one.label]
        label = " ".join(labels) or "as it is"
        if self._file.outline.search == "ablation":
            first = [one.choices[0] for one in self._file.dimensions]
            label = " ".join(own.label for own, base in zip(choices, first, strict=True) if own is not base) or "base"
        values = {name: value for one in choices for name, value in one.values.items()}
        stages = next((one.stages for one in choices if one.stages), self._file.stages)
        name = f"{number:02d}-{re.sub(r'[^A-Za-z0-9.+-]+', '-', label).strip('-')[:_LONGEST_NAME]}"
        runs = tuple(self._run(name, values, stages, seed) for seed in self._file.outline.seeds)
        return Configuration(number, label, values, runs)

    def _run(self, name: str, values: Mapping[str, Any], stages: Sequence[str], seed: int) -> Run:
        found: list[Stage] = []
        for place, method in enumerate(stages):
            is_last = place == len(stages) - 1
            own = {
                key: value for key, value in values.items() if key.count(".") == 1 and takes(method, key)
            } | {key.removeprefix(f"{method}."): value for key, value in values.items()
                 if key.count(".") == 2 and key.startswith(f"{method}.")}  # fmt: skip
            config = self._resolved(method, own, seed)
            if is_last:
                self.last.append(config)
            table, before = self._file.tables[method], found[-1].folder if found else None
            arguments = [method]
            arguments += ["--recipe", table.recipe] if table.recipe else []
            arguments += ["--config", str(self._bases[method])] if method in self._bases else []
            for key, value in own.items():
                arguments += ["--set", _assignment(key, value)]
            arguments += ["--seed", str(seed)]
            arguments += ["--init-adapter", str(before)] if before else []
            if config.training.validation_split is not None or config.training.validation_dataset is not None:
                arguments.append("--row-losses")
            beginning = (*arguments, before)
            if beginning not in self._made:
                own_folder = self._folder / ADAPTERS / f"{name}-seed-{seed}{'' if is_last else f'-{method}'}"
                made = Stage(method, own_folder, (*arguments, "--adapter-path", str(own_folder)))
                self._made[beginning] = made
            found.append(self._made[beginning])
        return Run(seed, tuple(found))

    def _resolved(self, method: str, own: Mapping[str, Any], seed: int) -> RunConfig:
        label = f"{self._file.path.name} [{method}]"
        layers = [*self._recipes[method], Layer(label, self._file.tables[method].values)]
        varied = Layer(f"{self._file.path.name} [vary]", {**own, "training.seed": seed})
        return resolve([*layers, varied]).config


def _rungs(
    file: SweepFile, made: Sequence[Configuration], last: Sequence[RunConfig]
) -> tuple[tuple[int | None, ...], tuple[int, ...]]:
    """The steps of each rung, and how many configurations begin it."""
    halving, count = file.outline.halving, len(made)
    if halving is None:
        return (None,), (count,)
    if any(len(run.stages) > 1 for one in made for run in one.runs):
        raise InputError(f"{file.path}: halving: stops runs of one stage; these have several.")
    totals = {config.training.max_steps for config in last}
    (total,) = totals if len(totals) == 1 else (None,)
    if total is None:
        raise InputError(f"{file.path}: halving: needs the same training.max_steps in all runs; found {totals}.")
    factor = halving.factor
    rungs = halving.rungs or max(2, 1 + int(math.log(count, factor) + 1e-9))
    steps = [max(1, round(total / factor ** (rungs - 1 - i))) for i in range(rungs)]
    if len(set(steps)) < rungs:
        raise InputError(f"{file.path}: halving: {total} steps are too few for {rungs} rungs by a factor of {factor}.")
    keep = [max(1, -(-count // factor**i)) for i in range(rungs)]
    return (*steps[:-1], None), tuple(keep)


def _evaluation(
    file: SweepFile, folder: Path, bases: Mapping[str, Path], last: Sequence[RunConfig]
) -> tuple[str, ...] | None:
    table = file.tables.get(EVALUATE)
    if table is None:
        return None
    layers = [recipe_layer(table.recipe)] if table.recipe else []
    config = resolve([*layers, Layer(f"{file.path.name} [{EVALUATE}]", table.values)]).config
    for spec in config.evaluation.benchmark:  # it is asked when all runs are done, perhaps days later
        _, rows = named(spec, option := f"{file.path}: [{EVALUATE}] evaluation.benchmark")
        if rows and not Path(rows).expanduser().exists():
            raise InputError(f"{option}: {rows} does not exist.")
    places = {one.model.mlx_path for one in last}
    if places != {config.model.mlx_path}:
        raise InputError(
            f"{file.path}: [{EVALUATE}] model.mlx_path: expected that of all runs ({', '.join(sorted(places))}); found "
            f"{config.model.mlx_path}."
        )
    arguments = [EVALUATE, *(("--recipe", table.recipe) if table.recipe else ())]
    arguments += ["--config", str(bases[EVALUATE])] if EVALUATE in bases else []
    return (*arguments, "--compare", "--results-path", str(folder), "--run-name", "evaluation")


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        section, _, field = name.partition(".")
        found.setdefault(section, {})[field] = value
    return found


def _toml(value: Any) -> str:
    """A value as TOML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value, default=str)


def _assignment(name: str, value: Any) -> str:
    """What `--set` takes; a word needs no quotes."""
    is_word = isinstance(value, str) and _WORD.fullmatch(value) and value not in ("true", "false", "inf", "nan")
    return f"{name}={value if is_word else _toml(value)}"
