"""What a teacher is asked: the problems that have a gold answer to judge it by."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mlxmath.config.schema import DataConfig
from mlxmath.data.columns import find_columns
from mlxmath.data.forms import make_problem
from mlxmath.data.gold import WITHOUT_GOLD, gold
from mlxmath.data.mixture import Mixture
from mlxmath.data.problem import SkippedRowError
from mlxmath.data.rows import open_file
from mlxmath.distillation.responses import Response
from mlxmath.errors import InputError, MlxmathError


@dataclass(frozen=True)
class Question:
    """A problem and its gold answer."""

    key: str
    """Of the problem's text: the same in every dataset."""
    id: str
    text: str
    gold: str


@dataclass(frozen=True)
class Task:
    """One of the samples of a question."""

    question: Question
    sample: int

    @property
    def key(self) -> tuple[str, int]:
        """What no two tasks share."""
        return self.question.key, self.sample


@dataclass
class Questions:
    """The questions of a dataset, and the rows that are none."""

    name: str
    items: list[Question]
    left_out: Counter[str]
    """Rows, by reason."""

    def tasks(self, samples: int) -> list[Task]:
        """Every sample of every question; all first samples come first, so that an interrupted run has covered most."""
        return [Task(question, sample) for sample in range(samples) for question in self.items]


def question_key(text: str) -> str:
    """16 hex digits of a problem's text."""
    return hashlib.sha256(text.strip().encode("utf-8", "replace")).hexdigest()[:16]


def sample_seed(seed: int, task: Task) -> int:
    """The seed that goes with a task's request, below 2**31 (endpoints take no larger one)."""
    text = f"{seed} {task.question.key} {task.sample}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def load_questions(config: DataConfig) -> Questions:
    """Read the dataset of a configuration.

    Raises:
        InputError: no such dataset, column or filter.
        MlxmathError: the data cannot be read, or no row has a gold answer.
    """
    mixture = Mixture(config, solutions_required=False)
    mixture.choose()
    name = ", ".join(f"{source.rows.name} ({source.split})" for source in mixture.sources)
    left_out = sum((Counter(report.left_out) for report in mixture.reports), Counter[str]())
    questions: dict[str, Question] = {}
    for problem in mixture:
        answer, key = gold(problem), question_key(problem.question)
        if answer is None or key in questions:
            left_out[WITHOUT_GOLD if answer is None else "repeated"] += 1
        else:
            questions[key] = Question(key, problem.id, problem.question, answer)
    if not questions:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in left_out.items()) or "it is empty"
        raise MlxmathError(f"{name}: no problem with a gold answer ({reasons}); name its column with --answer-column.")
    return Questions(name, list(questions.values()), left_out)


def load_solutions(path: Path, config: DataConfig) -> tuple[str, list[list[Response]]]:
    """The revision of a file that holds problems, solutions and gold answers, and the solutions to each problem.

    Args:
        path: a .jsonl, .json or .parquet file.
        config: names its columns, if they have unusual names.

    Raises:
        InputError: no such file, no column for one of the three, or a row that cannot be used.
    """
    rows = open_file(path, option="--rank-only")
    found = find_columns(
        rows.columns, config.question_column, config.solution_column, config.answer_column, where=rows.name
    )
    if found.answer is None:
        raise InputError(
            f"--rank-only: {rows.name} has no column with the gold answer, but {', '.join(rows.columns)}; name it "
            "with --answer-column."
        )
    problems: dict[str, list[Response]] = {}
    for index, row in enumerate(rows.read(rows.columns)):
        try:
            problem = make_problem(row, found, index, solution_required=False)
        except SkippedRowError as reason:
            raise InputError(f"--rank-only: row {index + 1} of {rows.name}: {reason}; mend or remove it.") from None
        answer = gold(problem) if row.get(found.answer) is not None else None
        if answer is None:
            raise InputError(f"--rank-only: row {index + 1} of {rows.name} has no gold answer; mend or remove it.")
        key, num_tokens = question_key(problem.question), row.get("completion_tokens")
        solutions = problems.setdefault(key, [])
        solutions.append(
            Response(
                "", key, len(solutions), problem.id, problem.question, answer, problem.solution or "",
                str(row.get("finish_reason") or "stop"),
                completion_tokens=num_tokens if isinstance(num_tokens, int) else None,
            )
        )  # fmt: skip
    return rows.revision, list(problems.values())
