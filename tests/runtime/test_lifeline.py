"""The line between ranks: what all agree on, and how the loss of one is noticed; two ends in one process."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mlxmath.errors import MlxmathError
from mlxmath.runtime import lifeline
from mlxmath.runtime.lifeline import END, Lifeline
from mlxmath.runtime.ranks import Ranks

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
    monkeypatch.setattr(lifeline, "SILENCE_S", 0.4)
    working, other = socket.socketpair()
    silent, stopped = socket.socketpair()
    hosts = ("a", "b", "c")
    ends = [Lifeline(0, hosts, {1: working, 2: silent}), Lifeline(1, hosts, {0: other})]
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


def test_alone_nothing_is_exchanged() -> None:
    ranks = Ranks()
    assert (ranks.rank, ranks.size, ranks.first, ranks.num_on_host) == (0, 1, True, 1)
    assert ranks.vote("x", 5) == 5 and not ranks.any("x", False) and ranks.gather("x", (1, 2)) == [(1, 2)]
    ranks.agree("x", {"a": 1})
    with ranks.in_turn("x"):
        pass


def test_the_first_rank_says_for_whom_it_waits(
    ends: tuple[Lifeline, Lifeline], exits: list[int], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(lifeline, "LATE_S", 0.05)
    thread, *_ = vote_of_other(ends[0], "window", 0)
    time.sleep(0.2)
    ends[1].vote("window")
    thread.join(5)
    assert capsys.readouterr().err == "still waiting for rank 1 (b) (window)\n"
