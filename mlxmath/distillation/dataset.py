"""Judges what there is, problem by problem; writes what is kept, what is not, pairs of both, and a card."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mlxmath import __version__
from mlxmath.config.methods import DistillationConfig
from mlxmath.distillation.filter import NOT_BEST, REPEATED, choose, judge, pair
from mlxmath.distillation.questions import Task
from mlxmath.distillation.responses import Response
from mlxmath.runtime.files import atomic_file, atomic_write
from mlxmath.runtime.markdown import cell

SOLUTIONS, REJECTED, PAIRS, CARD, LENGTHS = "solutions.jsonl", "rejected.jsonl", "pairs.jsonl", "card.md", "lengths.png"
NOT_ANSWERED = "not answered"
_BATCH = 64
"""Problems judged together."""
_MEASURES = ("faithfulness", "validity", "provenance", "support", "liveness")
_QUANTILES = {"least": 0, "5 %": 5, "25 %": 25, "median": 50, "75 %": 75, "95 %": 95, "most": 100}


@dataclass
class DistillResult:
    """Where a dataset of solutions is, and what it holds."""

    folder: Path
    num_problems: int = 0
    num_judged: int = 0
    num_correct: int = 0
    num_kept: int = 0
    num_pairs: int = 0
    """Problems with a kept solution and a wrong one."""
    num_unanswered: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Rejected and unanswered ones."""
    accepted_of_problem: Counter[int] = field(default_factory=Counter)
    """Problems by their number of accepted solutions, before the best is chosen."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    """In the currency of the prices."""
    spread: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Of each kept solution its characters, tokens and measures; "rejected": the characters of each other one."""

    @property
    def num_solved(self) -> int:
        """Problems with at least one accepted solution."""
        return self.num_problems - self.accepted_of_problem[0]

    @property
    def paths(self) -> dict[str, Path]:
        """The files by their names."""
        return {name: self.folder / name for name in (SOLUTIONS, PAIRS, REJECTED, CARD)}

    def summary(self) -> list[str]:
        """Lines for people: how many solutions were kept, and why the others were not."""
        return [
            *(f"rejected: {count:,} {reason}" for reason, count in self.reasons.most_common()),
            f"{self.folder / SOLUTIONS}: {self.num_kept:,} solutions to {self.num_solved:,} of {self.num_problems:,} "
            f"problems; {self.num_correct:,} of {self.num_judged:,} right; {self.num_pairs:,} pairs",
        ]


def write_dataset(
    folder: Path,
    problems: Iterable[Sequence[Response]],
    unanswered: Sequence[tuple[Task, str]],
    settings: DistillationConfig,
) -> DistillResult:
    """Write what is kept, what is not with its reason, and pairs of a right and a wrong solution.

    Args:
        folder: for the files.
        problems: the responses to each problem; none for a problem without an answer.
        unanswered: tasks that have none, and why.
        settings: the filter's.
    """
    result = DistillResult(folder, num_unanswered=len(unanswered))
    with (
        atomic_file(folder / SOLUTIONS) as kept,
        atomic_file(folder / REJECTED) as rejected,
        atomic_file(folder / PAIRS) as pairs,
    ):
        waiting = iter(problems)
        while some := list(islice(waiting, _BATCH)):
            judged = iter(choose(judge([one for responses in some for one in responses], settings), settings.keep))
            for responses in some:
                own = list(islice(judged, len(responses)))
                result.num_problems += 1
                result.accepted_of_problem[sum(one.reason in (None, NOT_BEST, REPEATED) for one in own)] += 1
                if found := pair(own):
                    result.num_pairs += 1
                    pairs.write(_line(found))
                result.num_judged += len(own)
                for one in own:
                    result.num_correct += one.correct
                    (kept if one.reason is None else rejected).write(_line(one.row()))
                    if one.reason is None:
                        result.num_kept += 1
                        measured = {name: getattr(one, name) for name in _MEASURES}
                        measured |= {"characters": len(one.solution), "tokens": one.response.completion_tokens}
                    else:
                        result.reasons[one.reason] += 1
                        measured = {"rejected": len(one.solution)}
                    for name, value in measured.items():
                        result.spread[name] += [] if value is None else [float(value)]
        result.reasons.update([NOT_ANSWERED] * len(unanswered))
        for task, why in unanswered:
            question = task.question
            row = {"id": question.id, "sample": task.sample, "problem": question.text, "answer": question.gold}
            rejected.write(_line(row | {"reason": NOT_ANSWERED, "detail": why}))
    return result


