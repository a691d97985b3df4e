"""How ranks find each other: what the launcher says, who comes to rank 0, and what keeps them from working together."""

import contextlib
import json
import os
import socket
import struct
import time
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from mlxmath import __version__
from mlxmath.commands import options
from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime import heartbeat, launch
from mlxmath.runtime.heartbeat import Heartbeat
from mlxmath.runtime.launch import Launch, compare, launched, meet
from mlxmath.runtime.ranks import join
from tests.runtime.launch import free_port

VERSIONS = {"mlxmath": "1"}
THREADS = ThreadPoolExecutor()


def launches(size: int = 2) -> list[Launch]:
    port = free_port()
    return [Launch("ring", rank, size, ("127.0.0.1",) * size, port, "secret") for rank in range(size)]


def met(launch: Launch, versions: dict[str, str] = VERSIONS) -> "Future[Any]":
    """`meet` in a thread: what it returns, or its error's text."""

    def run() -> Any:
        try:
            return meet(launch, f"host {launch.rank}", versions)
        except MlxmathError as error:
            return str(error)

    return THREADS.submit(run)


def framed(said: bytes) -> bytes:
    return struct.pack("!i", len(said)) + said


def stranger(launch: Launch, said: bytes) -> socket.socket:
    for _ in range(100):
        try:
            found = socket.create_connection(("127.0.0.1", launch.port))
        except OSError:
            time.sleep(0.01)
        else:
            found.sendall(said)
            return found
    raise AssertionError


def introduced(**other: Any) -> bytes:
    own = {"run": "secret", "rank": 1, "host": "x", "versions": VERSIONS}
    return framed(json.dumps(own | other).encode())


def test_all_find_each_other_and_strangers_are_turned_away() -> None:
    ranks = launches(3)
    first = met(ranks[0])
    wrong = [
        stranger(ranks[0], said)
        for said in (
            introduced(run="other"),
            introduced(rank=3),
            introduced(rank=0),
            introduced(host=1),
            introduced(rank=[]),
            framed(b"[]"),
            framed(b"x"),
            b"GET / HTTP/1.1\r\n\r\n",
        )
    ]
    others = [met(rank) for rank in ranks[1:]]
    hosts, connections = first.result(5)
    assert hosts == ("host 0", "host 1", "host 2") and sorted(connections) == [1, 2]
    for rank, other in enumerate(others, 1):
        told, (connection,) = other.result(5)[0], other.result()[1].values()
        assert told == hosts
        connection.send_bytes(b"a vote")
        assert connections[rank].recv_bytes() == b"a vote"
        connections[rank].close()
        connection.close()
    for each in wrong:
        with contextlib.suppress(ConnectionResetError):
            assert each.recv(1) == b""
        each.close()


def test_other_versions_are_refused_on_all_ranks() -> None:
    ranks = launches(3)
    runs = [met(ranks[0]), met(ranks[1]), met(ranks[2], {"mlxmath": "2"})]
    assert all("mlxmath is 2 on rank 2 (host 2) and 1 on rank 0 (host 0)" in run.result(5) for run in runs)


def test_who_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(launch, "MEET_S", 2.0)
    monkeypatch.setattr(launch, "NOTICE_S", 1.0)
    ranks = launches(3)
    runs = [met(rank) for rank in ranks[:2]]
    assert all(run.result(5).startswith("rank 2 (127.0.0.1): not there within 2 seconds") for run in runs)
    assert capsys.readouterr().err == "waiting for rank 2 (127.0.0.1)\n"
    expected = f"rank 0 (127.0.0.1) is not reached at port {ranks[0].port} within 2 seconds"
    assert met(ranks[1]).result(5).startswith(expected)


def test_who_ends_before_all_are_there_is_named() -> None:
    first = launches(4)[0]
    run = met(first)
    waiting = stranger(first, introduced(rank=1))
    stranger(first, introduced(rank=3, host="host 3")).close()
    assert run.result(5) == "rank 3 (host 3) has ended before its time"
    assert json.loads(waiting.recv(1000)[4:]) == {"refused": run.result()}
    waiting.close()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b"", "rank 0 (127.0.0.1) has ended before its time"),
        (b"HTTP/1.1\n", "is not rank 0 of this run"),
        (framed(b"[]"), "is not rank 0 of this run"),
    ],
)
def test_something_else_at_the_port_of_rank_0(said: bytes, message: str) -> None:
    second = launches()[1]
    with socket.create_server(("127.0.0.1", second.port)) as server:
        run = met(second)
        connection, _ = server.accept()
        connection.recv(1000)
        connection.sendall(said)
        connection.close()
        assert message in run.result(5)


