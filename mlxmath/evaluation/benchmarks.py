"""Benchmarks by name, or a local file, as problems with gold answers."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlxmath.config.schema import SourceConfig
from mlxmath.data.columns import near
from mlxmath.data.datasets import BENCHMARKS, Dataset, Kind, known
from mlxmath.data.gold import WITHOUT_GOLD, gold
from mlxmath.data.readers import READABLE
from mlxmath.data.rows import is_file_name, open_file
from mlxmath.data.sources import LoadedProblems, load_problems, problems_of
from mlxmath.errors import InputError

_FILE_MAX_TOKENS = 1024


@dataclass(frozen=True)
class Item:
    """A problem to be answered."""

    benchmark: str
    id: str
    """`gsm8k/17`: the benchmark and the row's number from 0."""
    question: str
    gold: str
    level: str | None = None
    subject: str | None = None
    solution: str | None = None


@dataclass(frozen=True)
class LoadedBenchmark:
    """Items of one benchmark and what identifies them."""

    name: str
    items: tuple[Item, ...]
    revision: str
    max_tokens: int
    kind: Kind
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Rows that cannot be asked, by reason."""

    @property
    def num_skipped(self) -> int:
        """Rows that cannot be asked."""
        return sum(self.left_out.values())


def load_benchmark(spec: str, limit: int | None = None) -> LoadedBenchmark:
    """Load `NAME`, `NAME=FILE` (the benchmark's rows out of a local file) or `FILE`.

    Args:
        spec: see above.
        limit: keep this many rows: always the same ones, spread over the whole, and a larger limit keeps them too.

    Raises:
        InputError: there is no such benchmark or file, or no row with a gold answer.
        MlxmathError: the data cannot be fetched or read.
    """
    name, _, file = spec.partition("=")
    dataset = known(name)
    if dataset and dataset.test_split:
        name, max_tokens, kind = dataset.name, dataset.max_tokens, dataset.kind
        loaded = _open_file(spec, file, dataset) if file else _open(dataset)
    elif not file and is_file_name(spec):
        name, max_tokens, kind = Path(spec).stem, _FILE_MAX_TOKENS, "word"
        loaded = _open_file(spec, spec, None)
    else:
        raise InputError(
            f"--benchmark: there is no {name!r}, but {', '.join(BENCHMARKS)}, any {READABLE} file, and "
            f"NAME=FILE{near(name, BENCHMARKS)}"
        )
    items, left_out = _items(name, loaded)
    if not items:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items()) or "it is empty"
        raise InputError(f"--benchmark {spec}: no row has a problem and a gold answer ({reasons}).")
    return LoadedBenchmark(name, tuple(_choose(items, limit)), loaded.revision, max_tokens, kind, left_out)


def _open(dataset: Dataset) -> LoadedProblems:
    return load_problems(SourceConfig(dataset=dataset.name, split=dataset.test_split), solutions_required=False)


def _open_file(spec: str, file: str, dataset: Dataset | None) -> LoadedProblems:
    rows = open_file(Path(file).expanduser(), option="--benchmark")
    try:
        return problems_of(rows, dataset, solutions_required=False)
    except InputError:
        expected = dataset.columns.question if dataset else "problem, question or prompt"
        raise InputError(
            f"--benchmark {spec}: {rows.name} has no column {expected}, but {', '.join(rows.columns)}."
        ) from None


def _items(name: str, loaded: LoadedProblems) -> tuple[list[Item], Counter[str]]:
    """What can be asked, and the rows that cannot, by reason."""
    items, left_out = [], Counter[str]()
    for index, problem in loaded.numbered():
        answer = gold(problem)
        if answer is None:
            left_out[WITHOUT_GOLD] += 1
            continue
        level = problem.difficulty.removeprefix("Level ") if problem.difficulty else None
        items.append(Item(name, f"{name}/{index}", problem.question, answer, level, problem.subject, problem.solution))
    left_out.update(loaded.skipped)
    return items, left_out


def _choose(items: list[Item], limit: int | None) -> list[Item]:
    if limit is None or limit >= len(items):
        return items
    kept = sorted(items, key=lambda item: hashlib.sha256(item.id.encode()).digest())[:limit]
    chosen = {item.id for item in kept}
    return [item for item in items if item.id in chosen]
