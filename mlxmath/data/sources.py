"""Datasets as `Problem`s: the bundled demo, known datasets, local files and folders, dataset repositories."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from mlxmath.config.schema import DataConfig, SourceConfig
from mlxmath.config.section import DEMO
from mlxmath.data.adapting import GENERATIONS
from mlxmath.data.columns import CONVERSATIONS, Columns, find_columns, find_pair_columns
from mlxmath.data.datasets import Dataset, known, recognise
from mlxmath.data.filters import FIELDS, parse_filter
from mlxmath.data.forms import Forms, make_pair, make_problem
from mlxmath.data.problem import Problem, RefusedRowError, SkippedRowError
from mlxmath.data.readers import Row, Rows
from mlxmath.data.rows import AbsentError, chain, is_file_name, open_file, open_path, open_repository
from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.console import warn

DEMO_PROBLEMS = Path(__file__).parents[1] / "demo" / "problems"
DEMO_SPLITS = ("train", "validation", "test")


MOST_NAMED = 1000
"""So many rows that are left out are noted one by one, of each source; as many problems of each benchmark."""


class LeftOut(NamedTuple):
    """A row that is not taken."""

    row: int
    """From 0."""
    reason: str


@dataclass
class LoadedProblems:
    """An opened dataset. Iterating reads it, row by row; each iteration starts anew."""

    rows: Rows
    columns: Columns
    source: SourceConfig
    """What was asked for; of a fall-back, what is read instead."""
    dataset: Dataset | None = None
    """The known dataset that it is, if its rows are read as that one's."""
    num_examples: int | None = None
    solutions_required: bool = True
    instead_of: str | None = None
    """The dataset that could not be had."""
    keeps_calls: bool = False
    """Leave the calculator's marks in solutions."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Rows left out by the last iteration, by reason."""
    first_skipped: dict[str, int] = field(default_factory=dict)
    """The number of the first such row (from 0), by reason."""
    skipped_rows: list[LeftOut] = field(default_factory=list)
    """The first of these rows."""

    @property
    def revision(self) -> str:
        """Identifies the exact data: a commit, or the SHA-256 of the file."""
        return self.rows.revision

    @property
    def split(self) -> str:
        """The split that is read."""
        return self.rows.split

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that filters may name, beside the fields that every problem has."""
        extra = ("correct",) if self.dataset and self.dataset.generations else ()
        return (*self.rows.columns, *extra)

    def __str__(self) -> str:
        unused = f"; columns not used: {', '.join(self.unused)}" if self.unused else ""
        return f"{self.rows.name} ({self.split}, {self.revision[:23]}), {self.columns}{unused}"

    @property
    def unused(self) -> tuple[str, ...]:
        """The columns that play no part, not even in a filter."""
        read = {*self.columns.used, *(parse_filter(text).field for text in self.source.filters), self.source.balance}
        if self.dataset is not None:
            read |= {*self.dataset.signature, *self.dataset.nested}
        if self.forms is not None:
            read |= self.forms.named(self.rows.forms)
        return tuple(name for name in self.rows.columns if name not in read)

    @cached_property
    def forms(self) -> Forms | None:
        """How rows that are not in the dataset's form are read; None where the columns were named."""
        source = self.source
        named = source.question_column or source.solution_column or source.answer_column
        if named or source.solutions != "own":
            return None
        return Forms(self.columns, self.rows.name, self.solutions_required)

    def __iter__(self) -> Iterator[Problem]:
        for _, problem in self.numbered():
            yield problem

    def numbered(self) -> Iterator[tuple[int, Problem]]:
        """The problems, each with the number of its row (from 0)."""
        self.skipped.clear()
        self.first_skipped.clear()
        self.skipped_rows.clear()
        found = 0
        others = CONVERSATIONS if self.forms and self.dataset is None else ()
        if self.dataset:
            others = (*self.dataset.nested, *([GENERATIONS] if self.source.solutions != "own" else ()))
        for index, row in enumerate(self.rows.read((*self.columns.used, *others))):
            try:
                problems = self._problems(row, index)
            except SkippedRowError as reason:
                self.skipped[str(reason)] += 1
                self.first_skipped.setdefault(str(reason), index)
                if len(self.skipped_rows) < MOST_NAMED:
                    self.skipped_rows.append(LeftOut(index, str(reason)))
                continue
            for problem in problems:
                yield index, problem
                found += 1
                if found == self.num_examples:
                    return

    def _problems(self, row: Row, index: int) -> Sequence[Problem]:
        """The problems of a row: one, or one a generation."""
        problem = self._problem(row, index)
        if self.source.solutions == "own":
            return (problem,)
        assert self.dataset is not None and self.dataset.generations is not None
        solutions = self.dataset.generations(row)
        if not solutions:
            raise SkippedRowError("no verified generation")
        if self.source.solutions != "all":
            solutions = [min(solutions, key=len) if self.source.solutions == "shortest" else solutions[0]]
        return [replace(problem, solution=solution) for solution in solutions]

    def _problem(self, row: Row, index: int) -> Problem:
        """The problem of a row, by the dataset's columns or, where they are empty, by the row's own.

        Raises:
            SkippedRowError: it is none by either.
        """
        try:
            problem = self._made(row, index, self.columns, self.dataset)
        except RefusedRowError:
            raise
        except SkippedRowError:
            own = self.forms and self.forms.of(row)
            if not own:
                raise
        else:
            if problem.answer is not None or self.dataset or not self.forms:
                return problem
            own = self.forms.with_answer(row)
            if not own:
                return problem
        return self._made(row, index, own)

    def _made(self, row: Row, index: int, columns: Columns, dataset: Dataset | None = None) -> Problem:
        if columns.rejected or columns.label:
            return make_pair(row, columns, index)
        required = self.solutions_required and self.source.solutions == "own"
        if dataset:
            return dataset.problem(row, index, solution_required=required, keeps_calls=self.keeps_calls)
        return make_problem(row, columns, index, solution_required=required, keeps_calls=self.keeps_calls)


