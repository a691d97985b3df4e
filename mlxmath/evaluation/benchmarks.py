"""Benchmarks by name, or a local file, as problems with gold answers."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlxmath.config.schema import SourceConfig
from mlxmath.data.columns import near
from mlxmath.data.datasets import BENCHMARKS, Dataset, known
from mlxmath.data.datasets import Kind as KindOfExamples
from mlxmath.data.gold import WITHOUT_GOLD, gold
from mlxmath.data.problem import Problem
from mlxmath.data.readers import READABLE
from mlxmath.data.rows import is_file_name, open_file
from mlxmath.data.sources import LoadedProblems, load_problems, problems_of
from mlxmath.data.variations.tracing import Untraceable
from mlxmath.data.variations.vary import Kind, vary
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
    kind: KindOfExamples
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Rows that cannot be asked, by reason."""
    varied: Mapping[str, Item] = field(default_factory=dict)
    """Of each item, by its id, the same problem varied, where that was asked for."""

    def asked(self, item: Item, *, varied: bool) -> Item:
        """The item itself, or its variation."""
        return self.varied[item.id] if varied else item

    @property
    def num_skipped(self) -> int:
        """Rows that cannot be asked."""
        return sum(self.left_out.values())


def named(spec: str, option: str = "--benchmark") -> tuple[Dataset | None, str]:
    """What `load_benchmark` would load: a known benchmark, a file ("": none), or the former out of the latter.

    Raises:
        InputError: there is no such benchmark.
    """
    name, _, file = spec.partition("=")
    dataset = known(name)
    if dataset and dataset.test_split:
        return dataset, file
    if not file and is_file_name(spec):
        return None, spec
    raise InputError(
        f"{option}: there is no {name!r}, but {', '.join(BENCHMARKS)}, any {READABLE} file, and "
        f"NAME=FILE{near(name, BENCHMARKS)}"
    )


def load_benchmark(
    spec: str, limit: int | None = None, option: str = "--benchmark", *, perturb: Kind | None = None, seed: int = 0
) -> LoadedBenchmark:
    """Load `NAME`, `NAME=FILE` (the benchmark's rows out of a local file) or `FILE`.

    Args:
        spec: see above.
        limit: keep this many rows: always the same ones, spread over the whole, and a larger limit keeps them too.
        option: what names it, for errors.
        perturb: keep those that can be varied so, each with its variation.
        seed: of the variations.

    Raises:
        InputError: there is no such benchmark or file, or no row with a gold answer.
        MlxmathError: the data cannot be fetched or read.
    """
    dataset, file = named(spec, option)
    if dataset:
        name, max_tokens, kind = dataset.name, dataset.max_tokens, dataset.kind
    else:
        name, max_tokens, kind = Path(spec).stem, _FILE_MAX_TOKENS, "word"
    if file:
        loaded = _open_file(spec, file, dataset, option)
    else:
        source = SourceConfig(dataset=name, split=dataset and dataset.test_split)
        loaded = load_problems(source, solutions_required=False)
    numbered = list(loaded.numbered())
    left_out = Counter(loaded.skipped)
    asked = [(item, problem) for index, problem in numbered if (item := _item(name, index, problem))]
    if without := len(numbered) - len(asked):
        left_out[WITHOUT_GOLD] = without
    items, varied = [item for item, _ in asked], dict[str, Item]()
    if perturb is not None:
        varied = _vary(asked, perturb, seed, limit, left_out)
        items = [item for item in items if item.id in varied]
    if not items:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items()) or "it is empty"
        wanted = f"can be varied with --perturb {perturb}" if perturb and asked else "has a problem and a gold answer"
        raise InputError(f"{option} {spec}: no row {wanted} ({reasons}).")
    return LoadedBenchmark(name, tuple(drawn(items, limit)), loaded.revision, max_tokens, kind, left_out, varied)


def _vary(
    asked: Sequence[tuple[Item, Problem]], kind: Kind, seed: int, limit: int | None, left_out: Counter[str]
) -> dict[str, Item]:
    """Variations by the item's id, of the first `limit` items in the order of `_rank` that can be varied.

    Reasons why others cannot are counted in `left_out`.
    """
    found: dict[str, Item] = {}
    for item, problem in sorted(asked, key=lambda pair: _rank(pair[0])):
        if len(found) == limit:
            break
        try:
            other = vary(problem, kind, seed).problem
        except Untraceable as reason:
            left_out[f"not varied: {reason}"] += 1
        else:
            found[item.id] = replace(item, question=other.question, gold=other.answer or "", solution=other.solution)
    return found


def _item(name: str, index: int, problem: Problem) -> Item | None:
    """A row to be asked; None if it states no answer."""
    answer = gold(problem)
    if answer is None:
        return None
    level = (problem.difficulty or "").removeprefix("Level ") or None
    return Item(name, f"{name}/{index}", problem.question, answer, level, problem.subject, problem.solution)


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
    chosen = set(sorted(items, key=lambda item: _rank(item, seed))[:limit])
    return [item for item in items if item in chosen]


def _rank(item: Item, seed: int = 0) -> bytes:
    return hashlib.sha256((f"{seed} {item.id}" if seed else item.id).encode()).digest()
