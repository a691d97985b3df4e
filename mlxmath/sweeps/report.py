"""A sweep's report out of what it found: a page, Markdown, a picture of the curves, a table on the terminal."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from rich.console import Console
from rich.table import Column, Table

from mlxmath.evaluation.plots import COLORS, plain, save
from mlxmath.evaluation.wording import percent
from mlxmath.runtime.console import duration, harmless, is_shown, printable, say, size
from mlxmath.runtime.files import atomic_write
from mlxmath.runtime.markdown import cell, code
from mlxmath.runtime.sealed import sealed_json
from mlxmath.sweeps.runs import is_share

RESULTS, CURVES = "sweep.json", "curves.png"
_MOST_NAMED = 8
"""Curves that have a name and a color of their own."""


def write_report(results: Mapping[str, Any], folder: Path) -> None:
    """Write sweep.json, report.md, report.html and curves.png, and print the table."""
    sealed_json(folder / RESULTS, dict(results))
    save(curves(results), folder / CURVES)
    view = view_of(results)
    atomic_write(folder / "report.md", _template("report.md").render(view))
    style = (Path(__file__).parents[1] / "evaluation" / "page" / "report.css").read_text(encoding="utf-8")
    picture = base64.b64encode((folder / CURVES).read_bytes()).decode()
    atomic_write(folder / "report.html", _template("report.html").render(view, style=style, picture=picture))
    show(view)
    say(f"report: {folder / 'report.html'}")


def _template(name: str) -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("page")), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, autoescape=name.endswith(".html"),
        finalize=lambda value: harmless(value) if type(value) is str else value,
    )  # fmt: skip
    environment.filters |= {"cell": cell, "code": code}
    return environment.get_template(name)


def view_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """What is shown anywhere: the results, the tables in words, and sentences on them."""
    found, metric = results["configurations"], results["metric"]
    numbered = {one["number"]: one for one in found}
    best, against = numbered.get(results["best"]), numbered.get(results["against"])
    answers = any(one["accuracy"] for one in found)
    heads = ["configuration", "steps"]
    heads += [f"held-out {metric}"] if metric else []
    heads += ["± seeds"] if metric and len(results["seeds"]) > 1 else []
    heads += ["difference (95 %)"] if metric else []
    heads += ["accuracy (95 %)", "difference in points (95 %)"] if answers else []
    rows = [_row(one, results, best, against, answers=answers) for one in _in_order(found, results)]
    costs = [
        [one["label"], str(run["seed"]), run["status"], f"{run['steps']:,}",
         "–" if run["trainable_parameters"] is None else f"{run['trainable_parameters']:,}",
         duration(run["cost"]["seconds"]),
         "–" if run["cost"]["peak_bytes"] is None else size(run["cost"]["peak_bytes"])]
        for one in found for run in one["runs"]
    ]  # fmt: skip
    return {
        **results, "heads": heads, "rows": rows, "costs": costs, "sentences": _sentences(results, best, against),
        "cost_heads": [
            "configuration", "seed", "status", "steps", "trainable parameters", "training time", "peak memory"
        ],
        "commands": [(one["label"], run["seed"], run["commands"]) for one in found for run in one["runs"]],
        "failures": [(one["label"], run["seed"], run["error"]) for one in found for run in one["runs"] if run["error"]],
    }  # fmt: skip


def _in_order(found: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """As the ablations are listed; else those that went furthest first, among them the best."""
    if results["search"] == "ablation":
        return list(found)
    sign = -1.0 if is_share(results["metric"]) else 1.0

    def key(one: Mapping[str, Any]) -> tuple[Any, ...]:
        value = -one["accuracy"]["estimate"] if one["accuracy"] else one["held_out"]
        worth = float("inf") if value is None else value * (1.0 if one["accuracy"] else sign)
        return one["number"] != results["best"], -one["is_whole"], -one["steps"], worth, one["number"]

    return sorted(found, key=key)


def value_of(value: float | None, metric: str | None) -> str:
    """A held-out value in words."""
    return "–" if value is None else percent(value) if is_share(metric) else f"{value:.4f}"


def difference_of(found: Mapping[str, float] | None, scale: float = 1.0, digits: int = 4) -> str:
    """A difference with its interval in words."""
    if found is None:
        return "–"
    low, high = (f"{scale * found[end]:+.{digits}f}" for end in ("low", "high"))
    return f"{scale * found['estimate']:+.{digits}f} ({low} to {high})".replace("-", "−")


def _row(
    one: Mapping[str, Any], results: Mapping[str, Any], best: Mapping[str, Any] | None,
    against: Mapping[str, Any] | None, *, answers: bool,
) -> list[str]:  # fmt: skip
    metric = results["metric"]
    row = [one["label"] + (" (best)" if one is best else ""), f"{one['steps']:,}"]
    if metric:
        row.append(value_of(one["held_out"], metric))
    if metric and len(results["seeds"]) > 1:
        row.append("–" if one["spread"] is None else f"{one['spread']:.4f}")
    points = (100.0, 1) if is_share(metric) else (1.0, 4)
    if metric:
        row.append("reference" if one is against else difference_of(one["difference"], *points))
    if answers:
        accuracy = one["accuracy"]
        row.append(
            f"{percent(accuracy['estimate'])} ({100 * accuracy['low']:.1f} to {100 * accuracy['high']:.1f})" if accuracy
            else "–"
        )  # fmt: skip
        row.append("reference" if one is against else difference_of(one["answers_difference"], 100.0, 1))
    return row


def _sentences(
    results: Mapping[str, Any], best: Mapping[str, Any] | None, against: Mapping[str, Any] | None
) -> list[str]:
    """What the figures say, and what they do not."""
    told, found, metric = [], results["configurations"], results["metric"]
    if best is None:
        return ["No run has come to a figure yet."]
    told.append(f"The best by the {results['ranked_by']} is {best['label']}: {best['runs'][0]['folder']}.")
    if against is not None:
        name = "answers_difference" if any(one["accuracy"] for one in found) else "difference"
        pairs = [one for one in found if one[name] is not None]
        even = [one["label"] for one in pairs if one[name]["low"] <= 0 <= one[name]["high"]]
        if pairs:
            rows = "problems" if "answers" in name else "held-out rows"
            told.append(
                f"Differences are to {against['label']}, over the same {rows}, with 95 % intervals; {len(even)} "
                f"of {len(pairs)} are not told apart from it" + (f" ({', '.join(even)})." if even else ".")
            )
            told.append(
                "Each interval is that of one comparison, over the choice of problems and not of seeds; the best was "
                "chosen by these figures, which flatter it a little."
            )
    others = [one for one in found if one is not against and one["steps"] and metric]
    unpaired = [one["label"] for one in others if not one["difference"]]
    if unpaired:
        told.append(
            f"Without a difference, since their held-out rows are others or not all told: {', '.join(unpaired)}."
        )
    if not results["same_rows"]:
        told.append("The runs measured on different numbers of held-out rows: their held-out values do not compare.")
    if len(results["rungs"]) > 1:
        rungs = ", ".join("the end" if pause is None else f"step {pause}" for pause in results["rungs"])
        told.append(f"Successive halving: {' → '.join(map(str, results['keep']))} configurations, up to {rungs}.")
    if not results["complete"]:
        told.append("Not everything is done; the same command goes on.")
    return told


def curves(results: Mapping[str, Any]) -> Any:
    """Held-out values over the steps: a line a run, of a color a configuration."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    order = _in_order(results["configurations"], results)
    for place, one in reversed(list(enumerate(order))):
        is_best, is_named = one["number"] == results["best"], place < _MOST_NAMED
        color = COLORS[(place + 1) % len(COLORS)] if is_named else "#c4c9d1"
        style = "-" if place < len(COLORS) else "--"
        for i, run in enumerate(run for run in one["runs"] if run["history"]):
            steps, values = zip(*run["history"], strict=True)
            axes.plot(
                steps, values, style, color=color, marker="o", markersize=3, linewidth=2.2 if is_best else 1.3,
                label=plain(one["label"]) if is_named and not i else None,
            )  # fmt: skip
    axes.set(xlabel="optimizer step", ylabel=f"held-out {results['metric'] or 'value'}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def show(view: Mapping[str, Any]) -> None:
    """Print the table and what it says; in a library nothing."""
    if not is_shown():
        return
    console = Console(stderr=True, markup=False, emoji=False)
    right = [Column(printable(name), justify="right") for name in view["heads"][1:]]
    table = Table(view["heads"][0], *right)
    for row in view["rows"]:
        table.add_row(*map(printable, row))
    console.print(table)
    for sentence in view["sentences"]:
        console.print(printable(sentence), highlight=False)