def load_problems(
    config: DataConfig | SourceConfig,
    *,
    solutions_required: bool = True,
    pairs: bool = False,
    first: int | None = None,
    mixture_seed: int = 0,
) -> LoadedProblems:
    """Open one dataset.

    Args:
        config: the data section without `sources` (`num_examples` limits to the first N usable rows), or one source.
        solutions_required: leave out rows without a solution; otherwise they are kept, with `solution` None.
        pairs: read pairs of a chosen and a rejected completion, or completions with a label.
        first: about how many rows will be read, so that a few need no whole download.
        mixture_seed: of the order in which a dataset too large to download is streamed.

    Raises:
        InputError: the dataset, file, split or column does not exist.
        MlxmathError: the data cannot be fetched or read.
    """
    limit = None
    if isinstance(config, DataConfig):
        (source,), limit = config.mixture, config.num_examples
        first = limit
    else:
        source = config
    try:
        rows, dataset = _open(source, first, mixture_seed)
        instead_of = None
    except MlxmathError as error:
        if source.fallback is None or (isinstance(error, InputError) and not isinstance(error, AbsentError)):
            raise
        warn(f"{source.dataset} cannot be had, {source.fallback} is used instead ({error})")
        kept = source.model_dump(
            include={"count", "weight", "filters", "balance"}
        )  # as many rows, by the same conditions
        instead_of, source = source.dataset, SourceConfig(dataset=source.fallback, **kept)
        rows, dataset = _open(source, first, mixture_seed)
    if pairs:
        columns, dataset = find_pair_columns(rows.columns, source.question_column, where=rows.name), None
    else:
        columns, dataset = _columns(rows, source, dataset, solutions_required)
    if source.solutions != "own" and (dataset is None or dataset.generations is None):
        raise InputError(
            f"--solutions {source.solutions}: {rows.name} has no verified generations, only own solutions."
        )
    loaded = LoadedProblems(rows, columns, source, dataset, limit, solutions_required, instead_of)
    return replace(loaded, source=_without_foreign_fields(loaded)) if instead_of else loaded


