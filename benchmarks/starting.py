"""Processes of `mlxmath` that may meet a fault: new ones, or children of one that has imported everything already."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
PARENT = str(REPOSITORY / "benchmarks" / "peers" / "zygote.py")
_POLL_S = 0.005


def environment(library: Path) -> dict[str, str]:
    """Of all processes: this checkout, no network, no torch (which only takes time), one thread for matrix products."""
    path = os.pathsep.join([str(REPOSITORY / "tests" / "without_torch"), str(REPOSITORY)])
    one_thread = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    own = {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "LD_PRELOAD": str(library)}
    return os.environ | one_thread | own


class Fresh:
    """Starts each command in a new process."""

    name = "process"

    def __init__(self, library: Path) -> None:
        self._environment = environment(library)
        self._started: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, folder: Path, arguments: Sequence[str], fault: Mapping[str, str], log: Path) -> int:
        """The id of a process that runs `mlxmath ARGUMENTS` in `folder` and writes what it says to `log`."""
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "mlxmath", *arguments], cwd=folder, env=self._environment | fault, stdout=file,
                stderr=file, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=heed_interrupts,
            )  # fmt: skip
        self._started[process.pid] = process
        return process.pid

    def wait(self, pid: int, timeout_s: float) -> int | None:
        """As `waited`."""
        status = waited(pid, timeout_s)
        if status is not None and not os.WIFSTOPPED(status):
            self._started.pop(pid).returncode = 0  # it is gone; nobody else must wait for it
        return status

    def close(self) -> None:
        """Nothing is left."""


class Zygote:
    """Starts each command in a child of a process that has imported everything.

    A training of four steps takes 1.4 s of a core so, and 5.5 s in a new process.
    """

    name = "zygote"

    def __init__(self, library: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, PARENT], env=environment(library), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip

    def start(self, folder: Path, arguments: Sequence[str], fault: Mapping[str, str], log: Path) -> int:
        """See `Fresh.start`."""
        return self._ask(folder=str(folder), arguments=[*arguments], fault=dict(fault), log=str(log))

    def wait(self, pid: int, timeout_s: float) -> int | None:
        """As `waited`."""
        return self._ask(pid=pid, timeout_s=timeout_s)

    def _ask(self, **request: Any) -> Any:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        if not (reply := self._process.stdout.readline()):
            raise RuntimeError(f"the process that starts others has ended ({self._process.wait()})")
        return json.loads(reply)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def waited(pid: int, timeout_s: float) -> int | None:
    """The status with which a child ended or stopped, as `os.waitpid` gives it; None after the time limit."""
    end = time.monotonic() + timeout_s
    while True:
        found, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
        if found:
            return status
        if time.monotonic() > end:
            return None
        time.sleep(_POLL_S)


def heed_interrupts() -> None:
    """Let SIGINT interrupt, which it does not in what a shell has started in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def kill_session(pid: int) -> None:
    """Kill a process that was started here, and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
