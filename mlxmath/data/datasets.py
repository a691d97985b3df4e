"""The table of known datasets: where each lies, how its rows become problems, and how it serves as a benchmark.

Training, reinforcement learning, distillation, evaluation and decontamination all ask this table, so that a problem has
one text and one gold answer (`mlxmath.data.gold`) whoever reads it.

A commit is pinned only where it could be verified; where it says None the newest one is taken, and the cache and the
run record name the commit that was read.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mlxmath.config.section import DEMO
from mlxmath.data import adapting
from mlxmath.data.adapting import Row
from mlxmath.data.columns import Columns
from mlxmath.data.forms import make_problem
from mlxmath.data.problem import Problem

Kind = Literal["word", "competition", "choice"]


@dataclass(frozen=True)
class Dataset:
    """One known dataset."""

    name: str
    """Short name, for the command line and recipes. Case, hyphens and underscores in it do not count."""
    repository: str
    columns: Columns
    """Of the adapted row."""
    aliases: tuple[str, ...] = ()
    """Other short names that are in use."""
    signature: tuple[str, ...] = ()
    """Columns by which a local copy is recognised (none: its columns have usual names and need no recognising)."""
    configs: tuple[str, ...] = ()
    """Configurations read when none is asked for, one after the other."""
    split: str | None = None
    """Split read when none is asked for (None: the training split)."""
    test_split: str | None = None
    """Split that is the benchmark of this name (None: it is none)."""
    max_tokens: int = 512
    """Of an answer to the benchmark, where nothing else is asked for."""
    kind: Kind = "word"
    """Which worked examples an evaluation shows before it."""
    revision: str | None = None
    """Commit or branch (None: the newest)."""
    streamed: bool = False
    """Too large to be downloaded for a part of it."""
    nested: tuple[str, ...] = ()
    """Columns of lists that `adapt` reads; `generations` is read only where solutions are taken from it."""
    adapt: Callable[[Row], Row] | None = None
    """Turns a raw row into one with `columns`; raises SkippedRowError."""
    generations: Callable[[Row], Sequence[str]] | None = None
    """The verified generations of a raw row, for `solutions` other than `own`."""

    def problem(self, row: Row, index: int, *, solution_required: bool = True, keeps_calls: bool = False) -> Problem:
        """The `Problem` of a raw row, the same for every use; see `make_problem`.

        Raises:
            SkippedRowError: a part that is needed is empty or is not text.
        """
        adapted = self.adapt(row) if self.adapt else row
        return make_problem(adapted, self.columns, index, solution_required=solution_required, keeps_calls=keeps_calls)


MMLU_SUBJECTS = (
    "abstract_algebra", "college_mathematics", "elementary_mathematics", "high_school_mathematics",
    "high_school_statistics",
)  # fmt: skip
MATH_SUBJECTS = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
    "precalculus",
)  # fmt: skip


def _contests(
    repository: str, max_tokens: int, solution: str | None, **years: tuple[tuple[str, ...], str | None]
) -> Iterator[Dataset]:  # fmt: skip
    """One repository's problems under several names: each name's aliases, and the year that it is of (None: all)."""
    for name, (aliases, year) in years.items():
        yield Dataset(
            name, repository, Columns("problem", solution, "answer", "id", subject="year"), aliases=aliases,
            split="train", test_split="train", max_tokens=max_tokens, kind="competition",
            adapt=adapting.contest(year),
        )  # fmt: skip


_ALL = (
    Dataset("demo", DEMO, Columns("problem", "solution", "answer", subject="kind"), test_split="test", max_tokens=200),
    Dataset(
        "openr1-math-220k",
        "open-r1/OpenR1-Math-220k",
        Columns("problem", "solution", "answer", "uuid", subject="problem_type", source="source"),
        aliases=("openr1", "openr1-math"),
        signature=("problem", "generations", "correctness_math_verify"),
        nested=("correctness_math_verify", "correctness_llama", "is_reasoning_complete"),
        adapt=adapting.open_r1,
        generations=adapting.verified_generations,
    ),
    Dataset(
        "magpie-reasoning-v2",
        "Magpie-Align/Magpie-Reasoning-V2-250K-CoT-Deepseek-R1-Llama-70B",
        Columns("instruction", "response", id="uuid", difficulty="difficulty", subject="task_category"),
        signature=("instruction", "response", "input_quality", "difficulty"),
    ),
    Dataset(
        "numinamath-qwq",
        "PrimeIntellect/NuminaMath-QwQ-CoT-5M",
        Columns("prompt", "response", "ground_truth", "problem_id"),
        signature=("prompt", "response", "ground_truth", "correct"),
        streamed=True,  # 44 GB
    ),
    Dataset(
        "numinamath-cot",
        "AI-MO/NuminaMath-CoT",
        Columns("problem", "solution", source="source"),
        signature=("source", "problem", "solution", "messages"),
    ),
    Dataset("gsm8k", "openai/gsm8k", Columns("question", "answer"), configs=("main",), test_split="test"),
    # The questions are those of GSM8K's test with other numbers: decontamination against gsm8k removes most of them.
    Dataset(
        "gsm-hard",
        "reasoning-machines/gsm-hard",
        Columns("input", "solution", "answer"),
        signature=("input", "code", "target"),
        test_split="train",
        adapt=adapting.gsm_hard,
    ),
    Dataset(
        "math",
        "EleutherAI/hendrycks_math",
        Columns("problem", "solution", difficulty="level", subject="type"),
        aliases=("hendrycks-math", "competition-math"),
        signature=("problem", "level", "type", "solution"),
        configs=MATH_SUBJECTS,
        test_split="test",
        max_tokens=2048,
        kind="competition",
    ),
    Dataset(
        "math500",  # and so MATH-500
        "HuggingFaceH4/MATH-500",
        Columns("problem", "solution", "answer", "unique_id", difficulty="level", subject="subject"),
        signature=("problem", "solution", "answer", "subject", "level", "unique_id"),
        split="test",
        test_split="test",
        max_tokens=2048,
        kind="competition",
    ),
    Dataset(
        "mathqa",
        "allenai/math_qa",
        Columns("question", "solution", "answer", subject="category"),
        signature=("Problem", "Rationale", "options", "correct"),
        test_split="test",
        revision="refs/convert/parquet",  # the main branch is a script, which is not run
        kind="choice",
        adapt=adapting.math_qa,
    ),
    Dataset(
        "svamp",
        "ChilleD/SVAMP",
        Columns("question", "solution", "answer", "ID", subject="Type"),
        signature=("Body", "Question", "Equation", "Answer"),
        test_split="test",
        adapt=adapting.svamp,
    ),
    Dataset(
        "aime24",
        "HuggingFaceH4/aime_2024",
        Columns("problem", "solution", "answer", "id"),
        aliases=("aime-2024",),
        split="train",
        test_split="train",
        max_tokens=4096,
        kind="competition",
    ),
    # By year the report's groups are of "aime" and "amc"; "aime22" and the like are one year alone.
    *_contests(
        "AI-MO/aimo-validation-aime",
        4096,
        "solution",
        aime=(("aimo-validation-aime",), None),
        aime22=(("aime-2022",), "2022"),
        aime23=(("aime-2023",), "2023"),
    ),
    Dataset(
        "aime25",
        "math-ai/aime25",
        Columns("problem", None, "answer", "id"),
        aliases=("aime-2025",),
        split="test",
        test_split="test",
        max_tokens=4096,
        kind="competition",
    ),
    *_contests(
        "AI-MO/aimo-validation-amc",
        2048,
        None,
        amc=(("aimo-validation-amc", "amc12"), None),
        amc22=(("amc-2022",), "2022"),
        amc23=(("amc-2023",), "2023"),
    ),
    Dataset(
        "olympiadbench",
        "Hothan/OlympiadBench",
        Columns("question", "solution", "answer", "id", subject="subfield"),
        signature=("subfield", "question", "final_answer", "is_multiple_answer", "answer_type"),
        configs=("OE_TO_maths_en_COMP",),  # open-ended, text alone, mathematics, English, competitions
        split="train",
        test_split="train",
        max_tokens=4096,
        kind="competition",
        nested=("final_answer",),
        adapt=adapting.olympiad_bench,
    ),
    Dataset(
        "mmlu-math",
        "cais/mmlu",
        Columns("question", None, "answer", subject="subject"),
        aliases=("mmlu",),
        signature=("question", "subject", "choices", "answer"),
        configs=MMLU_SUBJECTS,
        split="test",
        test_split="test",
        max_tokens=1024,
        kind="choice",
        nested=("choices",),
        adapt=adapting.mmlu,
    ),
    Dataset(
        "minerva",
        "math-ai/minervamath",
        Columns("question", None, "answer"),
        aliases=("minerva-math",),
        split="test",
        test_split="test",
        max_tokens=2048,
        kind="competition",
    ),  # its mirror with worked solutions has `problem` and `solution`, found by their names
)

DATASETS: Mapping[str, Dataset] = {dataset.name: dataset for dataset in _ALL}
BENCHMARKS: Mapping[str, Dataset] = {dataset.name: dataset for dataset in _ALL if dataset.test_split}


def _spelling(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


_BY_NAME = {_spelling(name): dataset for dataset in _ALL for name in (dataset.name, *dataset.aliases)}
_BY_REPOSITORY = {dataset.repository.lower(): dataset for dataset in reversed(_ALL)}


def known(name: str) -> Dataset | None:
    """The dataset of that short name or repository, whichever way it is spelled."""
    return _BY_NAME.get(_spelling(name)) or _BY_REPOSITORY.get(name.lower())


def recognise(columns: Iterable[str]) -> Dataset | None:
    """The first dataset with these columns."""
    available = set(columns)
    return next((d for d in _ALL if d.signature and available.issuperset(d.signature)), None)
