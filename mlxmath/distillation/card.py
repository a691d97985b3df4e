"""What a dataset of solutions holds and how it came about: card.md, and a histogram of lengths."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from mlxmath import __version__
from mlxmath.distillation.filter import Judged
from mlxmath.runtime.files import atomic_write

CARD, LENGTHS = "card.md", "lengths.png"
_QUANTILES = (0, 5, 25, 50, 75, 95, 100)


@dataclass
class Tally:
    """Counts and distributions, taken as solutions are judged."""

    num_problems: int = 0
    num_judged: int = 0
    num_correct: int = 0
    num_kept: int = 0
    num_pairs: int = 0
    """Problems with a kept solution and a wrong one."""
    reasons: Counter[str] = field(default_factory=Counter)
    accepted_of_problem: Counter[int] = field(default_factory=Counter)
    """Problems by their number of accepted solutions, before the best is chosen."""
    characters: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    rejected_characters: list[int] = field(default_factory=list)
    measures: dict[str, list[float]] = field(default_factory=dict)

    def add(self, one: Judged) -> None:
        """Count a judged solution."""
        self.num_judged += 1
        self.num_correct += one.correct
        if one.reason is not None:
            self.reasons[one.reason] += 1
            self.rejected_characters.append(len(one.solution))
            return
        self.num_kept += 1
        self.characters.append(len(one.solution))
        if one.candidate.completion_tokens is not None:
            self.tokens.append(one.candidate.completion_tokens)
        row = one.row()
        for name in ("faithfulness", "validity", "provenance", "support", "liveness"):
            if row[name] is not None:
                self.measures.setdefault(name, []).append(float(row[name]))

    @property
    def num_solved(self) -> int:
        """Problems with at least one accepted solution."""
        return sum(n for accepted, n in self.accepted_of_problem.items() if accepted)


def write_card(folder: Path, title: str, facts: Mapping[str, Any], settings: Mapping[str, Any], tally: Tally) -> None:
    """Write card.md and lengths.png.

    Args:
        folder: of the dataset.
        title: what it is.
        facts: how it came about: name and value.
        settings: everything that was set.
        tally: of the judged solutions.
    """
    problems, judged = tally.num_problems, tally.num_judged
    lines = [f"# {title}", "", *_table(("", ""), facts.items())]
    lines += ["", "## Yield", ""]
    lines += _table(
        ("", "count", "share"),
        [
            ("problems", _count(problems), ""),
            ("problems with an accepted solution", _count(tally.num_solved), _share(tally.num_solved, problems)),
            ("solutions judged", _count(judged), ""),
            ("right by the grader", _count(tally.num_correct), _share(tally.num_correct, judged)),
            ("kept", _count(tally.num_kept), _share(tally.num_kept, judged)),
            ("pairs of a kept and a wrong solution", _count(tally.num_pairs), _share(tally.num_pairs, problems)),
        ],
    )
    if tally.reasons:
        lines += ["", "## Rejected", ""]
        rows = [(reason, _count(n), _share(n, judged)) for reason, n in tally.reasons.most_common()]
        lines += _table(("reason", "count", "share"), rows)
    if tally.accepted_of_problem:
        lines += ["", "## Accepted solutions a problem", ""]
        rows = [
            (str(accepted), _count(n), _share(n, problems)) for accepted, n in sorted(tally.accepted_of_problem.items())
        ]
        lines += _table(("accepted", "problems", "share"), rows)
    if tally.num_kept:
        lines += ["", "## Kept solutions", ""]
        lengths = {"characters": tally.characters, "tokens": tally.tokens}
        spread = [(name, *map(_count, _quantiles(values))) for name, values in lengths.items() if values]
        lines += _table(("", *(_quantile_name(q) for q in _QUANTILES)), spread)
        lines += ["", f"![lengths]({LENGTHS})", ""]
        means = [(n, f"{sum(v) / len(v):.3f}", _share(len(v), tally.num_kept)) for n, v in tally.measures.items()]
        lines += _table(("measure", "mean", "measured on"), means)
    lines += ["", "## Settings", "", *_table(("setting", "value"), settings.items())]
    lines += [
        "",
        f"Train on it: `mlxmath train --dataset {folder / 'solutions.jsonl'}`; on its pairs: `mlxmath dpo --dataset "
        f"{folder / 'pairs.jsonl'}`. Made by mlxmath {__version__}.",
    ]
    atomic_write(folder / CARD, "\n".join(lines) + "\n")
    _plot(tally, folder / LENGTHS)


def _table(head: Sequence[str], rows: Any) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return lines + [f"| {' | '.join(_cell(value) for value in row)} |" for row in rows]


def _cell(value: Any) -> str:
    return " ".join(str("-" if value is None else value).split()).replace("|", "\\|")


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _quantile_name(quantile: int) -> str:
    return {0: "least", 50: "median", 100: "most"}.get(quantile, f"{quantile} %")


def _quantiles(values: Sequence[int]) -> list[float]:
    ordered = sorted(values)
    return [ordered[round(q / 100 * (len(ordered) - 1))] for q in _QUANTILES]


def _plot(tally: Tally, path: Path) -> None:
    """Characters of kept and rejected solutions."""
    from matplotlib.figure import Figure

    if not tally.characters and not tally.rejected_characters:
        path.unlink(missing_ok=True)
        return
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.hist(
        [tally.characters, tally.rejected_characters],
        bins=40,
        stacked=True,
        color=["#2563eb", "#d1d5db"],
        label=["kept", "rejected"],
    )
    axes.set(xlabel="characters", ylabel="solutions")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    atomic_write(path, buffer.getvalue())
