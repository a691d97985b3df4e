"""The process beside a rank: it speaks for a rank that cannot, not for one that is stopped, and ends one that must."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.helpers import ENVIRONMENT

HOLDS = "ctypes.PyDLL(None).sleep(30)"
"""Runs no Python for half a minute, as loading a library may."""
RANK = """
import ctypes, socket, sys, time
from mlxmath.runtime.sentinel import Sentinel
connection = socket.socket(fileno=int(sys.argv[1]))
sentinel = Sentinel({0: connection}, {0: "rank 0 (a)"}, "rank 1 (b): ")
"""


@contextmanager
def rank(does: str) -> Iterator[tuple["subprocess.Popen[str]", socket.socket]]:
    """A process that does something beside its sentinel, and the other end of its connection."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-c", RANK + does, str(theirs.fileno())], env=ENVIRONMENT, pass_fds=[theirs.fileno()],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    theirs.close()
    ours.settimeout(5)
    try:
        yield process, ours
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()
        ours.close()


def test_a_rank_that_runs_no_python_lives_until_it_is_stopped_or_dies() -> None:
    with rank(HOLDS) as (process, connection):
        assert connection.recv(1) == b"\n" and connection.recv(1) == b"\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.3)
        connection.settimeout(1.5)
        with pytest.raises(TimeoutError):
            while True:
                assert connection.recv(100) == b"\n"
        process.send_signal(signal.SIGCONT)
        assert connection.recv(1) == b"\n"
        process.kill()
        start = time.monotonic()
        while connection.recv(100):
            pass
        assert time.monotonic() - start < 1


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b'\n{"decision": 0}\n{"lost": "rank 2 (c) has ended before its time"}\n', "rank 2 (c) has ended"),
        (b"\n\n", "rank 0 (a) has ended"),
    ],
)
def test_a_rank_that_cannot_see_a_loss_is_ended_with_its_reason(said: bytes, reason: str) -> None:
    with rank(HOLDS) as (process, connection):
        connection.recv(1)
        connection.sendall(said)
        connection.close()
        _, error = process.communicate(timeout=10)
    assert error == f"rank 1 (b): error: {reason} before its time\n"
    assert process.returncode == -signal.SIGKILL


def test_what_takes_too_long_is_ended_and_what_does_not_is_left_alone() -> None:
    for lifted, expected in ((False, "rank 1 (b): error: too long\n"), (True, "")):
        does = f'sentinel.limit(0.2, "too long")\n{"sentinel.lift()" if lifted else ""}\nctypes.PyDLL(None).sleep(1)'
        with rank(does) as (process, _):
            _, error = process.communicate(timeout=10)
        assert error == expected
        assert process.returncode == (0 if lifted else -signal.SIGKILL)


def test_a_closed_sentinel_is_gone() -> None:
    does = "sentinel.close()\nsentinel.close()\nprint(sentinel._process.pid, file=sys.stderr)"
    with rank(does) as (process, _):
        _, error = process.communicate(timeout=10)
    assert process.returncode == 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(error), 0)
