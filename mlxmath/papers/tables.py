"""The tables of a paper, as heads and rows of text: LaTeX and Markdown show the same."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mlxmath.evaluation.wording import interval, p_value, percent, points
from mlxmath.papers.facts import Facts, RunFacts
from mlxmath.runtime.console import duration, size
from mlxmath.sharing.contents import last_parts
from mlxmath.sweeps.report import difference_of, value_of
from mlxmath.sweeps.runs import is_share

_MOST_COLUMNS = 4
"""Settings that differ, in one table."""
_LONGEST, _WRAPPED = 40, 400
"""Characters of a value in a column that does not wrap, and in one that does."""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        label: ours, for the file's name and references.
        columns: LaTeX's column types; empty: text, then figures.
    """

    label: str
    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    columns: str = ""

    def shortened(self, most: int) -> "Table":
        """With values of so many characters, which do not make it wider than a page."""
        short = partial(_short, most=most)
        return replace(
            self, heads=tuple(map(short, self.heads)), rows=tuple(tuple(map(short, row)) for row in self.rows)
        )


def tables_of(facts: Facts) -> list[Table]:
    """All that there is something to say in."""
    found = [*_settings(facts.runs), *_cost(facts.runs)]
    for number, (name, _, results) in enumerate(facts.evaluations, 1):
        found += _accuracy(_numbered("accuracy", number, len(facts.evaluations)), name, results)
    for number, (name, _, results) in enumerate(facts.sweeps, 1):
        found.append(_ablation(_numbered("ablation", number, len(facts.sweeps)), name, results))
    return [table.shortened(_WRAPPED if "p{" in table.columns else _LONGEST) for table in found if table.rows]


def _numbered(name: str, number: int, count: int) -> str:
    return name if count == 1 else f"{name}-{number}"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _settings(runs: Sequence[RunFacts]) -> Iterator[Table]:
    """Those that all runs share, and those in which they differ, a row a run."""
    chosen = {name for run in runs for name in run.chosen}
    names = [name for name in dict.fromkeys(name for run in runs for name in run.settings) if name in chosen]
    shared = [name for name in names if len({run.settings.get(name) for run in runs}) == 1]
    rows = tuple((name, runs[0].settings[name]) for name in shared)
    what = "Settings of the run" if len(runs) == 1 else "Settings that all runs share"
    yield Table("settings", f"{what}: what was chosen, and what always matters.", ("setting", "value"), rows,
                columns=r"lp{0.62\linewidth}")  # fmt: skip
    different = [name for name in names if name not in shared]
    for start in range(0, len(different), _MOST_COLUMNS):
        part = different[start : start + _MOST_COLUMNS]
        number = "" if len(different) <= _MOST_COLUMNS else f"-{start // _MOST_COLUMNS + 1}"
        values = tuple((run.name, *(run.settings.get(name, "–") for name in part)) for run in runs)
        short = Counter(name.partition(".")[2] for name in different)
        heads = ("run", *(own if short[own := name.partition(".")[2]] == 1 else name for name in part))
        caption = "Settings in which the runs differ (–: not in that run)."
        yield Table(f"differences{number}", caption, heads, values, columns="l" * (1 + len(part)))


def _cost(runs: Sequence[RunFacts]) -> Iterator[Table]:
    energy = any(run.joules is not None for run in runs)
    heads = ("run", "trainable", "of all", "steps", "time", "peak memory", *(("energy",) if energy else ()))
    rows = []
    for run in runs:
        trained, total = run.told("adapter", "num_trainable"), run.told("adapter", "num_total")
        row = [
            run.name, f"{trained:,}" if isinstance(trained, int) else "–",
            percent(trained / total) if isinstance(trained, int) and isinstance(total, int) and total else "–",
            f"{run.state.steps:,}", duration(run.state.seconds),
            "–" if run.state.peak_bytes is None else size(run.state.peak_bytes),
        ]  # fmt: skip
        row += [("–" if run.joules is None else f"{run.joules / 3600:,.1f} Wh")] if energy else []
        rows.append(tuple(row))
    named = (str(run.told("device", "device") or "unknown").partition(" (")[0] for run in runs)
    devices = ", ".join(dict.fromkeys(named))
    told = "energy is that of the devices, whoever used them" if energy else "the system tells nobody the energy"
    caption = f"What training took on {devices}: parameters that train, time of the steps and measurements, peak memory"
    yield Table("cost", f"{caption} of the device; {told}.", heads, tuple(rows))


