"""A small process beside each rank while that prepares.

Loading libraries, waiting for MLX's ring and the like can keep all Python threads of a process from running, for
minutes. The sentinel gives the signs of life then, unless the rank is stopped (SIGSTOP), and ends a rank that does not
notice itself that another one is lost. Run as a script it needs nothing but Python's library.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

_ROUND_MS = 100
_BEAT_S = 0.5
_NOTICE_S = 4.0
"""Seconds that the rank itself has to end, with its own message."""


class Sentinel:
    """Watches over this process from now on, until `close`.

    Args:
        connections: the lifeline's.
        names: of the ranks at their other ends, for messages.
        prefix: of this process's messages.
    """

    def __init__(self, connections: Mapping[int, socket.socket], names: Mapping[int, str], prefix: str) -> None:
        ends = {connection.fileno(): names[rank] for rank, connection in connections.items()}
        task = json.dumps({"rank": os.getpid(), "ends": ends, "prefix": prefix})
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, task], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            pass_fds=[*ends], start_new_session=True,
        )  # fmt: skip

    def limit(self, seconds: float, message: str) -> None:
        """End this process with `message` unless `lift` is called within so many seconds."""
        self._say({"seconds": seconds, "message": message})

    def lift(self) -> None:
        """Take the limit back."""
        self._say({})

    def close(self) -> None:
        """End the watch."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def _say(self, message: Mapping[str, object]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()


def watch(rank: int, ends: Mapping[int, str], prefix: str) -> None:
    """Be the sentinel of process `rank`, whose child this is, until it ends.

    Args:
        rank: its process id.
        ends: file descriptors of its connections, with what the rank at the other end is called.
        prefix: of its messages.
    """
    poll = select.poll()
    poll.register(0, select.POLLIN)
    connections = {end: socket.socket(fileno=end) for end in ends}
    for end in ends:
        poll.register(end, getattr(select, "POLLRDHUP", 0))
    lost: list[tuple[float, str]] = []
    limit: list[tuple[float, str]] = []
    beaten = 0.0
    while os.getppid() == rank:
        for end, _ in poll.poll(_ROUND_MS):
            if end:
                poll.unregister(end)
                lost.append((time.monotonic() + _NOTICE_S, _reason(connections.pop(end), ends[end])))
                continue
            *_, last = os.read(0, 1 << 16).splitlines() or [b""]
            if not last:
                return
            found = json.loads(last)
            limit = [(time.monotonic() + found["seconds"], found["message"])] if found else []
        now = time.monotonic()
        for when, reason in lost + limit:
            if now > when and os.getppid() == rank:
                print(f"{prefix}error: {reason}", file=sys.stderr, flush=True)
                os.kill(rank, signal.SIGKILL)
                return
        if now - beaten > _BEAT_S and not is_stopped(rank):
            beaten = now
            for connection in connections.values():
                with contextlib.suppress(OSError):
                    connection.send(b"\n", socket.MSG_DONTWAIT)


def is_stopped(process: int) -> bool:
    """Whether a process was stopped by a signal."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        pass
    try:  # not on Linux
        asked = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, timeout=2, check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    return asked.stdout.strip().startswith(b"T")


def _reason(connection: socket.socket, name: str) -> str:
    """Why the rank at the other end has gone: what it said last, which its reader may not have read yet."""
    with contextlib.suppress(OSError, ValueError):
        for line in connection.recv(1 << 16, socket.MSG_PEEK | socket.MSG_DONTWAIT).splitlines():
            message = json.loads(line) if line else {}
            if "lost" in message:
                return str(message["lost"])
    return f"{name} has ended before its time"


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    watch(task["rank"], {int(end): name for end, name in task["ends"].items()}, task["prefix"])
