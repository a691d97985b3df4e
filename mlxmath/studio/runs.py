"""Training runs as they lie in the folder: what each is, how far it is, what it has come to."""

import hashlib
import io
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mlxmath.config.load import RUN, RUN_FILE
from mlxmath.config.schema import TrainingConfig
from mlxmath.errors import InputError, MlxmathError
from mlxmath.evaluation.wording import points
from mlxmath.runtime.locks import Holder, holder
from mlxmath.runtime.sealed import unsealed_json, unsealed_line
from mlxmath.studio.jobs import Job
from mlxmath.studio.place import Studio
from mlxmath.training.events import EVENTS, number

COMMANDS = ("train", "dpo", "grpo", "gkd", "reward-model")
"""Those that make runs; the method of a run is the name of its command."""
LOOKS: Mapping[str, tuple[str, str]] = {
    "starting": ("live", "starting"), "running": ("live", "running"), "judging": ("live", "being judged"),
    "finished": ("good", "finished"), "early_stopped": ("good", "stopped early"), "deadline": ("warn", "out of time"),
    "paused": ("warn", "paused"), "stopped": ("warn", "stopped"), "killed": ("bad", "killed"),
    "failed": ("bad", "failed"), "diverged": ("bad", "diverged"), "no_signal": ("bad", "nothing to learn from"),
    "unknown": ("", "unknown"),
}  # fmt: skip
"""How each state of a run is shown: class and words."""
_LIVE = ("starting", "running", "judging")
_UNFINISHED = ("deadline", "paused", "stopped", "killed", "failed")
"""States that can be resumed."""
_SHARES = ("answers", "accuracy")
"""What is measured as a share of right answers, of which more is better."""
_MOST_BYTES = 16_000_000
"""Of a run.json."""
_END = 1 << 16
"""Bytes at the end of a log in which the last steps stand."""
_MOST_JOBS = 5
_SAME = (
    "training.adapter_path", "training.resume", "training.report_to", "model.mlx_path", "model.overwrite",
    "data.cache_dir",
)  # fmt: skip
"""Settings that make no difference to what is learned."""


@dataclass(frozen=True)
class Verdict:
    """What `--judge` found: in a few characters, in a sentence, and good, bad or neither."""

    short: str
    said: str
    look: str


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        name: of its folder, within the studio's.
        folder: where it is.
        record: run.json; nothing, if there is none that can be read.
        trouble: why it cannot be read.
        state: one of `LOOKS`.
        holder: who works on it.
        step: the last that was done.
        total_steps: planned; None if nobody knows.
        left_s: seconds to its end; None if it has ended, or nobody knows.
        updated: when it was written to, in seconds since 1970.
        jobs: what the studio started that it is, or was, the newest first; `find_run` looks for it.
    """

    name: str
    folder: Path
    record: dict[str, Any]
    trouble: str
    state: str
    holder: Holder | None
    step: int
    total_steps: int | None
    left_s: float | None
    updated: float
    jobs: tuple[Job, ...] = ()

    @property
    def address(self) -> str:
        """What an address has for its name."""
        return "" if self.name == "." else quote(os.fsencode(self.name))

    @property
    def id(self) -> str:
        """What elements of a page have for its name."""
        return hashlib.sha256(os.fsencode(self.name)).hexdigest()[:12]

    def told(self, *path: str) -> Any:
        """A value in run.json, None where there is none."""
        return told(self.record, *path)

    def text(self, *path: str) -> str:
        """A text in run.json, "" where there is none."""
        value = self.told(*path)
        return value if isinstance(value, str) else ""

    @property
    def method(self) -> str:
        """The command that made it."""
        return self.text("method") or "train"

    @property
    def model(self) -> str:
        """The base model, as it was named."""
        return self.text("config", "model", "model")

    @property
    def look(self) -> tuple[str, str]:
        """See `LOOKS`."""
        return LOOKS[self.state]

    @property
    def is_live(self) -> bool:
        """Whether a process works on it."""
        return self.state in _LIVE

    @property
    def can_stop(self) -> bool:
        """Whether it can be asked to save and end from here."""
        is_ours = self.holder.created is not None if self.holder else any(job.is_alive for job in self.jobs)
        return self.state in ("starting", "running") and is_ours

    @property
    def can_resume(self) -> bool:
        """Whether there is something to go on with."""
        return self.state in _UNFINISHED and self.method in COMMANDS and (self.folder / RUN_FILE).is_file()

    @property
    def started(self) -> float | None:
        """When its last process began, in seconds since 1970."""
        return seconds_of(self.told("started"))

    @property
    def best(self) -> tuple[str, float, int] | None:
        """What is measured on the held-out problems, its best value, and the step of it."""
        metric = self.text("validation", "metric")
        value, step = number(self.told("validation", "best", metric)), self.told("validation", "best", "step")
        return (metric, value, step) if metric and value is not None and isinstance(step, int) else None

    @property
    def best_shown(self) -> str:
        """The same for people."""
        if self.best is None:
            return ""
        metric, value, _ = self.best
        return f"{100 * value:.1f} %" if metric in _SHARES else f"{value:.4f}"

    @property
    def verdict(self) -> Verdict | None:
        """What `--judge` found."""
        said = self.text("verdict", "said")
        found = [number(self.told("verdict", name)) for name in ("difference", "low", "high", "p_value")]
        if not said or None in found:
            return None
        difference, low, high, p_value = (value for value in found if value is not None)
        look = "" if p_value >= 0.05 else "good" if difference > 0 else "bad"
        return Verdict(f"{points(difference)} points ({points(low)} to {points(high)})", said, look)

    @property
    def peak_bytes(self) -> float | None:
        """The most memory that it took on its device, once it has ended."""
        return number(self.told("peak_bytes"))

    @property
    def planned_bytes(self) -> float | None:
        """What it was expected to take."""
        return number(self.told("planned_bytes"))

    @property
    def settings(self) -> dict[str, Any]:
        """Those that make a difference, by "section.field"."""
        config = self.told("config")
        return {
            f"{section}.{name}": value
            for section, values in (config.items() if isinstance(config, dict) else ())
            if isinstance(values, dict)
            for name, value in values.items()
            if f"{section}.{name}" not in _SAME
        }


def all_runs(studio: Studio) -> Iterator[Run]:
    """Those in the folder."""
    for folder in studio.holding(RUN):
        yield look_at(studio, folder)


def find_run(studio: Studio, name: str) -> Run | None:
    """The one of a name, which may be one that the studio has started and that is not there yet; None if there is none.

    Raises:
        InputError: the name leads out of the folder.
    """
    folder = studio.inside(name, "run")
    run = look_at(studio, folder)
    own = [job for job in studio.jobs.all() if _place_of(studio, job) == folder]
    if not run.is_live and any(job.is_alive for job in own):
        return replace(run, state="starting", jobs=tuple(own))
    if file_of(studio, folder, RUN):
        return replace(run, jobs=tuple(own))
    return replace(run, state="failed", jobs=tuple(own)) if own else None


def file_of(studio: Studio, folder: Path, name: str) -> Path | None:
    """A file in the folder of a run; None if there is none, or it is a link that leads out of the studio's folder."""
    try:
        path = studio.inside(str(folder / name), name)
    except InputError:
        return None
    return path if path.is_file() else None