def _accuracy(label: str, name: str, results: dict[str, Any]) -> Iterator[Table]:
    """Each model on each benchmark, and the comparisons."""
    contestants, settings = results["contestants"], results["settings"]
    benchmarks = [str(one["name"]) for one in settings["benchmarks"]]
    several = len(benchmarks) > 1
    rows = []
    for model, found in contestants.items():
        by = found["by"].get("benchmark", {}) if several else {}
        parts = [(where, by[where]) for where in benchmarks if where in by]
        for where, one in [*parts, ("all" if several else "", found["accuracy"])]:
            figures = (f"{percent(one['value'])} ({interval(one)})", f"{one['total']:,}")
            rows.append((model, where, *figures) if several else (model, *figures))
    drawn = (
        f"{settings['samples']} answers a problem at temperature {settings['temperature']:g}, seed {settings['seed']}"
    )
    how = drawn if settings["temperature"] else "greedy"
    asked = ", ".join(map(last_parts, benchmarks))
    caption = f"Accuracy on {asked} with 95 % intervals ({how}; evaluation {name})."
    yield Table(label, caption, ("model", *(("benchmark",) if several else ()), "accuracy", "problems"), tuple(rows))
    pairs = tuple(
        (f"{one['other']} − {one['base']}", _points(one),
         p_value(one["p_value"]).removeprefix("p = "), f"{one['fixed']:,}", f"{one['broken']:,}")
        for one in results["comparisons"]
    )  # fmt: skip
    how = (
        "confidence sequences and p that hold whenever one stops" if settings.get("until_decided") else
        "intervals (Newcombe's) and the exact McNemar test's p" if settings["samples"] == 1 else
        "intervals (Newcombe's where a problem is right or wrong, adjusted Wald ones where it counts by its share of "
        "right answers); fixed, broken and the exact McNemar test's p are of the majority's answers"
    )  # fmt: skip
    caption = f"Differences in percentage points on the same problems, with 95 % {how}."
    yield Table(f"{label}-compared", caption, ("models", "difference", "p", "fixed", "broken"), pairs)


def _points(one: dict[str, Any]) -> str:
    return f"{points(one['difference'])} ({points(one['low'])} to {points(one['high'])})"


def _ablation(label: str, name: str, results: dict[str, Any]) -> Table:
    found, metric, answers = results["configurations"], results["metric"], results["ranked_by"] or ""
    asked = any(one["accuracy"] for one in found)
    seeds = len(results["seeds"]) > 1
    heads = ["configuration", "steps", *([f"held-out {metric}"] if metric else [])]
    heads += ["± seeds"] if metric and seeds else []
    heads += ["difference"] if metric else []
    heads += ["accuracy", "difference (points)"] if asked else []
    rows = []
    for one in found:
        is_reference = one["number"] == results["against"]
        row = [one["label"], f"{one['steps']:,}"]
        row += [value_of(one["held_out"], metric)] if metric else []
        row += ["–" if one["spread"] is None else f"{one['spread']:.4f}"] if metric and seeds else []
        scale = (100.0, 1) if is_share(metric) else (1.0, 4)
        row += ["reference" if is_reference else difference_of(one["difference"], *scale)] if metric else []
        if asked:
            accuracy = one["accuracy"]
            row.append("–" if accuracy is None else f"{percent(accuracy['estimate'])} ({interval(accuracy)})")
            row.append("reference" if is_reference else difference_of(one["answers_difference"], 100.0, 1))
        rows.append(tuple(row))
    kind = {"ablation": "Ablations: each differs from the first in what it names", "grid": "All configurations",
            "random": "Configurations drawn at random"}.get(str(results["search"]), "Configurations")  # fmt: skip
    best = next((one["label"] for one in found if one["number"] == results["best"]), "none")
    caption = (
        f"{kind} (sweep {name}; {len(results['seeds'])} seed{'s' * seeds}). Differences are to the reference over the "
        f"same held-out rows or problems, with 95 % intervals. Best by the {answers}: {best}."
    )
    return Table(label, caption, tuple(heads), tuple(rows))
