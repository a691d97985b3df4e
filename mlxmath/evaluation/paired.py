"""Two contestants that are right or wrong on the same problems: the difference, how sure it is, and what is decided."""

from collections.abc import Sequence
from typing import Any

from mlxmath.evaluation.sequential import DECISIONS, confidence_sequence, decide, sequential_p
from mlxmath.evaluation.stats import mcnemar_exact, paired_interval

OUTCOMES = ("fixed", "broken", "both right", "both wrong")


def paired(before: Sequence[bool], after: Sequence[bool], smallest: float | None = None) -> dict[str, Any]:
    """The difference of two contestants that are right or wrong on the same problems; an interval and a p.

    Newcombe's and exact McNemar's; with `smallest`, a difference in points, those that hold at any time, and what is
    decided by them (`mlxmath.evaluation.sequential`).
    """
    test = mcnemar_exact(before, after)
    fixed, broken, total = test.num_fixed, test.num_broken, len(before)
    if smallest is None:
        interval, p_value = paired_interval(before, after), test.p_value
    else:
        interval, p_value = confidence_sequence(fixed, broken, total), sequential_p(fixed, broken, total)
    found: dict[str, Any] = {
        "difference": interval.estimate, "low": interval.low, "high": interval.high, "p_value": p_value,
        "fixed": fixed, "broken": broken, "total": total,
    }  # fmt: skip
    if smallest is not None:
        decision = DECISIONS.get(int(decide(fixed, broken, total, smallest / 100)))
        found["until_decided"] = {"smallest": smallest, "decision": decision}
    return found


def outcome(before: bool, after: bool) -> str:
    """One of `OUTCOMES`."""
    if before == after:
        return "both right" if before else "both wrong"
    return "fixed" if after else "broken"
