"""What the benchmarks share: where a figure was measured, fresh processes with their memory watched, tables, JSON."""

import contextlib
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
GSM8K = REPOSITORY.parent / "shared" / "data" / "gsm8k" / "train.jsonl"
DEMO_ROWS = REPOSITORY / "mlxmath" / "demo" / "problems" / "train.jsonl"

_COMPILERS = {"cc1plus", "g++", "c++", "clang++", "collect2", "ld", "as", "sh"}
_POLL_S = 0.25


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """Where and with what something was measured: machine, versions of `packages` and this one, commit."""
    return {
        "platform": platform.platform(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "commit": commit(),
    }


def version(package: str) -> str | None:
    """The version of an installed package, None if it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of this checkout, with `+` behind it if tracked files differ; None outside a checkout."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    result = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return result.stdout.strip()


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def exit_on_sigterm() -> None:
    """Turn SIGTERM into an exit that cleans up, so that no started process is left behind."""

    def leave(*_: object) -> None:
        print("ended by SIGTERM", file=sys.stderr, flush=True)
        sys.exit(143)

    signal.signal(signal.SIGTERM, leave)


def save_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, in one step, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    Path(name).chmod(0o644)
    Path(name).replace(path)


def ring_hostfile(folder: Path, size: int) -> Path:
    """A file with free ports of this machine for `size` ranks, as MLX_HOSTFILE names it."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(size)]
    path = folder / "hosts.json"
    path.write_text(json.dumps([[f"127.0.0.1:{probe.getsockname()[1]}"] for probe in probes]))
    for probe in probes:
        probe.close()
    return path


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is text, the others are numbers. Plain where `rich` is not installed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        print(f"\n{title}")
        for row in (columns, *rows):
            cells = [f"{c:{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))]
            print("  ".join(cells))
        return
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print()
    console.print(table)


def gigabytes(num_bytes: float | None) -> str:
    """`1234567890` as `1.23 GB`; a dash for None."""
    return "-" if num_bytes is None else f"{num_bytes / 1e9:.2f} GB"


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