def test_a_port_in_use_is_named() -> None:
    first = launches()[0]
    with (
        socket.create_server(("127.0.0.1", first.port)),
        pytest.raises(MlxmathError, match=f"cannot listen on 127.0.0.1 port {first.port} .* another --starting-port"),
    ):
        meet(first, "host", VERSIONS)


def test_a_backend_that_is_not_there_is_no_group_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port() + 1000
    said = {"MLX_RANK": "1", "NCCL_HOST_IP": "127.0.0.1", "NCCL_PORT": str(port), "MLX_WORLD_SIZE": "2"}
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    second = launched()
    assert second is not None
    first = Launch("nccl", 0, 2, ("127.0.0.1",), second.port, second.run)
    monkeypatch.setattr(heartbeat, "GRACE_S", 0.05)
    monkeypatch.setattr(heartbeat, "KILL_S", 600)
    monkeypatch.setattr(os, "_exit", lambda code: None)

    def be_first() -> Heartbeat:
        versions = {"mlxmath": __version__, **{name: metadata.version(name) for name in ("mlx", "mlx-lm")}}
        hosts, connections = meet(first, "host", versions)
        found = Heartbeat(0, hosts, connections, print)
        found.vote("forming")
        return found

    running = THREADS.submit(be_first)
    with pytest.raises(MlxmathError, match="the nccl backend does not find the other processes"), join():
        raise AssertionError
    other = running.result(5)
    time.sleep(0.3)  # the first one has lost the other and would end now
    other.close()
    other._watchdog.kill()  # it would wait for this process to end
    other._watchdog.wait()


def test_every_difference_is_named() -> None:
    facts = [{"seed": 0, "data": "x"}, {"seed": 1, "data": "x"}, {"data": "y"}]
    with pytest.raises(MlxmathError) as error:
        compare(facts, ("a", "b", "c"))
    for text in ("seed is 1 on rank 1 (b) and 0 on rank 0 (a)", "seed is None on rank 2 (c)", "data is y on rank 2"):
        assert text in str(error.value)
    assert "data is x on rank 1" not in str(error.value)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"MLX_RANK": "0", "MLX_HOSTFILE": "EMPTY"}, None),
        ({"MLX_RANK": "1", "MLX_HOSTFILE": "TWO"}, ("ring", 1, 2, ("10.0.0.1", "10.0.0.2"), 3000)),
        ({"MLX_RANK": "0", "MLX_HOSTFILE": "SIX"}, ("ring", 0, 2, ("fe80::1", "fe80::2"), 2500)),
        ({"MLX_RANK": "1", "MLX_IBV_DEVICES": "TWO", "MLX_JACCL_COORDINATOR": "10.0.0.1:32323"},
         ("jaccl", 1, 2, ("10.0.0.1",), 31323)),
        ({"MLX_RANK": "1", "MLX_IBV_DEVICES": "TWO", "MLX_JACCL_COORDINATOR": "10.0.0.1"}, "expected ADDRESS:PORT"),
        ({"MLX_RANK": "3", "NCCL_HOST_IP": "10.0.0.1", "MLX_WORLD_SIZE": "4"}, ("nccl", 3, 4, ("10.0.0.1",), 11345)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, ("mpi", 1, 2, (), 31323)),
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
    files = {
        "EMPTY": "",
        "TWO": json.dumps([["10.0.0.1:4000"], ["10.0.0.2:4001"]]),
        "WRONG": '{"a": 1}',
        "SIX": json.dumps([["[fe80::1]:1500", "[fe80::1]:1501"], ["[fe80::2]:1502"]]),
    }
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
        assert (found and (found.backend, found.rank, found.size, found.addresses, found.port)) == expected


def test_blocks_cannot_be_spread_over_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MLX_RANK": "1", "NCCL_HOST_IP": "127.0.0.1", "MLX_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    options.check_shard("tensor", 2)
    with pytest.raises(InputError, match="--shard pipeline .* use --shard tensor"):
        options.check_shard("pipeline", 2)
