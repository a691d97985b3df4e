"""Commands that the studio starts: processes of their own, which go on when it ends, however it ends."""

import contextlib
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from mlxmath.errors import MlxmathError
from mlxmath.runtime.files import atomic_json, disk_errors, fits, read_json

_JOB, _LOG = "job.json", "log"
_CLOCK_S = 5.0
"""Seconds by which two answers to when a process began may differ: Linux counts from the start of the system, which it
tells in whole seconds, and corrects as the clock is."""
_LATEST_S = 1e11
"""No time of day is as late."""


@dataclass(frozen=True)
class Job:
    """A command that was started, as `job.json` has it."""

    id: str
    kind: str
    """The command: train, evaluate, …"""
    arguments: list[str]
    """After `mlxmath`."""
    started: float
    """Seconds since 1970."""
    pid: int
    created: float
    """When the system says that the process began, which tells it from a later one of the same number."""
    exit_code: int | None = None
    """None while it runs, and for ever if the studio was not there when it ended."""

    @property
    def command_line(self) -> str:
        """To copy into a terminal."""
        return shlex.join(["mlxmath", *self.arguments])

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self.exit_code is None and runs(self.pid, self.created)


class Jobs:
    """The commands started in a folder, newest first; a folder `<id>/` each holds `job.json` and `log`.

    Args:
        folder: where they run.
        place: where they are noted.
    """

    def __init__(self, folder: Path, place: Path) -> None:
        self._folder, self._place = folder, place

    def start(self, *arguments: str) -> Job:
        """Start `mlxmath` with these arguments, in a session of its own.

        Raises:
            MlxmathError: its folder cannot be written, or no process can be started.
        """
        begun = time.time()
        name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(begun))}-{secrets.token_hex(3)}"
        place = self._place / name
        with disk_errors(place):
            place.mkdir(parents=True)
            log = (place / _LOG).open("ab")
        command = [sys.executable, "-P", "-m", "mlxmath", *arguments]
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        with log:
            try:
                process = subprocess.Popen(
                    command, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                    start_new_session=True, env=environment,
                )  # fmt: skip
            except OSError as error:
                raise MlxmathError(f"cannot start mlxmath: {error.strerror}; end other programs, then again.") from None
        job = Job(name, arguments[0], list(arguments), begun, process.pid, _created(process.pid))
        try:
            atomic_json(place / _JOB, asdict(job))
        except MlxmathError:  # nobody would know of it
            process.kill()
            process.wait()
            raise
        threading.Thread(target=self._await, args=(process, job), name=f"job {name}", daemon=True).start()
        return job

    def _await(self, process: subprocess.Popen[bytes], job: Job) -> None:
        """Note how it ended."""
        ended = replace(job, exit_code=process.wait())
        with contextlib.suppress(MlxmathError):
            atomic_json(self._place / job.id / _JOB, asdict(ended))

    def all(self) -> list[Job]:
        """Those that are noted here, newest first."""
        names = sorted((path.parent.name for path in self._place.glob(f"*/{_JOB}")), reverse=True)
        return [job for job in map(self.get, names) if job]

    def get(self, name: str) -> Job | None:
        """One by its id; None if there is none, or its note is damaged."""
        if not name or name != Path(name).name or name.startswith("."):
            return None
        try:
            found = read_json(self._place / name / _JOB)
        except (OSError, MlxmathError):
            return None
        return Job(**found) if fits(found, Job) and found["id"] == name and _is_sound(found) else None

    def log(self, job: Job, most_bytes: int = 64_000) -> str:
        """The end of what it said."""
        path = self._place / job.id / _LOG
        try:
            if path.is_symlink() or not path.is_file():  # a pipe would be waited for
                return ""
            with path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - most_bytes))
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""

    def dismiss(self, job: Job) -> None:
        """Forget one that has ended, with what it said.

        Raises:
            MlxmathError: it runs, or its folder cannot be removed.
        """
        if job.is_alive:
            raise MlxmathError(f"{job.command_line} still runs; stop it first.")
        with disk_errors(self._place / job.id):
            shutil.rmtree(self._place / job.id)

    def stop(self, job: Job) -> None:
        """Ask it to save and end; see `stop`."""
        stop(job.pid, job.created)


def _is_sound(note: dict[str, Any]) -> bool:
    """Whether a note, which may be anybody's, holds arguments, the number of a process, and times."""
    arguments = note["arguments"]
    return (
        bool(arguments) and all(isinstance(each, str) for each in arguments)
        and 0 < note["pid"] < 1 << 31 and all(abs(note[name]) < _LATEST_S for name in ("started", "created"))
    )  # fmt: skip


def runs(pid: int, created: float) -> bool:
    """Whether a process of this number that began then is alive."""
    try:
        process = psutil.Process(pid)
        is_same = abs(process.create_time() - created) < _CLOCK_S
        return is_same and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False


def stop(pid: int, created: float) -> None:
    """Send SIGTERM, at which a run saves and ends, to a process and to no other that has its number by now."""
    if runs(pid, created):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _created(pid: int) -> float:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0  # gone already
