"""The `mlxmath serve` that answers the studio's questions: one at a time, of one model and some of its adapters."""

import contextlib
import json
import re
import threading
import time
from collections.abc import Sequence

import psutil

from mlxmath.errors import MlxmathError
from mlxmath.parsing import parse_json
from mlxmath.studio.jobs import Job, runs
from mlxmath.studio.place import Studio
from mlxmath.studio.tuned import BASE, Adapter, argument, served_names, written_ns
from mlxmath.weights.manifest import FILE_NAME

IDLE_MINUTES = 10.0
_KIND = "serve"
_FIRST = json.dumps({"url": ""})[:-2]
"""How the line begins that tells where it listens."""
_HERE = re.compile(r"http://127\.0\.0\.1:\d{1,5}/v1")
_ENDS_IN_S = 10.0


class Server:
    """Starts it when somebody asks, and ends it when another one is asked for, or with the studio.

    It ends by itself when nobody has asked for a while, so that one whose studio was killed frees its memory too.

    Args:
        studio: in whose folder it runs.
        idle_minutes: of that while.
    """

    def __init__(self, studio: Studio, idle_minutes: float = IDLE_MINUTES) -> None:
        self._studio, self._idle_minutes = studio, idle_minutes
        self._lock = threading.Lock()
        self._job: Job | None = None
        self._serves: tuple[tuple[str, int], dict[str, Adapter]] = ("", 0), {}
        self._urls: dict[str, str] = {}

    def serving(self, model: str, adapters: Sequence[Adapter]) -> tuple[Job, dict[str, str]]:
        """The one that serves a model with these adapters, and their names there; it may still be loading.

        One that serves more than these is kept; a model or an adapter that has been written since is loaded anew.

        Raises:
            MlxmathError: it cannot be started.
        """
        with self._lock:
            made = model, written_ns(self._studio.inside(model) / FILE_NAME)
            served, by_name = self._serves
            if not (self._job and self._job.is_alive and served == made and set(adapters) <= set(by_name.values())):
                self._end()
                by_name = served_names(dict.fromkeys(adapters))
                self._job = self._studio.jobs.start(*self._arguments(model, by_name))
                self._serves = made, by_name
            return self._job, {"": BASE} | {one.name: name for name, one in by_name.items()}

    def _arguments(self, model: str, by_name: dict[str, Adapter]) -> list[str]:
        adapters = [f"--adapter={name}={argument(self._studio, one.name)}" for name, one in by_name.items()]
        return [
            _KIND, f"--mlx-path={argument(self._studio, model)}", *(adapters or ["--no-adapter"]),
            "--port=0", f"--idle-minutes={self._idle_minutes:g}",
        ]  # fmt: skip

    def url(self, job: Job) -> str | None:
        """Where it listens; None while it loads.

        Raises:
            MlxmathError: it has ended; why, as it said.
        """
        if (known := self._urls.get(job.id)) and job.is_alive:
            return known
        is_alive = job.is_alive  # before the log is read, whose last line says why it is not
        log = self._studio.jobs.log(job)
        for line in log.splitlines():
            if is_alive and line.startswith(_FIRST) and (found := _url(line)):
                self._urls[job.id] = found
                return found
        if not is_alive:
            raise MlxmathError(self._why_ended(job, log))
        return None

    def _why_ended(self, job: Job, log: str) -> str:
        lines = [line for line in log.splitlines() if line.strip()]
        said = [line.partition(":")[2].strip() for line in lines if line.lower().startswith("error:")]
        ended = self._studio.jobs.get(job.id)
        if said:
            return f"the model does not answer: {said[-1]}"
        if ended and ended.exit_code == -9:
            return "the model does not answer: the system has ended it, as it does when memory runs out."
        return f"the model was ended before it had answered{f' ({lines[-1]})' if lines else ''}; ask again."

    def end_leftovers(self) -> None:
        """End what a studio has started that was killed; somebody else's is no job of this folder."""
        for job in self._studio.jobs.all():
            if job.kind == _KIND and job.is_alive and not _is_watched(job):
                _end(job)

    def close(self) -> None:
        """End it; the next question starts another one."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._job is not None:
            _end(self._job)
        self._job = None


def _end(job: Job) -> None:
    """Ask a process to end and wait until its memory is free; one that does not listen is killed.

    It is the one that the job's note tells of: the note lies in a folder that others may have written.
    """
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(job.pid)
        if not runs(job.pid, job.created) or process.cmdline()[-len(job.arguments) :] != job.arguments:
            return
        process.terminate()
        end_s = time.monotonic() + _ENDS_IN_S
        while runs(job.pid, job.created):
            if time.monotonic() > end_s:
                process.kill()
            time.sleep(0.05)


def _is_watched(job: Job) -> bool:
    """Whether the studio that has started a process still lives: two may be open on one folder."""
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(job.pid).parent()
        return parent is not None and "studio" in parent.cmdline()
    return False


def _url(line: str) -> str | None:
    """The address in a line of the log, if it is one of this machine."""
    try:
        found = parse_json(line)
    except ValueError:
        return None
    url = found.get("url") if isinstance(found, dict) else None
    return url if isinstance(url, str) and _HERE.fullmatch(url) else None
