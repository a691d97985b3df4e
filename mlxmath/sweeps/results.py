"""What a sweep found: the figures of each configuration, and each beside the one that all are compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from mlxmath import __version__
from mlxmath.errors import MlxmathError
from mlxmath.evaluation.samples import read_samples, read_settings
from mlxmath.evaluation.stats import Interval, adjusted_difference, adjusted_mean, wilson_interval
from mlxmath.runtime.sealed import unsealed_json
from mlxmath.sweeps.compare import Rows, difference, rows_of
from mlxmath.sweeps.plan import ADAPTERS, Configuration, Plan
from mlxmath.sweeps.runs import State, is_share, state_of

Verdicts = Mapping[str, float]
"""Of each problem the share of right answers."""


def results_of(plan: Plan, errors: Mapping[Path, str], *, is_complete: bool) -> dict[str, Any]:
    """What sweep.json is to hold.

    Args:
        plan: of the sweep.
        errors: of runs that failed.
        is_complete: whether everything that was planned is done.
    """
    states = {one.number: [state_of(run.folder) for run in one.runs] for one in plan.configurations}
    answers = _answers(plan)
    found = [_figures(one, states[one.number], answers, errors) for one in plan.configurations]
    metric = next((state.metric for own in states.values() for state in own if state.metric), None)
    higher = is_share(metric)
    by_answers = any(one["accuracy"] for one in found)
    ranked = [one for one in found if _rank(one, by_answers, higher) is not None]
    furthest = max((one["steps"] for one in ranked), default=0)
    candidates = [one for one in ranked if one["is_whole"]] or [one for one in ranked if one["steps"] == furthest]
    best = min(candidates, key=lambda one: _rank(one, by_answers, higher) or 0.0, default=None)
    against = found[0] if plan.file.outline.search == "ablation" else best
    if against is not None:
        numbers = {one.number: one for one in plan.configurations}
        rows = {number: _rows(one, states[number]) for number, one in numbers.items()}
        for one in found:
            number, other = one["number"], against["number"]
            pair = None if one is against else difference(rows[number], rows[other])
            one["difference"] = pair and asdict(pair)
            one["answers_difference"] = None if one is against else _answered(answers, numbers[number], numbers[other])
    return {
        "mlxmath": __version__, "file": str(plan.file.path), "description": plan.file.outline.description,
        "search": plan.file.outline.search, "seeds": list(plan.file.outline.seeds), "rungs": list(plan.rungs),
        "keep": list(plan.keep), "complete": is_complete, "metric": metric,
        "ranked_by": "accuracy of the evaluation" if by_answers else metric and f"held-out {metric}",
        "best": best and best["number"], "against": against and against["number"], "configurations": found,
        "same_rows": _same_rows(states.values()),
    }  # fmt: skip


def _figures(
    one: Configuration, states: Sequence[State], answers: Mapping[Path, Verdicts],
    errors: Mapping[Path, str],
) -> dict[str, Any]:  # fmt: skip
    values = [state.best() for state in states]
    known = [value[1] for value in values if value is not None]
    is_whole = len(known) == len(states)
    shares = _shares(answers, one)
    return {
        "number": one.number, "label": one.label, "values": dict(one.values),
        "is_whole": all(state.is_done(None) for state in states),
        "held_out": fmean(known) if is_whole and known else None,
        "spread": stdev(known) if is_whole and len(known) > 1 else None,
        "accuracy": asdict(_mean(list(shares.values()))) if shares else None,
        "steps": max((state.steps for state in states), default=0),
        "difference": None, "answers_difference": None,
        "runs": [
            {
                "seed": run.seed, "folder": str(run.folder), "commands": [stage.command for stage in run.stages],
                "status": state.status or "not begun", "error": errors.get(run.folder), "steps": state.steps,
                "best": None if value is None else {"step": value[0], "value": value[1]},
                "history": [list(point) for point in state.history],
                "trainable_parameters": _trainable(state),
                "cost": {"seconds": state.seconds, "peak_bytes": state.peak_bytes},
            }
            for run, state, value in zip(one.runs, states, values, strict=True)
        ],
    }  # fmt: skip


def _mean(shares: Sequence[float]) -> Interval:
    """With Wilson's interval, as evaluations have it, where each problem is right or wrong."""
    if set(shares) <= {0.0, 1.0}:
        return wilson_interval(int(sum(shares)), len(shares))
    return adjusted_mean(shares)


def _trainable(state: State) -> int | None:
    adapter = state.record.get("adapter")
    found = adapter.get("num_trainable") if isinstance(adapter, dict) else None
    return found if isinstance(found, int) else None


def _rank(one: Mapping[str, Any], by_answers: bool, higher: bool) -> float | None:
    """The lower, the better."""
    if by_answers:
        return -one["accuracy"]["estimate"] if one["accuracy"] else None
    return None if one["held_out"] is None else -one["held_out"] if higher else one["held_out"]


def _rows(one: Configuration, states: Sequence[State]) -> Rows | None:
    best = [state.best() for state in states]
    if any(value is None for value in best):
        return None
    return rows_of((run.folder, value[0]) for run, value in zip(one.runs, best, strict=True) if value is not None)


def _same_rows(states: Any) -> bool:
    """Whether all runs that measured did so on as many rows."""
    counts = {
        (validation.get("measured_on"), validation.get("held_out"))
        for own in states for state in own if isinstance(validation := state.record.get("validation"), dict)
    }  # fmt: skip
    return len(counts) < 2


def _answers(plan: Plan) -> dict[Path, Verdicts]:
    """By the folder of the adapter that the evaluation asked, the share of right answers."""
    folder = plan.folder / "evaluation"
    if plan.evaluation is None or not (folder / "results.json").is_file():
        return {}
    try:
        unsealed_json(folder / "results.json", None)  # a whole one
        contestants = read_settings(folder)["contestants"]
        fingerprints = {one["label"]: one["fingerprint"] for one in contestants}
    except (MlxmathError, KeyError, TypeError):
        return {}
    found: dict[str, dict[str, list[bool]]] = {}
    for sample in read_samples(folder, fingerprints)[0]:
        found.setdefault(sample.contestant, {}).setdefault(sample.id, []).append(sample.correct)
    labels: dict[Path, str] = {}
    for one in contestants:
        if own_folder := one.get("adapter_folder"):  # it may be asked again with formulas, tools or other numbers
            labels.setdefault(plan.folder / ADAPTERS / Path(own_folder).name, one["label"])  # wherever it was asked
    return {
        path: {key: fmean(verdicts) for key, verdicts in found[label].items()}
        for path, label in labels.items() if label in found
    }  # fmt: skip


def _shares(answers: Mapping[Path, Verdicts], one: Configuration) -> Verdicts:
    """The mean over the seeds; nothing unless all were asked."""
    own = [answers.get(run.folder) for run in one.runs]
    told = [verdicts for verdicts in own if verdicts]
    if len(told) < len(own):
        return {}
    return {key: fmean(verdicts[key] for verdicts in told) for key in told[0] if all(key in other for other in told)}


def _answered(answers: Mapping[Path, Verdicts], one: Configuration, other: Configuration) -> dict[str, float] | None:
    first, second = _shares(answers, one), _shares(answers, other)
    keys = sorted(first.keys() & second.keys())
    if not keys:
        return None
    found: Interval = adjusted_difference([second[key] for key in keys], [first[key] for key in keys])
    return asdict(found)
