"""Figures in words, the same on the terminal, on the page and in the model card."""

from collections.abc import Mapping
from typing import Any


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


SOUNDNESS = ("true", "grounded", "supported", "used", "doubt")
"""What `soundness` tells: F1 to F4 of `mlxmath.grading.faithfulness`, and the share of answers in recursive doubt."""


def soundness(found: Mapping[str, Any]) -> list[str]:
    """A contestant's figures under the headings of `SOUNDNESS`."""
    names = ("validity", "provenance", "support", "liveness")
    return [*(percent(found["faithfulness"][name]) for name in names), percent(found["doubt"])]


def verdict(comparison: Mapping[str, Any]) -> str:
    """What the comparison shows, at the 5 % level of the exact McNemar test."""
    base, other = comparison["base"], comparison["other"]
    if comparison["p_value"] < 0.05:
        return f"{other} is {'better' if comparison['fixed'] > comparison['broken'] else 'worse'} than {base}"
    return f"no difference between {other} and {base} is shown"


def sentence(comparison: Mapping[str, Any]) -> str:
    """The verdict with its figures."""
    return f"{verdict(comparison)}: {evidence(comparison)}"


def evidence(comparison: Mapping[str, Any]) -> str:
    """The figures behind a verdict."""
    return (
        f"{points(comparison['difference'])} points (95 % interval "
        f"{points(comparison['low'])} to {points(comparison['high'])}; exact McNemar "
        f"{p_value(comparison['p_value'])}), "
        f"{comparison['fixed']} fixed, {comparison['broken']} broken of {comparison['total']}"
    )
