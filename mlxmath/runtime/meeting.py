"""How the processes of a run find each other, before anything slow is loaded: all come to rank 0.

Each says who it is in a line of JSON; once all are there, rank 0 answers with the hosts of all, or with why they cannot
work together. The connections stay: they are the lifeline.
"""

import contextlib
import hmac
import json
import select
import socket
import time
from collections.abc import Mapping
from typing import Any

from mlxmath.errors import MlxmathError
from mlxmath.runtime.console import say
from mlxmath.runtime.launch import Launch

MEET_S = 120.0
"""Seconds that a process waits for the others to start; where mlx.launch sees one fail, it ends them all sooner."""
NOTICE_S = 5.0
"""Seconds after which rank 0 says for whom it waits."""
_ANSWER_S = 5.0
_AGAIN_S = 0.1
_MOST_BYTES = 1 << 20


def meet(launch: Launch, host: str, versions: Mapping[str, str]) -> tuple[tuple[str, ...], dict[int, socket.socket]]:
    """Find the other processes, which are of the same versions.

    Returns:
        The host of each rank, and connections: rank 0's to every other, any other's to rank 0.

    Raises:
        MlxmathError: one does not come, ends meanwhile, or is of other versions; it is named.
    """
    own = {"run": launch.run, "rank": launch.rank, "host": host, "versions": dict(versions)}
    if launch.rank:
        return _come(launch, own)
    connections: dict[int, socket.socket] = {}
    said: dict[int, dict[str, Any]] = {0: own}
    try:
        with _listen(launch) as server:
            _await_all(launch, server, connections, said)
        by_rank = [said[rank] for rank in range(launch.size)]
        hosts = tuple(str(each["host"]) for each in by_rank)
        compare([each["versions"] for each in by_rank], hosts)
    except MlxmathError as error:
        _tell(connections, {"refused": str(error)})
        for connection in connections.values():
            connection.close()
        raise
    _tell(connections, {"hosts": hosts})
    return hosts, connections


def compare(found: list[Mapping[str, Any]], hosts: tuple[str, ...]) -> None:
    """Make sure that all ranks' facts are those of rank 0.

    Raises:
        MlxmathError: they are not; the rank, its host and every difference are named.
    """
    differing = [
        f"{name} is {_short(facts.get(name))} on rank {rank} ({hosts[rank]}) and {_short(found[0].get(name))} on rank "
        f"0 ({hosts[0]})"
        for rank, facts in enumerate(found)
        for name in {**found[0], **facts}
        if facts.get(name) != found[0].get(name)
    ]
    if differing:
        raise MlxmathError(f"the ranks do not do the same: {'; '.join(differing)}. Nothing was trained.")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _listen(launch: Launch) -> socket.socket:
    address = launch.addresses[0]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, launch.port), family=family, backlog=64)
    except OSError as error:
        raise MlxmathError(
            f"rank 0 cannot listen on {address} port {launch.port} ({error.strerror or error}); the hosts file must "
            "give it an address of its own machine, and another run there needs another --starting-port (nccl: "
            "--nccl-port)."
        ) from error


def _await_all(
    launch: Launch, server: socket.socket, connections: dict[int, socket.socket], said: dict[int, dict[str, Any]]
) -> None:
    """At rank 0: wait until all are there; strangers are turned away."""
    end, noticed = time.monotonic() + MEET_S, time.monotonic() + NOTICE_S
    while absent := [rank for rank in range(1, launch.size) if rank not in connections]:
        now, names = time.monotonic(), ", ".join(map(launch.called, absent))
        if now > end:
            raise MlxmathError(
                f"{names}: not there within {MEET_S:g} seconds. Every rank must be started, and reach rank 0 at "
                f"{launch.addresses[0]} port {launch.port} through any firewall; see what it says itself."
            )
        if now > noticed:
            say(f"waiting for {names}")
            noticed = end
        ready, _, _ = select.select([server, *connections.values()], [], [], _AGAIN_S)
        for rank, connection in connections.items():
            if connection in ready:  # it has nothing to say yet
                raise MlxmathError(f"rank {rank} ({said[rank]['host']}) has ended before its time")
        if server in ready:
            connection, _ = server.accept()
            found = _introduced(connection, launch, connections)
            if found is None:
                connection.close()
            else:
                connections[found["rank"]], said[found["rank"]] = connection, found


def _introduced(
    connection: socket.socket, launch: Launch, connections: Mapping[int, socket.socket]
) -> dict[str, Any] | None:
    """Who came; None: nobody whom this run waits for."""
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        found = _hear(connection, _ANSWER_S)
        known = hmac.compare_digest(str(found["run"]), launch.run)
        awaited = isinstance(found["rank"], int) and 0 < found["rank"] < launch.size
        same_form = isinstance(found["host"], str) and isinstance(found["versions"], dict)
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return found if known and awaited and same_form and found["rank"] not in connections else None


def _come(launch: Launch, own: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[int, socket.socket]]:
    """At any other rank: go to rank 0, and hear who is there."""
    end, first = time.monotonic() + MEET_S, launch.called(0)
    connection = _reach(launch, end)
    try:
        _tell({0: connection}, own)
        found = _hear(connection, end + _ANSWER_S - time.monotonic())
        if "refused" in found:
            raise MlxmathError(found["refused"])
        return tuple(found["hosts"]), {0: connection}
    except MlxmathError:
        connection.close()
        raise
    except TimeoutError:
        connection.close()
        raise MlxmathError(f"{first} says nothing for {MEET_S:g} seconds") from None
    except (OSError, EOFError):
        connection.close()
        raise MlxmathError(f"{first} has ended before its time") from None
    except (ValueError, LookupError, TypeError):
        connection.close()
        raise MlxmathError(
            f"what answers at {launch.addresses[0]} port {launch.port} is not rank 0 of this run; give mlx.launch "
            "another --starting-port (nccl: --nccl-port)."
        ) from None


def _reach(launch: Launch, end: float) -> socket.socket:
    while True:
        try:
            connection = socket.create_connection((launch.addresses[0], launch.port), timeout=_ANSWER_S)
        except OSError as error:
            if time.monotonic() > end:
                raise MlxmathError(
                    f"{launch.called(0)} is not reached at port {launch.port} within {MEET_S:g} seconds "
                    f"({error.strerror or error}). It must be started, and no firewall in between."
                ) from error
            time.sleep(_AGAIN_S)
        else:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection


def _hear(connection: socket.socket, limit_s: float) -> dict[str, Any]:
    """A line of JSON, and not a byte more: what follows is the lifeline's."""
    connection.settimeout(max(0.01, limit_s))
    with connection.makefile("rb", buffering=0) as file:
        line = file.readline(_MOST_BYTES)
    connection.settimeout(None)
    if not line:
        raise EOFError
    found = json.loads(line)
    if not isinstance(found, dict):
        raise TypeError
    return found


def _tell(connections: Mapping[int, socket.socket], message: Mapping[str, Any]) -> None:
    for connection in connections.values():
        with contextlib.suppress(OSError):  # noticed where it is read
            connection.sendall(json.dumps(message).encode() + b"\n")
