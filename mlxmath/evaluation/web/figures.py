"""The report's figures, a section each: charts and tables out of results.json."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from mlxmath.evaluation.score import OUTCOMES, Scored
from mlxmath.evaluation.web import charts
from mlxmath.evaluation.wording import SOUNDNESS, p_value, percent, points, soundness

PERCENTS = ("0 %", "25", "50", "75", "100 %")


def figures(results: Mapping[str, Any], scored: Scored) -> Iterator[str]:
    """All sections that there is something to show in."""
    contestants = results["contestants"]
    yield _accuracy(results)
    if comparisons := [*results["comparisons"], *results["votes"]]:
        yield _differences(comparisons)
    rows = [charts.ending_row(label, found["categories"]) for label, found in contestants.items()]
    yield _section(
        "How answers ended",
        "An arithmetic slip is a wrong answer with a false equation in it; a doubt loop repeats itself.",
        *rows,
        charts.legend(),
    )
    for grouping in next(iter(contestants.values()))["by"]:
        yield _by_group(results, grouping)
    if any("pass_at" in found for found in contestants.values()):
        yield _several_answers(contestants)
    yield _section(
        "Soundness",
        "Of the equations in an answer: how many are true; how many operands come from the problem or before; "
        "whether the final answer is a result; how many lead to it. Doubt: answers that go round in circles. "
        "A percentage is of as many answers as stand beside it: those in which there is something to measure.",
        charts.table(["", *SOUNDNESS], [[label, *soundness(found)] for label, found in contestants.items()]),
    )
    yield _length_and_speed(contestants, scored)


def _accuracy(results: Mapping[str, Any]) -> str:
    contestants = results["contestants"]
    rows = [
        charts.interval_row(f"{label}{suffix}", found[measure], i % 6)
        for measure, suffix in (("accuracy", ""), ("majority", ", majority"))
        for i, (label, found) in enumerate(contestants.items())
        if measure in found
    ]
    if ensemble := results.get("ensemble"):
        rows.append(charts.interval_row("ensemble", ensemble["accuracy"], 5))
    rows.append(charts.scale_row(PERCENTS))
    kind = "adjusted Wald" if results["settings"]["samples"] > 1 else "Wilson"
    return _section("Accuracy", f"Points with their 95 % {kind} intervals.", *rows)


def _differences(comparisons: list[dict[str, Any]]) -> str:
    reach = max(0.02, *(max(abs(c["low"]), abs(c["high"])) for c in comparisons))
    rows = [charts.difference_row(f"{c['other']} − {c['base']}", c, reach) for c in comparisons]
    cells = [
        [f"{c['other']} − {c['base']}", points(c["difference"]), p_value(c["p_value"]),
         *(f"{c['outcomes'][name]:,}" for name in OUTCOMES)]
        for c in comparisons
    ]  # fmt: skip
    return _section(
        "Difference",
        "In percentage points on the same problems, with 95 % intervals (Newcombe's where a problem is right or wrong, "
        "adjusted Wald ones where it counts by its share of right answers). p is exact McNemar's.",
        *rows,
        charts.scale_row((f"−{100 * reach:.0f}", "0", f"+{100 * reach:.0f}")),
        charts.table(["", "points", "McNemar", *OUTCOMES], cells),
    )


def _by_group(results: Mapping[str, Any], grouping: str) -> str:
    groups = {label: found["by"][grouping] for label, found in results["contestants"].items()}
    parts = []
    for value, first in next(iter(groups.values())).items():
        parts.append(f"<h3>{escape(value)} <small>{first['total']:,} problems</small></h3>")
        parts += [charts.interval_row(label, found[value], i % 6) for i, (label, found) in enumerate(groups.items())]
    parts.append(charts.scale_row(PERCENTS))
    for comparison in results["comparisons"]:
        parts.append(charts.table(
            [f"{comparison['other']} − {comparison['base']}", "points", "95 % interval", "McNemar", *OUTCOMES[:2]],
            [[value, points(c["difference"]), f"{points(c['low'])} to {points(c['high'])}", p_value(c["p_value"]),
              c["fixed"], c["broken"]] for value, c in comparison["by"][grouping].items()],
        ))  # fmt: skip
    return _section(f"By {grouping}", "Accuracy with 95 % intervals.", *parts)


def _several_answers(contestants: Mapping[str, Any]) -> str:
    series = []
    for i, (label, found) in enumerate(contestants.items()):
        series.append((f"{label} pass@k", found["pass_at"], i % 6, False))
        series.append((f"{label} maj@k", found["maj_at"], i % 6, True))
    ks = list(series[0][1])
    cells = [[name, *(percent(values[k]) for k in ks)] for name, values, _, _ in series]
    return _section(
        "Several answers to a problem",
        "pass@k: at least one of k is right (unbiased); maj@k: the answer that most of k agree on is right.",
        charts.lines(series),
        charts.table(["", *(f"k = {k}" for k in ks)], cells),
    )


def _length_and_speed(contestants: Mapping[str, Any], scored: Scored) -> str:
    tokens = {
        label: [s.completion_tokens for a in scored.answers[label].values() for s in a.samples] for label in contestants
    }
    reach = max(map(max, tokens.values()))
    rows = [charts.histogram_row(label, counts, reach, i % 6) for i, (label, counts) in enumerate(tokens.items())]
    cells = [
        [label, f"{found['tokens']['mean']:,.0f}", f"{found['tokens']['total']:,}", f"{found['prompt_tokens']:,}",
         f"{found['seconds']:,.1f} s",
         "–" if found["tokens_per_second"] is None else f"{found['tokens_per_second']:,.0f}"]
        for label, found in contestants.items()
    ]  # fmt: skip
    return _section(
        "Length and speed",
        f"Tokens an answer, from 0 to {reach:,}.",
        *rows,
        charts.table(["", "mean tokens", "all tokens", "prompt tokens", "time", "tokens/s"], cells),
    )


def _section(title: str, note: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2><p class='note'>{escape(note)}</p>{''.join(parts)}</section>"
