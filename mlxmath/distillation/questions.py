"""What a teacher is asked: the problems that have a gold answer to judge it by."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mlxmath.config.schema import DataConfig
from mlxmath.data.gold import WITHOUT_GOLD, gold
from mlxmath.data.mixture import Mixture
from mlxmath.data.problem import Problem
from mlxmath.errors import MlxmathError


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
    items: list[Question] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Rows, by reason."""

    def tasks(self, samples: int) -> list[Task]:
        """Every sample of every question; all first samples come first, so that an interrupted run has covered most."""
        return [Task(question, sample) for sample in range(samples) for question in self.items]


def question_key(text: str) -> str:
    """16 hex digits of a problem's text."""
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]


def load_questions(config: DataConfig) -> Questions:
    """Read the dataset of a configuration.

    Raises:
        InputError: no such dataset, column or filter.
        MlxmathError: the data cannot be read, or no row has a gold answer.
    """
    mixture = Mixture(config, solutions_required=False)
    mixture.choose()
    questions = Questions(", ".join(f"{source.rows.name} ({source.split})" for source in mixture.sources))
    for report in mixture.reports:
        questions.left_out.update(report.left_out)
    questions.items += _with_gold(mixture, questions.left_out)
    if not questions.items:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in questions.left_out.items()) or "it is empty"
        raise MlxmathError(
            f"{questions.name}: no problem with a gold answer ({reasons}); name its column with --answer-column."
        )
    return questions


def _with_gold(problems: Mixture | Sequence[Problem], left_out: Counter[str]) -> Iterator[Question]:
    seen: set[str] = set()
    for problem in problems:
        answer, key = gold(problem), question_key(problem.question)
        if answer is None:
            left_out[WITHOUT_GOLD] += 1
        elif key in seen:
            left_out["repeated"] += 1
        else:
            seen.add(key)
            yield Question(key, problem.id, problem.question, answer)


def sample_seed(seed: int, task: Task) -> int:
    """The seed that goes with a task's request, below 2**31 (endpoints take no larger one)."""
    text = f"{seed} {task.question.key} {task.sample}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
