"""Which curves of a run are drawn together, and what they show in words."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mlxmath.studio.curves import Table
from mlxmath.training.event_file import SMOOTHED

_CHARTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Loss", "nats", ("step.loss", "step.smoothed_loss", "validation.loss")),
    ("Right answers", "share of the held-out problems", ("validation.answers",)),
    ("Reward", "", ("rollout.reward", "rollout.rewards.*")),
    ("Accuracy", "share", ("step.accuracy", "step.smoothed_accuracy", "validation.accuracy")),
    ("Margin", "chosen less rejected", ("step.margin", "step.smoothed_margin", "validation.margin")),
    ("Rewards of both", "", (
        "step.chosen_reward", "step.smoothed_chosen_reward", "step.rejected_reward", "step.smoothed_rejected_reward",
        "validation.chosen_reward", "validation.rejected_reward",
    )),
    ("Log-probabilities of both", "nats", (
        "step.chosen_logprob", "step.rejected_logprob", "validation.chosen_logprob", "validation.rejected_logprob",
    )),
    ("Length", "tokens a completion", ("rollout.mean_length",)),
    ("Cut off, alike, clipped", "share", ("rollout.truncated", "rollout.zero_variance", "step.clipped")),
    ("KL", "nats a token", ("step.kl",)),
    ("Divergence from the teacher", "nats a token", ("step.divergence",)),
    ("Entropy", "nats a token", ("step.entropy",)),
    ("Learning rate", "", ("step.learning_rate",)),
    ("Gradient", "norm, before it is clipped", ("step.grad_norm",)),
    ("Speed", "tokens/s", ("step.tokens_per_second", "rollout.tokens_per_second")),
)  # fmt: skip
"""Title, unit, curves; `*` stands for any end. What is in no chart has one of its own."""
_NOT_DRAWN = (
    "step.tokens", "step.targets", "rollout.completions", "rollout.tokens", "rollout.timed_out", "validation.targets",
    "validation.problems",
)  # fmt: skip
_MOST_CHARTS = 40


def charts(tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    """What is drawn, in this order.

    Returns:
        Of each chart its title, unit and curves (kind, column, label, whether it is faint), and `told`: in words.
    """
    there = [f"{kind}.{name}" for kind, table in tables.items() for name in table.columns]
    left = [name for name in there if name not in _NOT_DRAWN]
    found = []
    for title, unit, patterns in _CHARTS:
        names = [name for pattern in patterns for name in left if _fits(name, pattern)]
        left = [name for name in left if name not in names]
        if title == "Reward" and len(names) == 2:  # the sum of one reward is that reward
            names = names[:1]
        found += [(title, unit, names)] if names else []
    found += [(_words(name.partition(".")[2]).capitalize(), "", [name]) for name in left]
    return [_chart(tables, *each) for each in found[:_MOST_CHARTS]]


def _fits(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _chart(tables: Mapping[str, Table], title: str, unit: str, names: Sequence[str]) -> dict[str, Any]:
    curves: list[dict[str, Any]] = []
    for name in names:
        kind, _, column = name.partition(".")
        is_faint = f"{kind}.{SMOOTHED}{column}" in names
        curves.append({"kind": kind, "column": column, "label": _label(kind, column), "faint": is_faint})
    told = "; ".join(
        f"{curve['label']}: {words}" for curve in curves if not curve["faint"]
        for words in _told(tables[curve["kind"]], curve["column"])
    )  # fmt: skip
    return {"title": title, "unit": unit, "curves": curves, "told": told}


def _label(kind: str, column: str) -> str:
    plain = _words(column.removeprefix(SMOOTHED).removeprefix("rewards."))
    if kind == "validation":
        return f"{plain}, held out"
    if column.startswith(SMOOTHED):
        return f"{plain}, smoothed"
    return f"{plain}, drawing" if (kind, column) == ("rollout", "tokens_per_second") else plain


def _words(name: str) -> str:
    return name.replace("_", " ")[:80]


def _told(table: Table, column: str) -> Iterator[str]:
    """A curve in words, where there is one."""
    values = table.columns[column]
    places = np.flatnonzero(~np.isnan(values))
    if not len(places):
        return
    steps, known = table.places["step"][places], values[places]
    low, high = int(known.argmin()), int(known.argmax())
    yield (
        f"{_figure(known[0])} at first, {_figure(known[-1])} at step {steps[-1]:,.0f}"
        if len(known) > 1 else f"{_figure(known[0])} at step {steps[0]:,.0f}"
    ) + (
        f", lowest {_figure(known[low])} at step {steps[low]:,.0f}, highest {_figure(known[high])} at step "
        f"{steps[high]:,.0f}" if len(known) > 2 else ""
    )  # fmt: skip


def _figure(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e12 else f"{value:.4g}"
