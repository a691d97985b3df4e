"""Who is alive and what all agree on: ranks in one process, each with its watchdog, and ranks that run no Python."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

import psutil
import pytest

from mlxmath.runtime import heartbeat
from mlxmath.runtime.console import say
from mlxmath.runtime.heartbeat import END, Heartbeat
from mlxmath.runtime.ranks import Ranks
from tests.helpers import ENVIRONMENT

OTHERS = ThreadPoolExecutor()
"""In which other ranks vote meanwhile."""
NAMES = ("rank 0 (a)", "rank 1 (b)", "rank 2 (c)")
HOLDS = "ctypes.PyDLL(None).sleep(30)"
"""Runs no Python for half a minute, as loading a library may."""
RANK = """
import ctypes, sys, time
from multiprocessing.connection import Connection
from mlxmath.runtime import heartbeat
heartbeat.SILENCE_S = 600
names, connections = ["rank 0 (a)", "rank 1 (b)"], {0: Connection(int(sys.argv[1]))}
heartbeat = heartbeat.Heartbeat(1, names, connections, print, "rank 1 (b): ")
"""


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []
    monkeypatch.setattr(heartbeat, "GRACE_S", 0.05)
    monkeypatch.setattr(heartbeat, "KILL_S", 600)
    monkeypatch.setattr(os, "_exit", found.append)
    return found


def pair(say: Callable[[str], None]) -> tuple[Heartbeat, Heartbeat]:
    one, other = Pipe()
    return Heartbeat(0, NAMES[:2], {1: one}, say), Heartbeat(1, NAMES[:2], {0: other}, say)


@pytest.fixture
def ends(exits: list[int]) -> Iterator[tuple[Heartbeat, Heartbeat]]:
    before = set(psutil.Process().children())
    both = pair(say)
    yield both
    close(both)
    time.sleep(0.2)  # who lost somebody calls os._exit after the time of grace
    assert not [thread for thread in threading.enumerate() if thread.name == "heartbeat"]
    assert set(psutil.Process().children()) <= before


def close(ends: Sequence[Heartbeat]) -> None:
    """All at once."""
    list(OTHERS.map(Heartbeat.close, ends))
    for each in ends:
        if each.lost:
            each._watchdog.kill()  # it would wait for this process to end
        each._watchdog.wait(5)
        each._thread.join(5)


def test_a_watchdog_finds_psutil_where_this_process_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "psutil.py").write_text(
        f"import sys\nopen({str(tmp_path / 'found')!r}, 'a').close()\nsys.path.remove({str(tmp_path)!r})\n"
        "del sys.modules['psutil']\nimport psutil\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    both = pair(say)
    assert list(OTHERS.map(lambda each: each.vote(END), both)) == [0, 0] and (tmp_path / "found").exists()
    close(both)


@pytest.mark.parametrize("late", [0, 1])
def test_all_get_every_bit_and_wait_for_the_last(
    ends: tuple[Heartbeat, Heartbeat], late: int, exits: list[int]
) -> None:
    for number in range(3):
        other = OTHERS.submit(ends[1 - late].vote, f"vote {number}", 4)
        time.sleep(0.02)
        assert not other.done()
        assert ends[late].vote(f"vote {number}", number) == other.result(5) == 4 | number
    assert exits == []


def test_ranks_at_different_places_are_told_so(ends: tuple[Heartbeat, Heartbeat], exits: list[int]) -> None:
    other = OTHERS.submit(ends[1].vote, "window")
    assert ends[0].vote("validation") is None
    assert ends[0].lost == "the ranks are out of step: rank 0 at 'validation', rank 1 at 'window'"
    assert other.result(5) is None and ends[1].lost == ends[0].lost
    time.sleep(0.2)
    assert exits == [1, 1]


@pytest.mark.parametrize("lost", [0, 1])
def test_a_closed_connection_is_a_loss_at_once(ends: tuple[Heartbeat, Heartbeat], lost: int, exits: list[int]) -> None:
    ends[lost].close()
    start = time.monotonic()
    assert ends[1 - lost].vote("window") is None
    assert ends[1 - lost].lost == f"{NAMES[lost]} has ended before its time" and time.monotonic() - start < 5
    assert ends[1 - lost].vote("window") is None


@pytest.mark.parametrize("how", ["other", "watchdog"])
def test_whoever_computes_meanwhile_is_ended(
    ends: tuple[Heartbeat, Heartbeat], exits: list[int], how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if how == "other":
        ends[1].close()
    else:
        ends[0]._watchdog.kill()
    end = time.monotonic() + 5
    while not exits and time.monotonic() < end:
        time.sleep(0.01)
    assert 1 in exits
    lost = "rank 1 (b)" if how == "other" else "the watchdog of this process"
    assert f"error: {lost} has ended before its time\n" in capsys.readouterr().err


def test_silence_is_a_loss_and_work_is_not(monkeypatch: pytest.MonkeyPatch, exits: list[int]) -> None:
    monkeypatch.setattr(heartbeat, "SILENCE_S", 2.0)
    working, other = Pipe()
    silent, stopped = Pipe()
    ends = [Heartbeat(0, NAMES, {1: working, 2: silent}, say), Heartbeat(1, NAMES, {0: other}, say)]
    for each in ends:
        each.work()
    assert ends[0].vote("window") is None  # rank 1 lives, though it does not vote; rank 2 never says a word
    assert ends[0].lost == "rank 2 (c) has given no sign of life for 2 seconds"
    assert ends[1].verdict() == ends[0].lost  # told by rank 0
    close(ends)
    stopped.close()
    time.sleep(0.2)
    assert exits == [1, 1]


@pytest.mark.parametrize("first", [0, 1])
def test_after_the_end_nobody_is_missed(ends: tuple[Heartbeat, Heartbeat], exits: list[int], first: int) -> None:
    other = OTHERS.submit(ends[1].vote, END)
    assert ends[0].vote(END) == 0
    ends[first].close()
    assert other.result(5) == 0
    time.sleep(0.3)
    assert exits == []


def test_alone_nothing_is_exchanged() -> None:
    ranks = Ranks()
    assert (ranks.rank, ranks.size, ranks.first, ranks.num_on_host) == (0, 1, True, 1)
    assert ranks.vote("x", 5) == 5 and not ranks.any("x", False) and ranks.gather("x", (1, 2)) == [(1, 2)]
    ranks.agree("x", {"a": 1})
    with ranks.in_turn("x"):
        pass


def test_the_first_rank_says_for_whom_it_waits(exits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "LATE_S", 0.1)
    said: list[str] = []
    ends = pair(said.append)
    other = OTHERS.submit(ends[0].vote, "window")
    end = time.monotonic() + 20
    while not said and time.monotonic() < end:
        time.sleep(0.02)
    ends[1].vote("window")
    assert other.result(5) == 0
    close(ends)
    assert said == ["still waiting for rank 1 (b) (window)"]


def test_a_loss_is_told_at_once_while_the_watchdog_sees_to_the_others(exits: list[int]) -> None:
    one, other = Pipe()
    two, stopped = Pipe()
    end = Heartbeat(0, NAMES, {1: one, 2: two}, say)
    other.close()
    assert end.vote("window") is None
    start = time.monotonic()
    end.close()
    assert time.monotonic() - start < 5  # the third rank, which is stopped, holds nobody up
    close([end])
    stopped.close()
    time.sleep(0.2)


@contextmanager
def rank(does: str) -> Iterator[tuple["subprocess.Popen[str]", Connection]]:
    """A process that does something beside its watchdog, and the other end of its connection."""
    ours, theirs = Pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", RANK + does, str(theirs.fileno())], env=ENVIRONMENT, pass_fds=[theirs.fileno()],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    theirs.close()
    try:
        yield process, ours
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()
        ours.close()


def beats_within(connection: Connection, seconds: float) -> bool:
    return connection.poll(seconds) and connection.recv_bytes() == b"{}"


def test_a_rank_that_runs_no_python_lives_until_it_is_stopped_or_dies() -> None:
    with rank(HOLDS) as (process, connection):
        assert beats_within(connection, 20) and beats_within(connection, 5)
        process.send_signal(signal.SIGSTOP)
        time.sleep(1)
        while connection.poll():
            assert connection.recv_bytes() == b"{}"
        assert not beats_within(connection, 2)
        process.send_signal(signal.SIGCONT)
        assert beats_within(connection, 5)
        process.kill()
        start = time.monotonic()
        with pytest.raises(EOFError):
            while True:
                connection.recv_bytes()
        assert time.monotonic() - start < 5


def test_a_rank_at_work_that_runs_no_python_gives_no_sign_of_life() -> None:
    with rank("heartbeat.work()\ntime.sleep(4)\n" + HOLDS) as (_, connection):
        for _ in range(3):
            assert beats_within(connection, 20)
        end = time.monotonic() + 20
        while beats_within(connection, 2.5):
            assert time.monotonic() < end


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ([b"{}", b'{"decision": 0}', b'{"lost": "rank 2 (c) has ended before its time"}'], "rank 2 (c) has ended"),
        ([b"{}"], "rank 0 (a) has ended"),
        ([b"no JSON"], "rank 0 (a) has ended"),
    ],
)
def test_a_rank_that_cannot_see_a_loss_is_ended_with_its_reason(said: list[bytes], reason: str) -> None:
    with rank(HOLDS) as (process, connection):
        connection.recv_bytes()
        for each in said:
            connection.send_bytes(each)
        connection.close()
        _, error = process.communicate(timeout=20)
    assert error == f"rank 1 (b): error: {reason} before its time\n"
    assert process.returncode == -signal.SIGKILL


def test_a_rank_that_has_left_and_hangs_in_its_end_is_ended() -> None:
    does = "heartbeat.vote('x'); heartbeat.close(); import os; os._exit = print; " + HOLDS
    with rank(does) as (process, connection):
        connection.recv_bytes()
        connection.close()
        _, error = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGKILL and "rank 0 (a) has ended before its time" in error


def test_a_rank_ends_though_its_error_cannot_be_printed() -> None:
    with rank("import os; os.close(2)\ntime.sleep(30)") as (process, connection):
        connection.recv_bytes()
        connection.close()
        assert process.wait(20) == 1


def test_what_takes_too_long_is_ended_and_what_does_not_is_left_alone() -> None:
    for lifted, expected in ((False, "rank 1 (b): error: too long\n"), (True, "")):
        does = f'heartbeat.limit(0.2, "too long")\n{"heartbeat.limit()" if lifted else ""}\nctypes.PyDLL(None).sleep(2)'
        with rank(does) as (process, _):
            _, error = process.communicate(timeout=20)
        assert error == expected
        assert process.returncode == (0 if lifted else -signal.SIGKILL)
