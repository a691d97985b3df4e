"""Fresh processes with their memory watched."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import REPOSITORY

_COMPILERS = {"cc1plus", "g++", "c++", "clang++", "collect2", "ld", "as", "sh"}
_POLL_S = 0.25


@dataclass(frozen=True)
class Finished:
    """A process that ended, or was ended, and the most memory that it and its descendants held."""

    returncode: int
    output: str
    """The end of standard output and standard error together."""
    seconds: float
    timed_out: bool
    peak_rss_bytes: int | None
    """Highest sum, over the processes alive together, of each one's highest resident set (VmHWM)."""
    peak_pss_bytes: int | None
    """Where several processes shared memory: highest sum of their proportional sets."""
    num_processes: int

    @property
    def failure(self) -> str | None:
        """Why it failed, in a line or two; None if it did not."""
        if self.timed_out:
            return f"not finished within {self.seconds:.0f} s"
        if self.returncode == 0:
            return None
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return f"exit code {self.returncode}: {' | '.join(lines[-3:])[-500:]}"


def run_process(
    command: Sequence[str | Path],
    *,
    timeout_s: float,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """Run a command to its end in a session of its own, watching its memory; at the time limit all of it is killed."""
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            [*map(str, command)],
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        watch = _MemoryWatch(process.pid)
        timed_out = False
        try:
            while True:
                try:
                    process.wait(_POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    watch.poll()
                if time.perf_counter() - started > timeout_s:
                    timed_out = True
                    break
        finally:
            _kill_session(process)
        seconds = time.perf_counter() - started
        output.seek(max(0, output.seek(0, os.SEEK_END) - 20_000))
        text = output.read().decode(errors="replace")
    return Finished(process.returncode, text, seconds, timed_out, watch.rss, watch.pss, watch.num_processes)


def run_command(folder: Path, name: str, *arguments: str, timeout_s: float) -> float:
    """Run a command (or a module: a name with a dot) in a folder; its seconds. A failure ends this process with why."""
    process = run_process(
        [sys.executable, "-m", *([name] if "." in name else ["mlxmath", name]), *arguments],
        timeout_s=timeout_s, folder=folder, environment={"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    if process.failure:
        sys.exit(f"{name} {' '.join(arguments)} failed: {process.failure}")
    return process.seconds


def _kill_session(process: "subprocess.Popen[bytes]") -> None:
    """End what is left of the process and its descendants."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class _MemoryWatch:
    """The memory of a session of processes; nothing where there is no /proc."""

    def __init__(self, session: int) -> None:
        self._session = session
        self._members: list[int] = [session]
        self._num_polls = 0
        self.rss: int | None = None
        self.pss: int | None = None
        self.num_processes = 1

    def poll(self) -> None:
        """Look once. Who belongs to the session is asked less often than how much they hold."""
        if not Path("/proc/self/status").exists():
            return
        if self._num_polls % 8 == 4:
            self._members = _session_members(self._session)
        self._num_polls += 1
        held = [_field(pid, "status", "VmHWM:") for pid in self._members]
        total = sum(h for h in held if h)
        if total:
            self.rss = max(self.rss or 0, total)
        if len(self._members) > 1 and self._num_polls % 4 == 0:
            self.num_processes = max(self.num_processes, len(self._members))
            shares = [_field(pid, "smaps_rollup", "Pss:") for pid in self._members]
            self.pss = max(self.pss or 0, sum(s for s in shares if s))


def _session_members(session: int) -> list[int]:
    """Processes of a session, compilers that MLX starts left out."""
    members = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
            if int(rest.split()[3]) == session and name not in _COMPILERS:
                members.append(int(entry.name))
        except (OSError, ValueError, IndexError):
            continue
    return members


def _field(pid: int, file: str, name: str) -> int | None:
    """A field of a file in /proc/PID, in bytes."""
    try:
        with Path(f"/proc/{pid}/{file}").open() as lines:
            return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)
    except OSError:
        return None