def problems_of(rows: Rows, dataset: Dataset | None, *, solutions_required: bool = True) -> LoadedProblems:
    """Problems of rows that are opened already.

    Args:
        rows: of a file.
        dataset: the known dataset that they are from (None: recognised by their columns, if they are of any).
        solutions_required: see `load_problems`.

    Raises:
        InputError: there is no column for the problem, or none for the solution if it is needed.
    """
    source = SourceConfig(dataset=rows.name)
    columns, dataset = _columns(rows, source, dataset, solutions_required)
    return LoadedProblems(rows, columns, source, dataset, None, solutions_required)


def _without_foreign_fields(loaded: LoadedProblems) -> SourceConfig:
    """A fall-back's source without conditions on fields of the dataset that it stands in for; each is named."""
    source, known_fields = loaded.source, (*FIELDS, *loaded.fields)
    foreign = [text for text in source.filters if parse_filter(text).field not in known_fields]
    balance = source.balance if source.balance in known_fields else None
    for text in [*foreign, *([source.balance] if balance != source.balance else ())]:
        warn(f"{loaded.rows.name} has no such field: {text!r} does not apply to it")
    filters = tuple(text for text in source.filters if text not in foreign)
    return source.model_copy(update={"filters": filters, "balance": balance})


def _open(source: SourceConfig, first: int | None, seed: int) -> tuple[Rows, Dataset | None]:
    """The rows of a source, and the dataset whose name it goes by."""
    dataset = known(source.dataset)
    name = source.dataset.lower()
    if dataset is not None and name not in (dataset.name, dataset.repository.lower()) and Path(source.dataset).exists():
        dataset = None  # what lies here under that very name comes before another spelling of a known one
    if dataset is not None and dataset.repository == DEMO:
        return _open_demo(source.split or "train"), dataset
    if dataset is None and is_file_name(source.dataset):
        path = Path(source.dataset).expanduser()
        for option, value in (("--dataset-config", source.config), ("--dataset-revision", source.revision)):
            if value is not None:
                raise InputError(f"{option}: {path} is local and has no {value!r}; leave the option out.")
        return open_path(path, source.split), None
    if dataset is None:
        return open_repository(source, first=first), None
    asked = {
        "dataset": dataset.repository,
        "split": source.split or dataset.split,
        "revision": source.revision or dataset.revision,
    }
    parts = [
        open_repository(
            source.model_copy(update={**asked, "config": config}),
            first=first,
            shuffle_seed=seed if dataset.streamed else None,
        )
        for config in ([source.config] if source.config else dataset.configs or (None,))
    ]
    return chain(dataset.repository, parts[0].split, parts), dataset


def _columns(
    rows: Rows, source: SourceConfig, dataset: Dataset | None, solutions_required: bool
) -> tuple[Columns, Dataset | None]:
    """The columns' parts, and the known dataset if its rows are read as that one's: not where columns were named."""
    asked = (source.question_column, source.solution_column, source.answer_column)
    is_named, dataset = dataset is not None, dataset or recognise(rows.columns)
    if any(asked) or dataset is None or not set(dataset.signature or dataset.columns.main) <= set(rows.columns):
        found = find_columns(rows.columns, *asked, where=rows.name, solution_required=solutions_required)
        return found, None
    if solutions_required and dataset.columns.solution is None:
        usual = find_columns(rows.columns, where=rows.name, solution_required=False)
        is_worked = usual.solution not in (None, dataset.columns.answer)
        if is_worked and not is_named:  # somebody's own rows, which have the benchmark's columns too
            return usual, None
        raise InputError(f"{rows.name} has no solutions to train on; it is a benchmark, for evaluation.")
    return dataset.columns, dataset


def _open_demo(split: str) -> Rows:
    if split not in DEMO_SPLITS:
        raise InputError(f"--split: {DEMO} has no split {split!r}, but {', '.join(DEMO_SPLITS)}.")
    return replace(open_file(DEMO_PROBLEMS / f"{split}.jsonl", split), name=DEMO)
