"""A sweep: all runs, rung by rung, each one no further than it takes to know which go on.

Everything is decided by what stands in the runs' own folders, and in progress.json, which rung each has come to (while
a run goes on its own record says no longer that it had paused). So the same command goes on after a kill at any point,
with the same runs and the same table.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from mlxmath.errors import InputError, MlxmathError, OtherRunError
from mlxmath.evaluation.samples import read_settings
from mlxmath.runtime.console import duration, say, warn
from mlxmath.runtime.files import atomic_write, remove
from mlxmath.runtime.locks import locked
from mlxmath.runtime.sealed import sealed_json, unsealed_json
from mlxmath.sweeps.file import read_sweep
from mlxmath.sweeps.plan import ADAPTERS, Configuration, Plan, Stage, plan_of
from mlxmath.sweeps.report import RESULTS, write_report
from mlxmath.sweeps.results import results_of
from mlxmath.sweeps.runs import TimeUpError, bring, run_command, state_of

PLAN, PROGRESS, LOGS, EVALUATION = "plan.json", "progress.json", "logs", "evaluation"
_END = 1 << 62
_OURS = (PLAN, PROGRESS, LOGS, EVALUATION, ADAPTERS, RESULTS, "report.html", "report.md", "curves.png")


def sweep(path: Path, folder: Path, *, overwrite: bool = False, deadline_hours: float | None = None) -> dict[str, Any]:
    """Run everything that a file asks for, and compare.

    Args:
        path: of the file.
        folder: for the runs and the report; what is there is gone on with.
        overwrite: remove it instead.
        deadline_hours: for all together (None: as the file says; another call gets it anew).

    Returns:
        What sweep.json holds.

    Raises:
        InputError: a setting is wrong, or the folder holds another sweep.
        MlxmathError: none of the runs came to anything, or the evaluation failed.
    """
    plan = plan_of(read_sweep(path), folder)
    hours = deadline_hours or plan.file.outline.deadline_hours
    end = None if hours is None else time.monotonic() + 3600 * hours

    def left_s() -> float:
        return float("inf") if end is None else end - time.monotonic()

    with locked(folder, "--folder", "mlxmath sweep"):
        _begin(plan, overwrite=overwrite)
        runs = sum(len(one.runs) for one in plan.configurations)
        say(f"{len(plan.configurations)} configurations, {runs} runs; {plan.folder}/logs tells what each says")
        errors: dict[Path, str] = {}
        alive, failed, is_complete = list(plan.configurations), None, False
        try:
            for rung, pause in enumerate(plan.rungs):
                alive = alive[: plan.keep[rung]] if rung else alive
                _rung(plan, alive, pause, left_s, errors)
                if pause is not None:
                    alive = ranked(alive, pause)
            failed = _evaluate(plan, alive, left_s)
            is_complete = not errors and failed is None
        except TimeUpError:
            say(f"the deadline of {duration(3600 * (hours or 0))} for all has come; the same command goes on")
        found = results_of(plan, errors, is_complete=is_complete)
        write_report(found, folder)
        if not any(one["steps"] for one in found["configurations"]) and errors:
            raise MlxmathError(f"no run of the sweep came to anything; the first one: {next(iter(errors.values()))}")
        if failed:
            raise MlxmathError(failed)
        return found


def _begin(plan: Plan, *, overwrite: bool) -> None:
    """Make the folder this sweep's.

    Raises:
        InputError: it holds what is none of a sweep's under a name that a sweep's files have.
        OtherRunError: it holds another one.
    """
    folder = plan.folder
    ours = (*_OURS, *(path.name for path in plan.files))
    if not (folder / PLAN).exists() and (other := [name for name in ours if (folder / name).exists()]):
        raise InputError(f"--folder: {folder} holds {other[0]} and no {PLAN}, so it is no sweep's; give another.")
    if overwrite:
        for name in _OURS:
            remove(folder / name)
    before = unsealed_json(folder / PLAN, None) if (folder / PLAN).exists() else None
    if before is not None and before != plan.identity:
        differing = [name for name, value in plan.identity.items() if before.get(name) != value]
        raise OtherRunError(
            f"--folder: {folder} holds another sweep ({' and '.join(differing)} differ); give the same file, another "
            "--folder, or --overwrite.", differing,
        )  # fmt: skip
    import tomli_w

    if before is None:
        sealed_json(folder / PLAN, plan.identity)
    for path, values in plan.files.items():
        atomic_write(path, tomli_w.dumps(dict(values)))


class _Progress:
    """The step up to which each run has been taken."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / PROGRESS
        self._steps: dict[str, Any] = unsealed_json(self._path, ()) if self._path.exists() else {}

    def has(self, stage: Stage, pause: int | None) -> bool:
        """Whether a run is as far as `pause`."""
        steps = self._steps.get(stage.folder.name)
        return isinstance(steps, int) and steps >= (_END if pause is None else pause)

    def note(self, stage: Stage, pause: int | None) -> None:
        """It is."""
        self._steps[stage.folder.name] = _END if pause is None else pause
        sealed_json(self._path, self._steps)


