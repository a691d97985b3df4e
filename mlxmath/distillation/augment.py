"""A dataset with more in it: its problems varied, their solutions written anew by a teacher, none of those held out.

Held out are the problems that `train --validation-split` of the same amount and seed holds out: by the hash of the
question. Neither they nor variations of them are among the others; nor is a variation that shares 13 words in a row
with one of them, or with a benchmark of `--decontaminate`.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlxmath import __version__
from mlxmath.config.schema import RunConfig
from mlxmath.data.dedup import fingerprint_benchmark, normalise
from mlxmath.data.gold import gold
from mlxmath.data.load import held_out
from mlxmath.data.mixture import Mixture
from mlxmath.data.problem import Problem
from mlxmath.data.readers import read_file
from mlxmath.data.variations.tracing import Untraceable
from mlxmath.data.variations.vary import KINDS, Kind, vary
from mlxmath.distillation.dataset import CARD, SOLUTIONS, tables_of
from mlxmath.distillation.distill import distill
from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.files import atomic_file, atomic_write
from mlxmath.runtime.locks import locked

TRAIN, HELD_OUT = "train.jsonl", "held_out.jsonl"
OWN = "own"
_TO_REPHRASE = (
    "\n\nWrite this solution again in other words, with every calculation, and put the final answer within \\boxed{}."
)
_WITH_SOLUTION = "\n\nA right solution:\n"

Row = dict[str, Any]


@dataclass
class Augmented:
    """What was made of a dataset."""

    folder: Path
    num_read: int = 0
    num_held_out: int = 0
    made: Counter[str] = field(default_factory=Counter)
    """Rows, by kind; the dataset's own are `OWN`."""
    left_out: dict[str, Counter[str]] = field(default_factory=dict)
    """What was not made, by kind and reason."""
    asked: dict[str, tuple[int, int]] = field(default_factory=dict)
    """A teacher's solutions, and how many of them the grader finds right, by kind."""

    @property
    def paths(self) -> dict[str, Path]:
        """The files by their names."""
        return {name: self.folder / name for name in (TRAIN, HELD_OUT, CARD)}

    def summary(self) -> list[str]:
        """Lines for people: how many rows of each kind."""
        made = ", ".join(f"{count:,} {kind}" for kind, count in self.made.items())
        return [
            *(
                f"{kind}: {count:,} not made: {reason}"
                for kind, reasons in self.left_out.items()
                for reason, count in reasons.most_common()
            ),
            f"{self.folder / TRAIN}: {self.made.total():,} rows ({made}); {self.num_held_out:,} of {self.num_read:,} "
            "problems are held out",
        ]


def augment(config: RunConfig, *, resume: bool = False, overwrite: bool = False) -> Augmented:
    """Write train.jsonl, held_out.jsonl and card.md.

    Args:
        config: its data, augmentation, distillation and runtime sections count.
        resume: use the answers of a teacher that the folder holds.
        overwrite: replace what it holds.

    Raises:
        InputError: a teacher is missing or not needed, or the folder holds something.
        MlxmathError: the data cannot be read, or the teacher does not answer.
    """
    settings, teacher = config.augmentation, config.distillation
    folder, by_teacher = Path(settings.augment_path), [kind for kind in settings.augment if kind not in KINDS]
    if bool(by_teacher) != bool(teacher.teacher or teacher.teacher_url):
        raise InputError(
            f"--augment {by_teacher[0]}: name who writes the solutions, with --teacher or --teacher-url."
            if by_teacher
            else "--teacher: --augment asks no teacher; add paths or rephrase, or leave the option out."
        )
    with locked(folder, "--augment-path", "mlxmath prepare --augment"):
        if (folder / TRAIN).exists() and not (resume or overwrite):
            raise InputError(
                f"{folder} holds a dataset already; choose another --augment-path, or replace it with --overwrite."
            )
        mixture = Mixture(config.data)
        mixture.choose()
        problems = list(mixture)
        kept, held = _divide(problems, settings.hold_out, settings.augment_seed)
        result = Augmented(folder, len(problems), len(held))
        own = [_row(problem, str(i), OWN) for i, problem in kept]
        varied = list(_varied(kept, held, config, mixture, result))
        rows = [*own, *(row for row in varied if row["solution"])]
        result.made.update(row["kind"] for row in rows)
        for kind in by_teacher:
            found = list(_by_teacher(kind, [*own, *varied], config, result, resume=resume, overwrite=overwrite))
            result.made[kind] += len(found)
            rows += found
        if len(rows) == len(own):
            raise MlxmathError(f"nothing could be added to {', '.join(s.rows.name for s in mixture.sources)}.")
        _write(folder / TRAIN, rows)
        _write(folder / HELD_OUT, (_row(problem, str(i), OWN) for i, problem in held))
        _write_card(result, mixture, config)
    return result


def _divide(
    problems: Sequence[Problem], amount: float, seed: int
) -> tuple[list[tuple[int, Problem]], list[tuple[int, Problem]]]:
    """The problems, numbered, without those held out, and these."""
    numbered = list(enumerate(problems))
    if not amount or not problems:
        return numbered, []
    questions = normalise([max(problem.asked, key=len) for problem in problems]).texts
    if max(amount, 1) >= (num_questions := len(np.unique(questions))):
        raise InputError(f"--hold-out {amount:g} leaves none of {num_questions:,} problems; give a smaller one, or 0.")
    is_held = held_out(questions, amount, seed).tolist()
    return [pair for pair, out in zip(numbered, is_held, strict=True) if not out], [
        pair for pair, out in zip(numbered, is_held, strict=True) if out
    ]


