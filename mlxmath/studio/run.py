"""What a training run is, as its files tell it."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import quote

from mlxmath.config.load import RUN_FILE
from mlxmath.evaluation.wording import points
from mlxmath.runtime.locks import Holder
from mlxmath.studio.jobs import Job
from mlxmath.training.event_file import number

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
LIVE = ("starting", "running", "judging")
"""States in which a process works on it."""
_UNFINISHED = ("deadline", "paused", "stopped", "killed", "failed")
"""States that can be resumed."""
_SHARES = ("answers", "accuracy")
"""What is measured as a share of right answers, of which more is better."""
_SAME = (
    "training.adapter_path", "training.resume", "training.report_to", "model.mlx_path", "model.overwrite",
    "data.cache_dir",
)  # fmt: skip
"""Settings that make no difference to what is learned."""


@dataclass(frozen=True)
class Verdict:
    """What `--judge` found: the difference and its interval, a sentence, and whether that is good, bad or neither."""

    short: str
    between: str
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
        return self.state in LIVE

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
        return Verdict(f"{points(difference)} points", f"{points(low)} to {points(high)}", said, look)

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


def is_count(value: Any) -> TypeGuard[int]:
    """Whether a value of JSON is a number of something."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**12
