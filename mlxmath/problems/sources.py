"""Datasets as `Problem`s: the bundled demo, local files, dataset repositories."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mlxmath.config.schema import DEMO, DataConfig
from mlxmath.errors import InputError
from mlxmath.problems.columns import Columns, SkippedRowError, find_columns, make_problem
from mlxmath.problems.hub import open_repository
from mlxmath.problems.local import Rows, is_file_name, open_file
from mlxmath.problems.problem import Problem

DEMO_PROBLEMS = Path(__file__).parents[1] / "demo" / "problems"
DEMO_SPLITS = ("train", "validation", "test")


@dataclass
class LoadedProblems:
    """An opened dataset. Iterating reads it, row by row; each iteration starts anew."""

    rows: Rows
    columns: Columns
    num_examples: int | None = None
    solutions_required: bool = True
    skipped: Counter[str] = field(default_factory=Counter)
    """Rows left out by the last iteration, by reason."""

    @property
    def revision(self) -> str:
        """Identifies the exact data: a commit, or the SHA-256 of the file."""
        return self.rows.revision

    @property
    def split(self) -> str:
        """The split that is read."""
        return self.rows.split

    @property
    def num_rows(self) -> int | None:
        """Most rows that there can be, where it is known."""
        known = [n for n in (self.rows.num_rows, self.num_examples) if n is not None]
        return min(known) if known else None

    def __str__(self) -> str:
        return f"{self.rows.name} ({self.split}, {self.revision[:23]}), {self.columns}"

    def __iter__(self) -> Iterator[Problem]:
        self.skipped.clear()
        found = 0
        for index, row in enumerate(self.rows.read(self.columns.used)):
            try:
                problem = make_problem(row, self.columns, index, solution_required=self.solutions_required)
            except SkippedRowError as reason:
                self.skipped[str(reason)] += 1
                continue
            yield problem
            found += 1
            if found == self.num_examples:
                return


def load_problems(config: DataConfig, *, solutions_required: bool = True) -> LoadedProblems:
    """Open the dataset that `config` names.

    Args:
        config: the data section; `num_examples` limits to the first N usable rows.
        solutions_required: leave out rows without a solution; otherwise they are kept, with `solution` None.

    Raises:
        InputError: the dataset, file, split or column does not exist.
        MlxmathError: the data cannot be fetched or read.
    """
    if config.dataset == DEMO:
        rows = _open_demo(config)
    elif is_file_name(config.dataset):
        for option, value in (
            ("--split", None if config.split == "train" else config.split),
            ("--dataset-config", config.dataset_config),
            ("--dataset-revision", config.dataset_revision),
        ):
            if value is not None:
                raise InputError(f"{option}: {config.dataset} is one file and has no {value!r}; leave the option out.")
        rows = open_file(Path(config.dataset).expanduser())
    else:
        rows = open_repository(config)
    columns = find_columns(
        rows.columns,
        config.question_column,
        config.solution_column,
        where=rows.name,
        solution_required=solutions_required,
    )
    return LoadedProblems(rows, columns, config.num_examples, solutions_required)


def _open_demo(config: DataConfig) -> Rows:
    split = config.split or "train"
    if split not in DEMO_SPLITS:
        raise InputError(f"--split: {DEMO} has no split {split!r}, but {', '.join(DEMO_SPLITS)}.")
    rows = open_file(DEMO_PROBLEMS / f"{split}.jsonl", split)
    return Rows(DEMO, split, rows.revision, rows.columns, rows.read, rows.num_rows)
