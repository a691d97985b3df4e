"""Training runs as they lie in the folder: which there are, how far each is, who works on it."""

import io
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from mlxmath.config.load import RUN
from mlxmath.config.training import TrainingConfig
from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.locks import holder
from mlxmath.runtime.sealed import unsealed_json, unsealed_line
from mlxmath.studio.jobs import Job
from mlxmath.studio.place import Studio
from mlxmath.studio.run import COMMANDS, LIVE, LOOKS, Run, is_count, seconds_of, told
from mlxmath.training.event_file import EVENTS, number

_MOST_BYTES = 16_000_000
"""Of a run.json."""
_END = 1 << 16
"""Bytes at the end of a log in which the last steps stand."""
_MOST_JOBS, _RECENT_S = 5, 24 * 3600
"""Commands that failed before they had a run are shown so many, and so long."""


def all_runs(studio: Studio) -> Iterator[Run]:
    """Those in the folder."""
    started = [place for job in studio.jobs.all() if (place := _place_of(studio, job))]
    for folder in dict.fromkeys([*_folders(studio), *started]):
        if studio.file(folder / RUN):
            yield look_at(studio, folder)


_found: dict[Path, tuple[float, float, list[Path]]] = {}


def _folders(studio: Studio) -> list[Path]:
    """Where runs were found the last time, if to look again would take more than a fiftieth of the time since."""
    begun = time.monotonic()
    last, took, found = _found.get(studio.folder, (0.0, 0.0, []))
    if begun - last > 50 * took:
        found = list(studio.holding(RUN))
        _found[studio.folder] = (time.monotonic(), time.monotonic() - begun, found)
    return found


def find_run(studio: Studio, name: str) -> Run | None:
    """The one of a name, which may be one that the studio has started and that is not there yet; None if there is none.

    Raises:
        InputError: the name leads out of the folder.
    """
    folder = studio.inside(name, "run")
    run = look_at(studio, folder)
    own = [job for job in studio.jobs.all() if _place_of(studio, job) == folder]
    if not own and not studio.file(folder / RUN):
        return None
    if not run.is_live and any(job.is_alive for job in own):
        run = replace(run, state="starting")
    elif not run.is_live and not run.record and not run.trouble:
        run = replace(run, state="failed")
    return replace(run, jobs=tuple(own))


def look_at(studio: Studio, folder: Path) -> Run:
    """A run as its files have it now."""
    record, trouble, updated = _record(studio, folder)
    progress, held = _progress(studio, folder), holder(folder)
    status = record.get("status")
    state = status if isinstance(status, str) and status in LOOKS and status not in LIVE else "unknown"
    if status == "running":
        state = "killed" if held is None else "running"
    elif held is not None and "--judge" in held.command:
        state = "judging"
    elif held is not None and held.created is not None and (seconds_of(record.get("started")) or 0.0) < held.created:
        state = "starting"  # as a process does that is to go on with it; the one that has just ended it began before
    noted = [record.get("planned_steps"), told(record, "config", "training", "max_steps"), progress.total_steps]
    total = next((each for each in noted if is_count(each) and each), None)
    steps = record.get("steps")
    step = progress.step if progress.step is not None else steps if is_count(steps) else 0
    left_s = _left_s(record, progress, total) if state == "running" else None
    return Run(studio.name(folder), folder, record, trouble, state, held, step, total, left_s, updated)


@dataclass(frozen=True)
class _Progress:
    """What the events of a run tell: the steps that were planned, the last one, when it was done, seconds a step."""

    total_steps: int | None = None
    step: int | None = None
    time: float | None = None
    pace_s: float | None = None


def _left_s(record: dict[str, Any], progress: _Progress, total: int | None) -> float | None:
    """Seconds to the last step at the pace of the last ones, or to the deadline."""
    if total is None or progress.step is None or progress.time is None or progress.pace_s is None:
        return None
    now = time.time()
    left = [progress.pace_s * (total - progress.step) - (now - progress.time)]
    hours, started = number(told(record, "config", "training", "max_training_time_hours")), record.get("started")
    if hours is not None and (began := seconds_of(started)) is not None:
        left.append(began + 3600 * hours - now)
    return max(0.0, min(left)) if math.isfinite(min(left)) else None


def _record(studio: Studio, folder: Path) -> tuple[dict[str, Any], str, float]:
    """run.json, or why it cannot be read; and when it was written."""
    path = studio.file(folder / RUN)
    try:
        found = os.stat(path) if path else None  # noqa: PTH116
    except OSError:
        found = None
    if path is None or found is None:
        return {}, "", 0.0
    if found.st_size > _MOST_BYTES:
        return {}, f"{RUN} has {found.st_size:,} bytes, which is none of ours", found.st_mtime
    return *_read_record(path, found.st_mtime_ns, found.st_size), found.st_mtime


@lru_cache(1024)
def _read_record(path: Path, *_: int) -> tuple[dict[str, Any], str]:
    try:
        return unsealed_json(path, None), ""
    except MlxmathError as error:
        return {}, str(error)


def _progress(studio: Studio, folder: Path) -> _Progress:
    path = studio.file(folder / EVENTS)
    try:
        found = os.stat(path) if path else None  # noqa: PTH116
        return _read_progress(path, found.st_mtime_ns, found.st_size) if path and found else _Progress()
    except OSError:
        return _Progress()


@lru_cache(1024)
def _read_progress(path: Path, *_: int) -> _Progress:
    with path.open("rb") as file:
        first = file.readline(_END)
        file.seek(max(len(first), file.seek(0, io.SEEK_END) - _END))
        lines = [first, *file.read(_END).splitlines(keepends=True)]
    total = step = None
    times: list[float] = []
    for event in filter(None, map(unsealed_line, lines)):
        if event.get("event") in ("start", "resume"):
            total, times = event.get("total_steps"), []  # what came before is no part of the pace
        elif event.get("event") == "step" and is_count(event.get("step")):
            step = event["step"]
            times += [value] if (value := number(event.get("time"))) is not None else []
    pace_s = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None
    return _Progress(total if is_count(total) else None, step, times[-1] if times else None, pace_s)


def adapter_path(job: Job) -> str | None:
    """The folder that a command's run is in, as the command names it; None if it makes no run."""
    if job.kind not in COMMANDS:
        return None
    for one, after in zip(job.arguments, [*job.arguments[1:], ""], strict=True):
        option, equals, value = one.partition("=")
        if option == "--adapter-path":
            return value if equals else after
    return str(TrainingConfig.model_fields["adapter_path"].default)


def without_run(studio: Studio) -> list[Job]:
    """What the studio started and has no run to show for it: it has not begun, or failed before; the newest first."""
    found = []
    for job in studio.jobs.all():
        place = _place_of(studio, job)
        try:
            has_begun = place is not None and (place / RUN).stat().st_mtime >= job.started
        except OSError:
            has_begun = False
        failed = job.exit_code != 0 and time.time() - job.started < _RECENT_S
        if place is not None and not has_begun and (job.is_alive or failed):
            found.append(job)
    return found[:_MOST_JOBS]


def _place_of(studio: Studio, job: Job) -> Path | None:
    name = adapter_path(job)
    try:
        return None if name is None else studio.inside(name)
    except InputError:
        return None
