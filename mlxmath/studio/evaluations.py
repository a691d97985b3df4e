"""The evaluations in the folder, how far each is, and the command that starts another one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlxmath.data.datasets import BENCHMARKS
from mlxmath.errors import InputError, MlxmathError
from mlxmath.evaluation.samples import SETTINGS, answer_files, read_settings
from mlxmath.parsing import HALF_A_CHARACTER
from mlxmath.runtime.locks import holder
from mlxmath.runtime.sealed import unsealed_json
from mlxmath.studio.explorer import REPORT, RESULTS, check
from mlxmath.studio.place import Studio
from mlxmath.studio.remembered import state_of
from mlxmath.studio.tuned import argument

_MOST = {"limit": 1_000_000, "max_tokens": 32_768}


class Share(BaseModel):
    """A part of the problems, with its interval."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    value: float = Field(ge=0, le=1)
    low: float
    high: float


class Figures(BaseModel):
    """Of a contestant."""

    accuracy: Share


class Comparison(BaseModel):
    """Of two of them."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    base: str
    other: str
    difference: float
    low: float
    high: float
    p_value: float
    fixed: int
    broken: int
    total: int
    varied: str | None = None
    until_decided: dict[str, Any] | None = None


class Results(BaseModel):
    """What a page shows of results.json."""

    num_problems: int
    contestants: dict[str, Figures] = Field(min_length=1)
    comparisons: list[Comparison]


@dataclass(frozen=True)
class Evaluation:
    """One in a row of the list."""

    name: str
    """Its folder."""
    benchmarks: tuple[str, ...]
    labels: tuple[str, ...]
    state: str
    """"finished", "running", "stopped", "damaged"."""
    num_answers: int
    num_expected: int | None
    """All answers; None where that is not noted."""
    changed: float
    """When it was written to last, in seconds since 1970."""
    results: Results | None
    has_report: bool
    trouble: str = ""


def evaluations(studio: Studio) -> list[Evaluation]:
    """All of them, those first that were written to last."""
    folders = [folder for folder in studio.holding(SETTINGS) if not HALF_A_CHARACTER.search(str(folder))]
    found = [evaluation(studio, folder) for folder in folders]
    # settings without answers that are not an evaluation's are another program's
    own = [one for one, folder in zip(found, folders, strict=True) if one.state != "damaged" or answer_files(folder)]
    return sorted(own, key=lambda one: -one.changed)


def evaluation(studio: Studio, folder: Path) -> Evaluation:
    """The one in a folder."""
    name, files = studio.name(folder), answer_files(folder)
    changed = max((path.stat().st_mtime for path in (folder / SETTINGS, folder / RESULTS, *files) if path.exists()),
                  default=0.0)  # fmt: skip
    try:
        check(studio, folder)
        settings = _settings(folder, state_of(folder / SETTINGS))
        results = _results(folder, state_of(folder / RESULTS))
    except MlxmathError as error:
        return Evaluation(name, (), (), "damaged", 0, None, changed, None, False, str(error))
    num_answers = sum(_num_lines(path, state_of(path)) for path in files)
    labels = tuple(one["label"] for one in settings["contestants"])
    counts = [one.get("num_problems") for one in settings["benchmarks"]]
    is_noted = all(type(count) is int for count in counts)
    expected = sum(counts) * settings["samples"] * len(labels) if is_noted else None
    state = "running" if holder(folder) else "finished" if results else "stopped"
    return Evaluation(
        name, tuple(one["name"] for one in settings["benchmarks"]), labels, state, num_answers, expected, changed,
        results, (folder / REPORT).is_file(),
    )  # fmt: skip


@lru_cache(maxsize=256)
def _settings(folder: Path, _: object) -> dict[str, Any]:
    return read_settings(folder)


@lru_cache(maxsize=256)
def _results(folder: Path, _: object) -> Results | None:
    """results.json, if it is there."""
    path = folder / RESULTS
    if not path.is_file():
        return None
    try:
        return Results.model_validate(unsealed_json(path, None))
    except ValidationError as error:
        raise MlxmathError(f"{path} is damaged ({error.error_count()} entries); run `mlxmath report` again.") from None


@lru_cache(maxsize=1024)
def _num_lines(path: Path, _: object) -> int:
    count = 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            count += part.count(b"\n")
    return count


@dataclass(frozen=True)
class Order:
    """An evaluation to be started."""

    model: str
    adapters: tuple[str, ...]
    with_base: bool
    benchmark: str
    limit: int | None
    max_tokens: int | None


def order(studio: Studio, values: Mapping[str, str], adapters: Sequence[str]) -> Order:
    """What a form says; "" among the adapters is the base.

    Raises:
        InputError: what is wrong with it.
    """
    model, benchmark = values.get("model", ""), values.get("benchmark", "")
    if not (studio.inside(model, "model") / "config.json").is_file():
        raise InputError(f"model: expected a folder with a converted model, found {model!r}; choose one of the list.")
    if not adapters:
        raise InputError("models: none is chosen; choose the base, an adapter, or several.")
    for name in filter(None, adapters):
        studio.inside(name, "adapter")
    if benchmark not in BENCHMARKS and not studio.inside(benchmark, "benchmark").is_file():
        raise InputError(f"benchmark: there is no {benchmark!r}; choose one of the list.")
    if benchmark not in BENCHMARKS and set(benchmark) & set(",="):
        raise InputError(f"benchmark: the command would take {benchmark!r} apart at its , or =; rename the file.")
    return Order(
        model, tuple(filter(None, dict.fromkeys(adapters))), "" in adapters, benchmark, _count(values, "limit"),
        _count(values, "max_tokens"),
    )  # fmt: skip


def _count(values: Mapping[str, str], name: str) -> int | None:
    text = values.get(name, "").strip()
    if not text:
        return None
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if not 1 <= number <= _MOST[name]:
        label = {"limit": "problems", "max_tokens": "longest answer"}[name]
        raise InputError(f"{label}: expected a number from 1 to {_MOST[name]:,}, or nothing; found {text!r}.")
    return number


def command(studio: Studio, wanted: Order) -> list[str]:
    """The command that does it, which goes on where the same one was interrupted."""
    adapters = [f"--adapter-path={argument(studio, name)}" for name in wanted.adapters] or ["--no-adapter"]
    is_file = wanted.benchmark not in BENCHMARKS
    place = argument(studio, wanted.benchmark)
    benchmark = f"./{place}" if is_file and not place.startswith("/") else place
    return [
        "evaluate", f"--mlx-path={argument(studio, wanted.model)}", *adapters,
        *(["--compare"] if wanted.with_base and wanted.adapters else []), f"--benchmark={benchmark}",
        *([f"--limit={wanted.limit}"] if wanted.limit else []),
        *([f"--max-tokens={wanted.max_tokens}"] if wanted.max_tokens else []), "--resume",
    ]  # fmt: skip
