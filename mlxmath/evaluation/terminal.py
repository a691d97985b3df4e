"""The summary that a run ends with, as tables on standard error."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from mlxmath.evaluation.wording import SOUNDNESS, interval, percent, points, sentence, soundness, templates
from mlxmath.runtime.console import is_shown


def show(results: Mapping[str, Any]) -> None:
    """Print accuracy, soundness, comparisons and, with several answers, what voting brings; in a library nothing."""
    if not is_shown():
        return
    console = Console(stderr=True)
    table = Table(title=f"{results['num_problems']:,} problems", title_justify="left")
    several = any("majority" in found for found in results["contestants"].values())
    table.add_column("model")
    table.add_column("template")
    asked_in = templates(results["settings"])
    for name in ("accuracy", "95 % interval", *(("majority",) if several else ()), "cut off", "tokens", "tok/s"):
        table.add_column(name, justify="right")
    for label, found in results["contestants"].items():
        speed = found["tokens_per_second"]
        table.add_row(
            label,
            asked_in[label],
            percent(found["accuracy"]["value"]),
            interval(found["accuracy"]),
            *((percent(found["majority"]["value"]),) if several else ()),
            str(found["cut_off"]),
            f"{found['tokens']['mean']:,.0f}",
            "-" if speed is None else f"{speed:,.0f}",
        )
    if ensemble := results.get("ensemble"):
        row = ["ensemble", "-", percent(ensemble["accuracy"]["value"]), interval(ensemble["accuracy"])]
        table.add_row(*row, *["-"] * (len(table.columns) - len(row)))
    console.print(table)
    table = Table("model", title="soundness, in how many answers", title_justify="left")
    for name in SOUNDNESS:
        table.add_column(name, justify="right")
    for label, found in results["contestants"].items():
        table.add_row(label, *soundness(found))
    console.print(table)
    for comparison in results["comparisons"]:
        console.print(sentence(comparison), highlight=False)
        for grouping, values in comparison["by"].items():
            small = Table(title=f"by {grouping}", title_justify="left")
            small.add_column(grouping)
            names = (comparison["base"], comparison["other"])
            for name in (*names, "difference", "fixed", "broken"):
                small.add_column(name, justify="right")
            for value, found in values.items():
                before, after = (results["contestants"][name]["by"][grouping][value]["value"] for name in names)
                small.add_row(
                    value, percent(before), percent(after), points(found["difference"]), str(found["fixed"]),
                    str(found["broken"]),
                )  # fmt: skip
            console.print(small)
    for vote in results["votes"]:
        console.print(sentence(vote), highlight=False)