def look_at(studio: Studio, folder: Path) -> Run:
    """A run as its files have it now."""
    record, trouble, updated = _record(studio, folder)
    progress, held = _progress(studio, folder), holder(folder)
    status = record.get("status")
    state = status if isinstance(status, str) and status in LOOKS and status not in _LIVE else "unknown"
    if status == "running":
        state = "killed" if held is None else "running"
    elif held is not None:
        state = "judging" if "--judge" in held.command else "starting"
    noted = [record.get("planned_steps"), told(record, "config", "training", "max_steps"), progress.total_steps]
    total = next((each for each in noted if _is_count(each) and each), None)
    steps = record.get("steps")
    step = progress.step if progress.step is not None else steps if _is_count(steps) else 0
    left_s = _left_s(record, progress, total) if state == "running" else None
    return Run(studio.name(folder), folder, record, trouble, state, held, step, total, left_s, updated)


def told(value: Any, *path: str) -> Any:
    """A value within objects of JSON; None where there is none."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def seconds_of(timestamp: Any) -> float | None:
    """A time of day of a file, in seconds since 1970; None if it is none."""
    try:
        return datetime.fromisoformat(timestamp).timestamp()
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**12


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
    return max(0.0, min(left))


def _record(studio: Studio, folder: Path) -> tuple[dict[str, Any], str, float]:
    """run.json, or why it cannot be read; and when it was written."""
    path = file_of(studio, folder, RUN)
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
    path = file_of(studio, folder, EVENTS)
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
    events = [event for event in map(unsealed_line, lines) if event]
    totals = [event.get("total_steps") for event in events if event.get("event") in ("start", "resume")]
    steps = [event for event in events if event.get("event") == "step" and _is_count(event.get("step"))]
    times = [value for event in steps if (value := number(event.get("time"))) is not None]
    return _Progress(
        next((total for total in reversed(totals) if _is_count(total)), None),
        steps[-1]["step"] if steps else None, times[-1] if times else None,
        (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None,
    )  # fmt: skip


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
        if place is not None and not has_begun and (job.is_alive or job.exit_code != 0):
            found.append(job)
    return found[:_MOST_JOBS]


def _place_of(studio: Studio, job: Job) -> Path | None:
    name = adapter_path(job)
    try:
        return None if name is None else studio.inside(name)
    except InputError:
        return None
