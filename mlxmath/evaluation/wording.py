"""Figures in words, the same on the terminal, on the page and in the model card."""

import math
from collections.abc import Mapping
from typing import Any

from mlxmath.evaluation.score import FAITHFULNESS
from mlxmath.evaluation.stats import problems_to_show
from mlxmath.runtime.console import counted

SOUNDNESS = ("true", "grounded", "supported", "used", "doubt", "equations")
"""What `soundness` tells: F1 to F4 of `mlxmath.grading.faithfulness`, the share of answers in recursive doubt, each
with the number of answers in which there was something to measure; and the equations in all of them."""


def percent(value: float | None) -> str:
    """`0.9876` as `98.8 %`."""
    return "–" if value is None else f"{100 * value:.1f} %"


def points(value: float) -> str:
    """`-0.0123` as `−1.2`: a difference in percentage points."""
    text = f"{100 * value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def interval(found: Mapping[str, float]) -> str:
    """The 95 % interval of a share."""
    return f"{100 * found['low']:.1f} to {100 * found['high']:.1f}"


def p_value(value: float) -> str:
    """`p = 0.031`, `p < 0.001`."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def soundness(found: Mapping[str, Any]) -> list[str]:
    """A contestant's figures under the headings of `SOUNDNESS`."""
    shares = found["faithfulness"] | {"doubt": found["doubt"]}
    told = [
        percent(shares[name]) + ("" if shares[name] is None else f" of {found['measured'][name]:,}")
        for name in (*FAITHFULNESS, "doubt")
    ]
    return [*told, f"{found['equations']:,}"]


def templates(settings: Mapping[str, Any]) -> dict[str, str]:
    """The name of the template that each contestant was asked in."""
    return {one["label"]: one.get("asked_in", settings["template"]) for one in settings["contestants"]}


def asked_in(settings: Mapping[str, Any]) -> str:
    """The template, or each contestant's."""
    names = templates(settings)
    return f"template{'s' * (len(set(names.values())) > 1)} {each(names)}"


def limits(settings: Mapping[str, Any]) -> str | None:
    """The longest answer that was allowed, in tokens, by benchmark if they differ; None where nobody noted it."""
    most = {one["name"]: one.get("max_tokens") for one in settings["benchmarks"]}
    return None if None in most.values() else f"at most {each({n: f'{count:,} tokens' for n, count in most.items()})}"


def each(values: Mapping[str, str], form: str = "{1} ({0})", between: str = ", ") -> str:
    """The one value that all share, or every name with its own."""
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return between.join(form.format(*pair) for pair in values.items())


def verdict(comparison: Mapping[str, Any]) -> str:
    """What the comparison shows, at the 5 % level: of the exact McNemar test, or at any time (`--until-decided`)."""
    base, other, until = comparison["base"], comparison["other"], comparison.get("until_decided")
    if until and until["decision"] == "equal":
        return f"no difference larger than {until['smallest']:g} points between {other} and {base}"
    if comparison.get("varied"):
        return _robustness(comparison)
    if until["decision"] if until else comparison["p_value"] < 0.05:
        return f"{other} is {'better' if comparison['fixed'] > comparison['broken'] else 'worse'} than {base}"
    ruled_out = f", and none larger than {until['smallest']:g} points is ruled out" if until else ""
    return f"no difference between {other} and {base} is shown{ruled_out}"


def _robustness(comparison: Mapping[str, Any]) -> str:
    """What other numbers, names or another order change; a fall may have two reasons, so both are named."""
    base, varied = comparison["base"], f"{comparison['varied']} varied"
    if comparison["p_value"] >= 0.05:
        return f"{base} is not shown to be better on the published problems than with {varied}"
    if comparison["fixed"] > comparison["broken"]:
        return f"{base} is better with {varied} than on the published problems"
    return (
        f"{base} is worse with {varied} than on the published problems: some of its answers are remembered, or the "
        "varied problems are harder"
    )


def evidence(comparison: Mapping[str, Any]) -> str:
    """The figures behind a verdict."""
    interval, test = ("confidence sequence", "at any time") if "until_decided" in comparison else (
        "interval", "exact McNemar"
    )  # fmt: skip
    return (
        f"{points(comparison['difference'])} points (95 % {interval} "
        f"{points(comparison['low'])} to {points(comparison['high'])}; {test} "
        f"{p_value(comparison['p_value'])}), "
        f"{comparison['fixed']} fixed, {comparison['broken']} broken of {comparison['total']}"
    )


def sentence(comparison: Mapping[str, Any]) -> str:
    """The verdict with its figures."""
    return f"{verdict(comparison)}: {evidence(comparison)}"


def more_problems(comparison: Mapping[str, Any]) -> int | None:
    """How many more would show a difference as large as the one seen, at a power of 80 %.

    0 if it is shown already; None if no number would do, since as many problems were fixed as broken.
    """
    if comparison["p_value"] < 0.05:
        return 0
    needed = problems_to_show(comparison["fixed"], comparison["broken"], comparison["total"])
    return None if math.isinf(needed) else max(1, math.ceil(needed) - comparison["total"])


def outlook(comparison: Mapping[str, Any]) -> str:
    """What it would take to know where nothing is shown; empty where something is."""
    more = more_problems(comparison)
    if more == 0:
        return ""
    if more is not None:
        return f"; a difference as large as this would show on {counted(more, 'more problem')}, four times in five"
    if comparison["fixed"]:
        return "; as many were fixed as broken, so that no number of problems would show a difference like this"
    return "; both did equally on every problem, so that more of them would tell only how small a difference is"
