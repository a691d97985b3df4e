"""The results as Markdown, for a model card."""

from collections.abc import Mapping
from typing import Any

from mlxmath.evaluation.wording import interval, percent, sentence


def markdown(results: Mapping[str, Any]) -> str:
    """A table of all contestants, a sentence for each comparison, and how it was measured."""
    settings = results["settings"]
    names = [benchmark["name"] for benchmark in settings["benchmarks"]]
    by_benchmark = len(names) > 1 and all("benchmark" in c["by"] for c in results["contestants"].values())
    heads = ["model", *(names if by_benchmark else ()), "accuracy", "95 % interval", "tokens an answer"]
    lines = ["## Evaluation", "", _row(heads), _row(["---", *["---:"] * (len(heads) - 1)])]
    for label, found in results["contestants"].items():
        cells = [percent(found["by"]["benchmark"][name]["value"]) for name in names] if by_benchmark else []
        tokens = f"{found['tokens']['mean']:.0f}"
        lines.append(_row([label, *cells, percent(found["accuracy"]["value"]), interval(found["accuracy"]), tokens]))
    if ensemble := results.get("ensemble"):
        gap = ["–"] * len(names) if by_benchmark else []
        accuracy = ensemble["accuracy"]
        lines.append(_row(["ensemble", *gap, percent(accuracy["value"]), interval(accuracy), "–"]))
    lines += ["", *(f"- {_escape(sentence(comparison))}." for comparison in results["comparisons"])]
    how = [
        f"{', '.join(names)} ({results['num_problems']:,} problems)",
        f"{settings['shots']}-shot" if settings["shots"] else "zero-shot",
        f"template {settings['template']}",
        "greedy" if not settings["temperature"] else
        f"{settings['samples']} samples at temperature {settings['temperature']:g}, seed {settings['seed']}",
        f"mlxmath {settings['mlxmath']}",
    ]  # fmt: skip
    if settings["retrieve"]:
        how.insert(2, "with formulas in the prompt")
    return "\n".join([*lines, "", f"Measured on {_escape('; '.join(how))}.", ""])


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(map(_escape, cells)) + " |"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
