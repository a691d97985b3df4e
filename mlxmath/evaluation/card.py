"""The results as Markdown, for a model card."""

from collections.abc import Mapping
from typing import Any

from mlxmath.evaluation.wording import SOUNDNESS, asked_in, cut_off, interval, limits, percent, sentence, soundness


def markdown(results: Mapping[str, Any]) -> str:
    """A table of all contestants, a sentence for each comparison, and how it was measured."""
    settings = results["settings"]
    sentences = [f"- {_escape(sentence(comparison))}." for comparison in [*results["comparisons"], *results["votes"]]]
    names = [benchmark["name"] for benchmark in settings["benchmarks"]]
    by_benchmark = len(names) > 1 and all("benchmark" in c["by"] for c in results["contestants"].values())
    heads = ["model", *(names if by_benchmark else ()), "accuracy", "95 % interval", *SOUNDNESS, "tokens"]
    lines = ["## Evaluation", "", _row(heads), _row(["---", *["---:"] * (len(heads) - 1)])]
    for label, found in results["contestants"].items():
        cells = [percent(found["by"]["benchmark"][name]["value"]) for name in names] if by_benchmark else []
        tokens = f"{found['tokens']['mean']:.0f}"
        accuracy = found["accuracy"]
        cells += [percent(accuracy["value"]), interval(accuracy), *soundness(found), tokens]
        lines.append(_row([label, *cells]))
    if ensemble := results.get("ensemble"):
        gap = ["–"] * len(names) if by_benchmark else []
        accuracy = ensemble["accuracy"]
        rest = ["–"] * (len(SOUNDNESS) + 1)
        lines.append(_row(["ensemble", *gap, percent(accuracy["value"]), interval(accuracy), *rest]))
    lines += ["", *sentences]
    how = [
        f"{', '.join(names)} ({results['num_problems']:,} problems)",
        f"{settings['shots']}-shot" if settings["shots"] else "zero-shot",
        asked_in(settings),
        "greedy" if not settings["temperature"] else
        f"{settings['samples']} samples at temperature {settings['temperature']:g}, seed {settings['seed']}",
        *filter(None, (limits(settings),)),
        cut_off(results),
        f"mlxmath {settings['mlxmath']}",
    ]  # fmt: skip
    if settings["retrieve"]:
        how.insert(2, f"formulas from {settings['retrieve']}")
    meaning = (
        "A percentage is of as many answers as stand beside it: those in which there is something to measure. "
        "True: equations that hold; grounded: operands from the problem or an earlier result; supported: answers that "
        "an equation gives; used: equations that lead to the answer; doubt: answers that go round in circles."
    )
    return "\n".join([*lines, "", f"Measured on {_escape('; '.join(how))}. {meaning}", ""])


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(map(_escape, cells)) + " |"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
