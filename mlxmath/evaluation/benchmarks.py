"""Benchmarks by name, or a local file, as problems with gold answers."""

import difflib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlxmath.config.schema import SourceConfig
from mlxmath.config.section import DEMO
from mlxmath.errors import InputError
from mlxmath.grading.extract import extract
from mlxmath.problems.columns import SkippedRowError, find_columns, make_problem
from mlxmath.problems.hub import open_repository
from mlxmath.problems.local import Rows, is_file_name, open_file
from mlxmath.problems.sources import DEMO_PROBLEMS

Kind = Literal["word", "competition"]

_MATH_SUBJECTS = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
    "precalculus",
)  # fmt: skip


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark lies on the hub and what its columns mean (the first name that a row has is taken)."""

    name: str
    repository: str
    split: str
    question: tuple[str, ...]
    answer: tuple[str, ...] = ()
    """Columns with the final answer; none: it is taken from the solution."""
    solution: tuple[str, ...] = ()
    subject: tuple[str, ...] = ()
    configs: tuple[str | None, ...] = (None,)
    max_tokens: int = 512
    kind: Kind = "word"
    """Which worked examples `--shots` gives."""


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("demo", DEMO, "test", ("problem",), ("answer",), subject=("kind",), max_tokens=120),
        Benchmark("gsm8k", "openai/gsm8k", "test", ("question",), solution=("answer",), configs=("main",)),
        Benchmark(
            "math500", "HuggingFaceH4/MATH-500", "test", ("problem",), ("answer",), ("solution",), ("subject",),
            max_tokens=2048, kind="competition",
        ),
        Benchmark(
            "math", "EleutherAI/hendrycks_math", "test", ("problem",), solution=("solution",), subject=("type",),
            configs=_MATH_SUBJECTS, max_tokens=2048, kind="competition",
        ),
        Benchmark("gsm-hard", "reasoning-machines/gsm-hard", "train", ("input",), ("target",)),
        Benchmark("svamp", "ChilleD/SVAMP", "test", ("Body", "Question"), ("Answer",), subject=("Type",)),
        Benchmark(
            "aime24", "HuggingFaceH4/aime_2024", "train", ("problem",), ("answer",), ("solution",),
            max_tokens=4096, kind="competition",
        ),
        Benchmark(
            "minerva", "math-ai/minervamath", "test", ("problem", "question"), ("answer",), ("solution",), ("type",),
            max_tokens=2048, kind="competition",
        ),
    )
}  # fmt: skip
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
    num_skipped: int = 0


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
    if name in BENCHMARKS:
        benchmark = BENCHMARKS[name]
        opened = [open_file(Path(file).expanduser(), option="--benchmark")] if file else list(_open(benchmark))
        items = _number(name, (row for rows in opened for row in _read(rows, benchmark)))
        max_tokens, kind = benchmark.max_tokens, benchmark.kind
    elif not file and is_file_name(spec):
        rows = open_file(Path(spec).expanduser(), option="--benchmark")
        name, opened, max_tokens, kind = Path(spec).stem, [rows], _FILE_MAX_TOKENS, "word"
        items = _number(name, _read_unknown(rows))
    else:
        near = difflib.get_close_matches(name, BENCHMARKS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(
            f"--benchmark: there is no {name!r}, but {', '.join(BENCHMARKS)}, any .jsonl, .json or .parquet file, and "
            f"NAME=FILE{hint}"
        )
    usable = [item for item in items if item is not None]
    if not usable:
        raise InputError(f"--benchmark {spec}: no row has a problem and a gold answer.")
    return LoadedBenchmark(
        name,
        tuple(_choose(usable, limit)),
        "+".join(rows.revision for rows in opened),
        max_tokens,
        kind,
        len(items) - len(usable),
    )


def _open(benchmark: Benchmark) -> Iterator[Rows]:
    if benchmark.repository == DEMO:
        yield open_file(DEMO_PROBLEMS / f"{benchmark.split}.jsonl", benchmark.split)
        return
    for config in benchmark.configs:
        yield open_repository(SourceConfig(dataset=benchmark.repository, config=config, split=benchmark.split))


def _read(rows: Rows, benchmark: Benchmark) -> Iterator[Item | None]:
    wanted = (*benchmark.question, *benchmark.answer, *benchmark.solution, *benchmark.subject, "level")
    if not any(name in rows.columns for name in benchmark.question):
        raise InputError(
            f"--benchmark {benchmark.name}: {rows.name} has no column {' or '.join(benchmark.question)}, but "
            f"{', '.join(rows.columns)}."
        )
    for row in rows.read(tuple(name for name in wanted if name in rows.columns)):
        if benchmark.name == "svamp":  # the question is told in two parts
            question = " ".join(str(row.get(name) or "").strip() for name in benchmark.question)
        else:
            question = _first(row, benchmark.question) or ""
        solution = _first(row, benchmark.solution)
        answer = _first(row, benchmark.answer) or (solution and _final_answer(solution))
        level = _first(row, ("level",))
        yield (
            None
            if not question.strip() or not answer
            else Item(
                benchmark.name,
                "",
                question.strip(),
                answer,
                level.removeprefix("Level ") if level else None,
                _first(row, benchmark.subject),
                solution,
            )
        )


def _read_unknown(rows: Rows) -> Iterator[Item | None]:
    """Rows of a user's file: columns are found by their usual names."""
    columns = find_columns(rows.columns, where=rows.name, solution_required=False)
    for index, row in enumerate(rows.read(columns.used)):
        try:
            problem = make_problem(row, columns, index, solution_required=False)
        except SkippedRowError:
            yield None
            continue
        answer = problem.answer or (problem.solution and _final_answer(problem.solution))
        level, subject = _first(problem.meta, ("level",)), _first(problem.meta, ("subject", "type", "kind"))
        yield Item("", "", problem.question, answer, level, subject, problem.solution) if answer else None


def _number(name: str, items: Iterator[Item | None]) -> list[Item | None]:
    return [
        item and Item(name, f"{name}/{index}", item.question, item.gold, item.level, item.subject, item.solution)
        for index, item in enumerate(items)
    ]


def _first(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of the columns that holds something, as text; a whole number without its `.0`."""
    value = next((row[name] for name in names if row.get(name) not in (None, "")), None)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return None if value is None else str(value)


def _final_answer(solution: str) -> str | None:
    found = extract(solution)
    return found.text if found else None


def _choose(items: list[Item], limit: int | None) -> list[Item]:
    if limit is None or limit >= len(items):
        return items
    kept = sorted(items, key=lambda item: hashlib.sha256(item.id.encode()).digest())[:limit]
    chosen = {item.id for item in kept}
    return [item for item in items if item.id in chosen]