def _varied(
    kept: Sequence[tuple[int, Problem]],
    held: Sequence[tuple[int, Problem]],
    config: RunConfig,
    mixture: Mixture,
    result: Augmented,
) -> Iterator[Row]:
    """Each problem's variations; those without a solution too, since a teacher may write one."""
    settings = config.augmentation
    measured = [*mixture.benchmarks]
    if held:
        texts = [text for _, problem in held for text in problem.asked]
        measured.append(fingerprint_benchmark("the problems held out", "", texts))
    seen = set(normalise([problem.question for _, problem in (*kept, *held)]).texts.tolist())
    for kind in [kind for kind in KINDS if kind in settings.augment]:
        reasons = result.left_out.setdefault(kind, Counter())
        made: list[tuple[str, Problem]] = []
        for number, problem in kept:
            for turn in range(settings.variations):
                try:
                    made.append((f"{number}/{kind}/{turn}", _one(problem, kind, settings.augment_seed, turn)))
                except Untraceable as reason:
                    reasons[str(reason)] += 1
        words = normalise([problem.question for _, problem in made])
        names: list[str | None] = [None] * len(made)
        for benchmark in measured:
            for i in np.flatnonzero(benchmark.holds(words)).tolist():
                names[i] = benchmark.name
        for (name, problem), text, benchmark_name in zip(made, words.texts.tolist(), names, strict=True):
            if benchmark_name is not None:
                reasons[f"occurs in {benchmark_name}"] += 1
            elif text in seen:
                reasons["repeated"] += 1
            else:
                seen.add(text)
                if not problem.solution:
                    reasons["a solution whose text does not follow"] += 1
                yield _row(problem, name, kind)


def _one(problem: Problem, kind: Kind, seed: int, turn: int) -> Problem:
    if gold(problem) is None:
        raise Untraceable("no gold answer")
    return vary(problem, kind, f"{seed} {turn}" if turn else seed).problem


def _row(problem: Problem, identifier: str, kind: str) -> Row:
    row = {"id": identifier, "problem": problem.question, "solution": problem.solution, "answer": gold(problem)}
    return row | {"kind": kind, "of": identifier.partition("/")[0]}


def _by_teacher(
    kind: str, rows: Sequence[Row], config: RunConfig, result: Augmented, *, resume: bool, overwrite: bool
) -> Iterator[Row]:
    """A teacher's solutions to the problems, of which the grader finds right what is kept: further ones (`paths`), or
    those that are there in other words (`rephrase`)."""
    folder = Path(config.augmentation.augment_path) / kind
    asked = [row for row in rows if row["answer"] is not None and (kind == "paths" or row["solution"])]
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "problems.jsonl"
    changes: dict[str, Any] = {"keep": "all", "output_path": str(folder)}
    shown: Iterable[Row] = asked
    if kind == "rephrase":  # in the problem, since not every template takes an instruction
        shown = (row | {"problem": row["problem"] + _WITH_SOLUTION + row["solution"] + _TO_REPHRASE} for row in asked)
        changes["instruction"] = ""
    _write(source, shown)
    data = type(config.data)(dataset=str(source), decontaminate=(), deduplicate="off", tools=config.data.tools)
    own = config.model_copy(update={"data": data, "distillation": config.distillation.model_copy(update=changes)})
    judged = distill(own, resume=resume, overwrite=overwrite)
    result.asked[kind], reasons = (judged.num_judged, judged.num_correct), Counter(judged.reasons)
    result.left_out[kind] = reasons
    by_id = {row["id"]: row for row in asked}
    written = read_file(folder / SOLUTIONS) if (folder / SOLUTIONS).stat().st_size else None
    for found in written.read(written.columns) if written else ():
        row, solution = by_id[str(found["id"])], str(found["solution"])
        if solution.split() == (row["solution"] or "").split():
            reasons["the solution that is there"] += 1
        else:
            yield row | {"id": f"{row['id']}/{kind}/{found['sample']}", "solution": solution, "kind": kind}


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with atomic_file(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def _write_card(result: Augmented, mixture: Mixture, config: RunConfig) -> None:
    """card.md: what the rows are, what was not made, and how it came about."""
    own, teacher = result.made[OWN], config.distillation
    sources = ", ".join(f"{source.rows.name} ({source.split}, {source.revision[:23]})" for source in mixture.sources)
    facts = [
        ("problems from", sources), ("problems", f"{result.num_read:,}"),
        ("held out, with all that could be made of them", f"{result.num_held_out:,}"),
        ("not among them", ", ".join(benchmark.name for benchmark in mixture.benchmarks) or "-"),
        ("rows", f"{result.made.total():,}"),
        ("teacher", teacher.teacher or (teacher.teacher_url and f"{teacher.teacher_model} at {teacher.teacher_url}")),
    ]  # fmt: skip
    not_made = [(kind, *pair) for kind, reasons in result.left_out.items() for pair in reasons.most_common()]
    parts = tables_of([
        ("# Augmented problems", ("", ""), facts),
        ("## Rows", ("kind", "rows", "a problem"),
         [(kind, f"{n:,}", f"{n / own:.2f}" if own else "-") for kind, n in result.made.items()]),
        ("## Teacher", ("kind", "solutions", "right by the grader"),
         [(kind, f"{n:,}", f"{right:,}") for kind, (n, right) in result.asked.items()]),
        ("## Not made", ("kind", "reason", "count"),
         [(kind, reason, f"{n:,}") for kind, reason, n in not_made]),
        ("## Settings", ("setting", "value"), config.augmentation.model_dump().items()),
    ])  # fmt: skip
    measured = f" --validation-dataset {result.folder / HELD_OUT}" if result.num_held_out else ""
    parts.append(
        f"Train on it: `mlxmath train --dataset {result.folder / TRAIN}{measured}`. Made by mlxmath {__version__}."
    )
    atomic_write(result.folder / CARD, "\n\n".join(parts) + "\n")
