"""The line between ranks: what all agree on, and how the loss of one is noticed; two ends in one process."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlxmath import console
from mlxmath.backends import lifeline
from mlxmath.backends.lifeline import END, Lifeline, accept, connect, listen
from mlxmath.backends.ranks import Ranks, _compare, join, launched
from mlxmath.errors import MlxmathError

HOSTS = ("a", "b")


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []
    monkeypatch.setattr(lifeline, "GRACE_S", 0.05)
    monkeypatch.setattr(os, "_exit", found.append)
    return found


@pytest.fixture
def ends(exits: list[int]) -> Iterator[tuple[Lifeline, Lifeline]]:
    one, other = socket.socketpair()
    pair = Lifeline(0, HOSTS, {1: one}), Lifeline(1, HOSTS, {0: other})
    yield pair
    for each in pair:
        each.close()
    time.sleep(0.2)  # who lost somebody calls os._exit after the time of grace


def vote_of_other(end: Lifeline, name: str, flags: int) -> list[Any]:
    found: list[Any] = []

    def vote() -> None:
        try:
            found.append(end.vote(name, flags))
        except MlxmathError as error:
            found.append(str(error))

    thread = threading.Thread(target=vote)
    thread.start()
    found.append(thread)
    return found


@pytest.mark.parametrize("late", [0, 1])
def test_all_get_every_bit_and_wait_for_the_last(ends: tuple[Lifeline, Lifeline], late: int, exits: list[int]) -> None:
    for number in range(3):
        thread, *_ = found = vote_of_other(ends[1 - late], f"vote {number}", 4)
        time.sleep(0.02)
        assert len(found) == 1
        assert ends[late].vote(f"vote {number}", number) == 4 | number
        thread.join(5)
        assert found[1] == 4 | number
    assert exits == []


def test_ranks_at_different_places_are_told_so(ends: tuple[Lifeline, Lifeline], exits: list[int]) -> None:
    thread, *_ = found = vote_of_other(ends[1], "window", 0)
    with pytest.raises(MlxmathError, match="out of step: rank 0 at 'validation', rank 1 at 'window'"):
        ends[0].vote("validation")
    thread.join(5)
    assert "out of step" in found[1]
    time.sleep(0.2)
    assert exits == [1, 1]


@pytest.mark.parametrize("lost", [0, 1])
def test_a_closed_connection_is_a_loss_at_once(ends: tuple[Lifeline, Lifeline], lost: int, exits: list[int]) -> None:
    ends[lost].close()
    start = time.monotonic()
    with pytest.raises(MlxmathError, match=rf"rank {lost} \({HOSTS[lost]}\) has ended before its time"):
        ends[1 - lost].vote("window")
    assert time.monotonic() - start < 2


def test_whoever_computes_meanwhile_is_ended(
    ends: tuple[Lifeline, Lifeline], exits: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    ends[1].close()
    end = time.monotonic() + 5
    while not exits and time.monotonic() < end:
        time.sleep(0.01)
    assert exits == [1]
    assert capsys.readouterr().err == "error: rank 1 (b) has ended before its time\n"


def test_silence_is_a_loss_and_work_is_not(monkeypatch: pytest.MonkeyPatch, exits: list[int]) -> None:
    monkeypatch.setattr(lifeline, "BEAT_S", 0.05)
    working, other = socket.socketpair()
    silent, stopped = socket.socketpair()
    hosts = ("a", "b", "c")
    ends = [Lifeline(0, hosts, {1: working, 2: silent}), Lifeline(1, hosts, {0: other})]
    for each in ends:
        each.silence_s = 0.4
    found = vote_of_other(ends[0], "window", 0)  # rank 1 lives, though it does not vote; rank 2 never says a word
    found[0].join(5)
    assert found[1] == "rank 2 (c) has given no sign of life for 0.4 seconds"
    assert ends[1].verdict() == found[1]  # told by rank 0
    for each in ends:
        each.close()
    stopped.close()
    time.sleep(0.2)
    assert exits == [1, 1]


def test_after_the_end_nobody_is_missed(ends: tuple[Lifeline, Lifeline], exits: list[int]) -> None:
    thread, *_ = vote_of_other(ends[1], END, 0)
    ends[0].vote(END)
    thread.join(5)
    ends[0].close()
    time.sleep(0.3)
    assert exits == []


def test_a_backend_that_is_not_there_is_no_group_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MLX_RANK": "1", "NCCL_HOST_IP": "127.0.0.1", "MLX_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(console, "_prefix", "")
    with pytest.raises(MlxmathError, match="the nccl backend does not find the other processes"), join():
        raise AssertionError


def test_strangers_are_turned_away() -> None:
    with listen("127.0.0.1") as server:
        port = server.getsockname()[1]
        stranger = socket.create_connection(("127.0.0.1", port))
        stranger.sendall(b"wrong 1\n")
        known = connect("127.0.0.1", port, "secret", 1)
        known.sendall(b"a vote")
        found = accept(server, HOSTS, "secret")
        assert found[1].recv(10) == b"a vote"
        assert list(found) == [1] and found[1].getpeername() == known.getsockname()
        assert stranger.recv(1) == b""
        for each in (stranger, known, found[1]):
            each.close()


def test_who_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifeline, "JOIN_S", 0.05)
    with listen("127.0.0.1") as server, pytest.raises(MlxmathError, match=r"rank 1 \(b\) does not reach rank 0 at"):
        accept(server, HOSTS, "secret")


def test_alone_nothing_is_exchanged() -> None:
    ranks = Ranks()
    assert (ranks.rank, ranks.size, ranks.first, ranks.num_on_host) == (0, 1, True, 1)
    assert ranks.vote("x", 5) == 5 and not ranks.any("x", False) and ranks.gather("x", (1, 2)) == [(1, 2)]
    ranks.agree("x", {"a": 1})
    with ranks.in_turn("x"):
        pass


def test_every_difference_is_named() -> None:
    facts = [{"seed": 0, "data": "x"}, {"seed": 1, "data": "x"}, {"data": "y"}]
    with pytest.raises(MlxmathError) as error:
        _compare(facts, ("a", "b", "c"))
    for text in ("seed is 1 on rank 1 (b) and 0 on rank 0 (a)", "seed is None on rank 2 (c)", "data is y on rank 2"):
        assert text in str(error.value)
    assert "data is x on rank 1" not in str(error.value)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"MLX_RANK": "0", "MLX_HOSTFILE": "EMPTY"}, None),
        ({"MLX_RANK": "1", "MLX_HOSTFILE": "TWO"}, ("ring", 1, 2, "10.0.0.1")),
        ({"MLX_RANK": "1", "MLX_IBV_DEVICES": "TWO", "MLX_JACCL_COORDINATOR": "10.0.0.1:32323"},
         ("jaccl", 1, 2, "10.0.0.1")),
        ({"MLX_RANK": "3", "NCCL_HOST_IP": "10.0.0.1", "MLX_WORLD_SIZE": "4"}, ("nccl", 3, 4, "10.0.0.1")),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, ("mpi", 1, 2, "")),
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, None),
        ({"MLX_RANK": "1"}, "nothing says who the other processes are"),
        ({"MLX_RANK": "2", "MLX_HOSTFILE": "TWO"}, "MLX_RANK is 2, but there are 2 processes"),
        ({"MLX_RANK": "0", "MLX_HOSTFILE": "absent.json"}, "MLX_HOSTFILE: "),
        ({"MLX_RANK": "0", "MLX_HOSTFILE": "WRONG"}, "expected [["),
    ],
)  # fmt: skip
def test_what_a_launcher_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: Any
) -> None:
    files = {"EMPTY": "", "TWO": json.dumps([["10.0.0.1:4000"], ["10.0.0.2:4001"]]), "WRONG": '{"a": 1}'}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(tmp_path / value) if value in files else value)
    if isinstance(expected, str):
        with pytest.raises(MlxmathError) as error:
            launched()
        assert expected in str(error.value)
    else:
        found = launched()
        assert (found and (found.backend, found.rank, found.size, found.address)) == expected
