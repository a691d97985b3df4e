"""Runs of a sweep as they are on the disk, and taken further, each in a process of its own.

A run is a normal one: what it has come to stands in its own run.json and events.jsonl, and nowhere else. So a sweep
that was killed goes on with what is there, and decides as it would have.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxmath.config.load import RUN
from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.console import say
from mlxmath.runtime.files import disk_errors
from mlxmath.runtime.locks import locked
from mlxmath.runtime.sealed import unsealed_json
from mlxmath.sweeps.plan import Stage
from mlxmath.training.event_file import EVENTS, number, read_events
from mlxmath.training.held_out import ACCURACY, ANSWERS, LOSS

_DONE = ("finished", "early_stopped", "deadline", "no_signal", "diverged")
"""Endings after which a run is not taken further."""
METRICS = (ANSWERS, LOSS, ACCURACY)
"""What runs are measured by; one that measures answers tells its loss too, one on pairs its accuracy."""
_LOOK_S = 0.1
_TAIL = 20_000
"""Bytes at the end of a log in which an error is looked for."""


@dataclass(frozen=True)
class State:
    """What a run has come to.

    Attributes:
        status: how it ended; "" before it began.
        steps: done, where it ended.
        metric: what the best adapters are the best by, one of `METRICS`; None if nothing was measured.
        history: (step, value) of all measurements.
        seconds: of its steps and measurements.
        peak_bytes: the most memory on the device; None if nothing tells.
        record: run.json.
    """

    status: str
    steps: int
    metric: str | None
    history: tuple[tuple[int, float], ...]
    seconds: float
    peak_bytes: int | None
    record: dict[str, Any]

    @property
    def higher_is_better(self) -> bool:
        """Whether more is better."""
        return is_share(self.metric)

    def is_done(self, pause: int | None) -> bool:
        """Whether it is as far as `pause`, or as it goes."""
        return self.status in _DONE or (self.status == "paused" and pause is not None and self.steps >= pause)

    def best(self, pause: int | None = None) -> tuple[int, float] | None:
        """(step, value) of its best measurement up to a step; None if it has none, or came to nothing."""
        found = [one for one in self.history if pause is None or one[0] <= pause]
        if not found or (self.status == "diverged" and (pause is None or self.steps <= pause)):
            return None
        return (max if self.higher_is_better else min)(found, key=lambda one: one[1])


def is_share(metric: str | None) -> bool:
    """Whether a metric is a share of right answers, not a loss."""
    return metric in (ANSWERS.name, ACCURACY.name)


def state_of(folder: Path) -> State:
    """What a run in `folder` has come to; damaged files are as if they were not there, since the run goes on anyway."""
    try:
        record = unsealed_json(folder / RUN, None)
    except MlxmathError:
        record = {}
    metric = None
    history: list[tuple[int, float]] = []
    seconds, peak = 0.0, None
    for event in read_events(folder / EVENTS):
        if event["event"] in ("step", "validation", "rollout"):
            seconds += number(event.get("seconds")) or 0.0
        if event["event"] == "validation":  # run.json tells nothing of it while a run goes on
            metric = next((one.name for one in METRICS if one.name in event), None)
            if metric and (value := number(event.get(metric))) is not None:
                history.append((event["step"], value))
        if event["event"] == "end" and isinstance(event.get("peak_bytes"), int):
            peak = max(peak or 0, event["peak_bytes"])
    status, steps = record.get("status"), record.get("steps")
    return State(
        status if isinstance(status, str) else "", steps if isinstance(steps, int) else 0, metric, tuple(history),
        seconds, peak, record,
    )  # fmt: skip


class TimeUpError(Exception):
    """The sweep's deadline came."""


def bring(stage: Stage, pause: int | None, log: Path, left_s: Callable[[], float]) -> str | None:
    """Take a run to `pause`, or to its end, unless it is there.

    Args:
        stage: of the run.
        pause: the step; None: as far as it goes.
        log: where what it says is appended.
        left_s: seconds until the sweep's deadline.

    Returns:
        Why it failed; None if it did not.

    Raises:
        TimeUpError: there is no time left; the run is saved.
    """
    if state_of(stage.folder).is_done(pause):
        return None
    _wait_until_free(stage.folder, left_s)
    if state_of(stage.folder).is_done(pause):
        return None
    arguments = [*stage.arguments, "--resume", *(("--pause-at", str(pause)) if pause is not None else ())]
    failed = run_command(arguments, log, left_s)
    return None if state_of(stage.folder).is_done(pause) else failed or "it ended before it was done"


def _wait_until_free(folder: Path, left_s: Callable[[], float]) -> None:
    """A run that a killed sweep had begun goes on by itself: wait for it."""
    told = False
    while folder.exists():
        try:
            with locked(folder, "--adapter-path", "mlxmath sweep"):
                return
        except InputError:
            if left_s() <= 0:
                raise TimeUpError from None
            if not told:
                say(f"{folder} is still being trained by a process that was started before; waiting for it")
            told = True
            time.sleep(_LOOK_S)


def run_command(arguments: Sequence[str], log: Path, left_s: Callable[[], float]) -> str | None:
    """Run a command to its end, in a session of its own so that Ctrl-C is passed on once.

    Args:
        arguments: of mlxmath.
        log: where what it says is appended.
        left_s: seconds until it is asked to end.

    Returns:
        Why it failed, in its own words if it said any; None if it did not.

    Raises:
        TimeUpError: there was no time left; it was asked to save and has ended.
    """
    if left_s() <= 0:
        raise TimeUpError
    with disk_errors(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("ab")
    with file:
        start = file.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "mlxmath", *arguments], stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            start_new_session=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        try:
            while process.poll() is None:
                if left_s() <= 0:
                    process.terminate()
                    process.wait()
                    raise TimeUpError
                time.sleep(_LOOK_S)
        finally:
            if process.poll() is None:  # this process was asked to end: the run saves first
                process.terminate()
                process.wait()
    if not process.returncode:
        return None
    with disk_errors(log), log.open("rb") as said:
        said.seek(max(start, log.stat().st_size - _TAIL))
        lines = said.read().decode("utf-8", "replace").splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else f"it ended with exit code {process.returncode}"