def _rung(
    plan: Plan, alive: Sequence[Configuration], pause: int | None, left_s: Callable[[], float], errors: dict[Path, str]
) -> None:
    """Take all runs of some configurations to `pause`."""
    where = "to the end" if pause is None else f"to step {pause}"
    count, done, progress = sum(len(one.runs) for one in alive), 0, _Progress(plan.folder)
    for one in alive:
        for run in one.runs:
            done, failed, start = done + 1, None, time.monotonic()
            for stage in run.stages:
                log = plan.folder / LOGS / f"{stage.folder.name}.log"
                if failed or progress.has(stage, pause):
                    continue
                failed = bring(stage, pause, log, left_s)
                if failed is None:
                    progress.note(stage, pause)
            if failed:
                errors[run.folder] = failed
                warn(f"{run.folder.name} failed: {failed}")
                continue
            state = state_of(run.folder)
            best = state.best(pause)
            told = f", held-out {state.metric} {best[1]:.4f} at step {best[0]}" if best else ""
            took = duration(time.monotonic() - start)
            say(f"{done}/{count} {where}: {one.label}, seed {run.seed}: {state.status}{told} in {took}")


def ranked(alive: Sequence[Configuration], pause: int | None) -> list[Configuration]:
    """The best first, by the mean over their seeds of the best held-out value up to `pause`; of equals the first."""
    return sorted(alive, key=lambda one: _badness(one, pause))


def _badness(one: Configuration, pause: int | None) -> float:
    states = [state_of(run.folder) for run in one.runs]
    values = [state.best(pause) for state in states]
    found = [value[1] for value in values if value is not None]
    if len(found) < len(states):
        return float("inf")
    return fmean(found) * (-1 if states[0].higher_is_better else 1)


def _evaluate(plan: Plan, alive: Sequence[Configuration], left_s: Callable[[], float]) -> str | None:
    """Have the models that are left answer benchmarks; why that failed, if it did."""
    whole = dict.fromkeys(run.folder for one in alive for run in one.runs if state_of(run.folder).is_done(None))
    if plan.evaluation is None or not whole:
        return None
    adapters = [part for folder in whole for part in ("--adapter-path", str(folder))]
    how = "--resume" if _asked(plan.folder / EVALUATION) in (None, {str(folder) for folder in whole}) else "--overwrite"
    log = plan.folder / LOGS / f"{EVALUATION}.log"
    say(f"evaluation of {len(whole)} adapters and their base")
    failed = run_command([*plan.evaluation, *adapters, how], log, left_s)
    return failed and f"the evaluation failed: {failed}; {log} tells more."


def _asked(folder: Path) -> set[str] | None:
    """The adapters that an evaluation is of; None if there is none."""
    try:
        return {str(one["adapter_folder"]) for one in read_settings(folder)["contestants"] if one["adapter_folder"]}
    except (MlxmathError, KeyError, TypeError):
        return None
