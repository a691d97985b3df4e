"""Benchmarks by name, or a local file, as problems with gold answers."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
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


def load_benchmark(spec: str, limit: int | None = None, option: str = "--benchmark") -> LoadedBenchmark:
    """Load `NAME`, `NAME=FILE` (the benchmark's rows out of a local file) or `FILE`.

    Args:
        spec: see above.
        limit: keep this many rows: always the same ones, spread over the whole, and a larger limit keeps them too.
        option: what names it, for errors.

    Raises:
        InputError: there is no such benchmark or file, or no row with a gold answer.
        MlxmathError: the data cannot be fetched or read.
    """
    name, _, file = spec.partition("=")
    dataset = known(name)
    if dataset and dataset.test_split:
        name, max_tokens, kind = dataset.name, dataset.max_tokens, dataset.kind
        if file:
            loaded = _open_file(spec, file, dataset, option)
        else:
            source = SourceConfig(dataset=name, split=dataset.test_split)
            loaded = load_problems(source, solutions_required=False)
    elif not file and is_file_name(spec):
        name, max_tokens, kind = Path(spec).stem, _FILE_MAX_TOKENS, "word"
        loaded = _open_file(spec, spec, None, option)
    else:
        raise InputError(
            f"{option}: there is no {name!r}, but {', '.join(BENCHMARKS)}, any {READABLE} file, and "
            f"NAME=FILE{near(name, BENCHMARKS)}"
        )
    numbered = list(loaded.numbered())
    items = [
        Item(
            name, f"{name}/{index}", problem.question, answer,
            (problem.difficulty or "").removeprefix("Level ") or None, problem.subject, problem.solution,
        )
        for index, problem in numbered
        if (answer := gold(problem)) is not None
    ]  # fmt: skip
    without = len(numbered) - len(items)
    left_out = Counter({WITHOUT_GOLD: without} if without else {})
    left_out.update(loaded.skipped)
    if not items:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items()) or "it is empty"
        raise InputError(f"{option} {spec}: no row has a problem and a gold answer ({reasons}).")
    return LoadedBenchmark(name, tuple(drawn(items, limit)), loaded.revision, max_tokens, kind, left_out)


def _open_file(spec: str, file: str, dataset: Dataset | None, option: str) -> LoadedProblems:
    rows = open_file(Path(file).expanduser(), option=option)
    try:
        return problems_of(rows, dataset, solutions_required=False)
    except InputError:
        expected = dataset.columns.question if dataset else "problem, question or prompt"
        raise InputError(
            f"{option} {spec}: {rows.name} has no column {expected}, but {', '.join(rows.columns)}."
        ) from None


def drawn(items: Sequence[Item], limit: int | None, seed: int = 0) -> list[Item]:
    """So many of the items: with one seed always the same ones, and a larger limit keeps them."""
    prefix = f"{seed} " if seed else ""
    chosen = set(sorted(items, key=lambda item: hashlib.sha256(f"{prefix}{item.id}".encode()).digest())[:limit])
    return [item for item in items if item in chosen]