def write_card(result: DistillResult, title: str, facts: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Write card.md and lengths.png: what the dataset holds and how it came about.

    Args:
        result: of `write_dataset`.
        title: what it is.
        facts: how it came about: name and value.
        settings: everything that was set.
    """
    problems, judged, spread = result.num_problems, result.num_judged, result.spread
    tables: list[tuple[str, Sequence[str], Iterable[Sequence[Any]]]] = [
        (f"# {title}", ("", ""), facts.items()),
        ("## Yield", ("", "count", "share"), [
            ("problems", f"{problems:,}", ""),
            ("problems with an accepted solution", *_share(result.num_solved, problems)),
            ("solutions judged", f"{judged:,}", ""),
            ("right by the grader", *_share(result.num_correct, judged)),
            ("kept", *_share(result.num_kept, judged)),
            ("pairs of a kept and a wrong solution", *_share(result.num_pairs, problems)),
        ]),
        ("## Rejected", ("reason", "count", "share of all"),
         [(reason, *_share(n, judged + result.num_unanswered)) for reason, n in result.reasons.most_common()]),
        ("## Accepted solutions a problem", ("accepted", "problems", "share"),
         [(accepted, *_share(n, problems)) for accepted, n in sorted(result.accepted_of_problem.items())]),
        ("## Kept solutions", ("", *_QUANTILES), [
            (name, *(f"{q:,.0f}" for q in np.percentile(spread[name], [*_QUANTILES.values()], method="nearest")))
            for name in ("characters", "tokens") if spread[name]
        ]),
        (f"![lengths]({LENGTHS})", ("measure", "mean", "measured on"),
         [(name, f"{np.mean(spread[name]):.3f}", _share(len(spread[name]), result.num_kept)[1])
          for name in _MEASURES if spread[name]]),
        ("## Settings", ("setting", "value"), settings.items()),
    ]  # fmt: skip
    parts = tables_of(tables)
    parts.append(
        f"Train on it: `mlxmath train --dataset {result.folder / SOLUTIONS}`; on its pairs: `mlxmath dpo --dataset "
        f"{result.folder / PAIRS}`. Made by mlxmath {__version__}."
    )
    atomic_write(result.folder / CARD, "\n\n".join(parts) + "\n")
    _plot(result, result.folder / LENGTHS)


def tables_of(tables: Iterable[tuple[str, Sequence[str], Iterable[Sequence[Any]]]]) -> list[str]:
    """Tables in Markdown, each with its heading; (heading, heads, rows), those without a row are left out."""
    parts = []
    for heading, head, rows in tables:
        lines = [f"| {' | '.join(cell('-' if value is None else value) for value in row)} |" for row in (head, *rows)]
        if len(lines) > 1:
            parts.append("\n".join([heading, "", lines[0], "|" + "---|" * len(head), *lines[1:]]))
    return parts


def _share(part: int, whole: int) -> tuple[str, str]:
    return f"{part:,}", f"{100 * part / whole:.1f} %" if whole else "-"


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def _plot(result: DistillResult, path: Path) -> None:
    """Characters of kept and rejected solutions."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    spread = [result.spread["characters"], result.spread["rejected"]]
    axes.hist(spread, bins=40, stacked=True, color=["#2563eb", "#d1d5db"], label=["kept", "rejected"])
    axes.set(xlabel="characters", ylabel="solutions")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    atomic_write(path, buffer.getvalue())
