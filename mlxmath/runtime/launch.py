"""How the processes of a run find each other, before anything slow is loaded.

A launcher, usually `mlx.launch`, says how many they are and where. All come to rank 0; each says who it is, and once
all are there, rank 0 answers with the hosts of all, or with why they cannot work together. The connections stay, for
the heartbeat.
"""

import contextlib
import hashlib
import hmac
import json
import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from mlxmath.errors import MlxmathError
from mlxmath.runtime.console import say
from mlxmath.runtime.heartbeat import MOST_BYTES

MEET_S = 120.0
"""Seconds that a process waits for the others to start; where mlx.launch sees one fail, it ends them all sooner."""
NOTICE_S = 5.0
"""Seconds after which rank 0 says for whom it waits."""
_ANSWER_S = 5
_AGAIN_S = 0.1

_BETWEEN_PORTS = 1000


@dataclass(frozen=True)
class Launch:
    """What a launcher told this process."""

    backend: str
    rank: int
    size: int
    addresses: tuple[str, ...] = ()
    """Where ranks 0, 1 … can be reached, as far as the launcher says: all with ring, none with mpi, else rank 0."""
    port: int = 31323
    """At which rank 0 waits for the others; see `line_port`."""
    run: str = ""
    """The same in all processes of a run, another one in other runs."""

    @property
    def first_on_host(self) -> bool:
        """Whether no rank before this one is on its machine, as far as the launcher says."""
        return (
            self.rank not in range(len(self.addresses)) or self.addresses.index(self.addresses[self.rank]) == self.rank
        )

    def called(self, rank: int) -> str:
        """`rank 1 (10.0.0.2)`."""
        return f"rank {rank} ({self.addresses[rank]})" if rank < len(self.addresses) else f"rank {rank}"


def line_port(first: int) -> int:
    """The port of rank 0's lifeline, given the first one that MLX uses there; far from where MLX's others are."""
    return first - _BETWEEN_PORTS if first >= 1024 + _BETWEEN_PORTS else first + _BETWEEN_PORTS


def launched() -> Launch | None:
    """How this process was started together with others; None: it was not, or it is the only one.

    Raises:
        MlxmathError: the launcher's variables do not fit together.
    """
    env = os.environ
    for rank, size in (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE")):
        if rank in env and "MLX_RANK" not in env and int(env.get(size, "1")) > 1:
            return Launch("mpi", int(env[rank]), int(env[size]))
    if "MLX_RANK" not in env:
        return None
    rank_number = int(env["MLX_RANK"])
    if "MLX_HOSTFILE" in env:
        text = _read("MLX_HOSTFILE")
        if not text:
            return None  # what mlx.launch writes for a single process
        try:
            places = [address[0].rpartition(":") for address in json.loads(text)]
            found = _launch("ring", rank_number, len(places), [host for host, _, _ in places], places[0][2], text)
        except (ValueError, LookupError, TypeError, AttributeError):
            raise MlxmathError(f'MLX_HOSTFILE {env["MLX_HOSTFILE"]}: expected [["ADDRESS:PORT"], ...].') from None
    elif "MLX_IBV_DEVICES" in env and "MLX_JACCL_COORDINATOR" in env:
        text, coordinator = _read("MLX_IBV_DEVICES"), env["MLX_JACCL_COORDINATOR"]
        address, _, port = coordinator.rpartition(":")
        try:
            found = _launch("jaccl", rank_number, len(json.loads(text)), [address], port, coordinator + text)
        except (ValueError, TypeError):
            raise MlxmathError(
                f"MLX_IBV_DEVICES {env['MLX_IBV_DEVICES']}: expected a list of lists of devices, and "
                f"MLX_JACCL_COORDINATOR {coordinator}: expected ADDRESS:PORT."
            ) from None
    elif "NCCL_HOST_IP" in env and "MLX_WORLD_SIZE" in env:
        address, port, num_ranks = env["NCCL_HOST_IP"], env.get("NCCL_PORT", "12345"), env["MLX_WORLD_SIZE"]
        found = _launch("nccl", rank_number, int(num_ranks), [address], port, f"{address} {port} {num_ranks}")
    else:
        raise MlxmathError(
            f"MLX_RANK is {rank_number}, but nothing says who the other processes are (MLX_HOSTFILE for ring, "
            "MLX_IBV_DEVICES and MLX_JACCL_COORDINATOR for jaccl, NCCL_HOST_IP and MLX_WORLD_SIZE for nccl). Start "
            "them with mlx.launch, or one process without these variables."
        )
    if not 0 <= found.rank < found.size:
        raise MlxmathError(f"MLX_RANK is {found.rank}, but there are {found.size} processes, numbered from 0.")
    return found if found.size > 1 else None


def _launch(backend: str, rank: int, num_ranks: int, hosts: Sequence[str], port: str, run: str) -> Launch:
    """By mlx.launch. `port` is the first that MLX uses at rank 0, `run` what all ranks were told."""
    addresses, digest = tuple(host.strip("[]") for host in hosts), hashlib.sha256(run.encode()).hexdigest()
    return Launch(backend, rank, num_ranks, addresses, line_port(int(port)), digest)


def _read(variable: str) -> str:
    try:
        return Path(os.environ[variable]).read_text().strip()
    except OSError as error:
        raise MlxmathError(f"{variable}: {error}") from error


def meet(launch: Launch, host: str, versions: Mapping[str, str]) -> tuple[tuple[str, ...], dict[int, Connection]]:
    """Find the other processes, which are of the same versions.

    Returns:
        The host of each rank, and connections: rank 0's to every other, any other's to rank 0.

    Raises:
        MlxmathError: one does not come, ends meanwhile, or is of other versions; it is named.
    """
    own: dict[str, Any] = {"run": launch.run, "rank": launch.rank, "host": host, "versions": dict(versions)}
    if launch.rank:
        return _come(launch, own)
    said, connections = {0: own}, dict[int, Connection]()
    try:
        _await_all(launch, connections, said)
        by_rank = [said[rank] for rank in range(launch.size)]
        hosts = tuple(each["host"] for each in by_rank)
        compare([each["versions"] for each in by_rank], hosts)
    except MlxmathError as error:
        _tell(connections, {"refused": str(error)})
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


def _await_all(launch: Launch, connections: dict[int, Connection], said: dict[int, dict[str, Any]]) -> None:
    """At rank 0: wait until all are there; strangers are turned away."""
    address = launch.addresses[0]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        server = socket.create_server((address, launch.port), family=family, backlog=64)
    except OSError as error:
        raise MlxmathError(
            f"rank 0 cannot listen on {address} port {launch.port} ({error.strerror or error}); the hosts file must "
            "give it an address of its own machine, and another run there needs another --starting-port (nccl: "
            "--nccl-port)."
        ) from error
    end, notice = time.monotonic() + MEET_S, time.monotonic() + NOTICE_S
    with server:
        while absent := ", ".join(launch.called(rank) for rank in range(launch.size) if rank not in said):
            if time.monotonic() > end:
                raise MlxmathError(
                    f"{absent}: not there within {MEET_S:g} seconds. Every rank must be started, and reach rank 0 at "
                    f"{address} port {launch.port} through any firewall; see what it says itself."
                )
            if time.monotonic() > notice:
                say(f"waiting for {absent}")
                notice = end
            ready = wait([server, *connections.values()], _AGAIN_S)
            for rank, connection in connections.items():
                if connection in ready:  # it has nothing to say yet
                    raise MlxmathError(f"rank {rank} ({said[rank]['host']}) has ended before its time")
            if server in ready:
                connection = _connection(server.accept()[0])
                with contextlib.suppress(EOFError, OSError, ValueError, LookupError, TypeError):
                    found = json.loads(connection.recv_bytes(MOST_BYTES))
                    is_known = hmac.compare_digest(str(found["run"]).encode(), launch.run.encode())
                    is_awaited = found["rank"] not in said and found["rank"] in range(launch.size)
                    if is_known and is_awaited and [*map(type, (found["host"], found["versions"]))] == [str, dict]:
                        connections[found["rank"]], said[found["rank"]] = connection, found


def _come(launch: Launch, own: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[int, Connection]]:
    """At any other rank: go to rank 0, and hear who is there."""
    end, first, place = time.monotonic() + MEET_S, launch.called(0), (launch.addresses[0], launch.port)
    while True:
        try:
            found_socket = socket.create_connection(place, timeout=_ANSWER_S)
            break
        except OSError as error:
            if time.monotonic() > end:
                raise MlxmathError(
                    f"{first} is not reached at port {launch.port} within {MEET_S:g} seconds "
                    f"({error.strerror or error}). It must be started, and no firewall in between."
                ) from error
            time.sleep(_AGAIN_S)
    connection = _connection(found_socket)
    _tell({0: connection}, own)
    if not connection.poll(end + _ANSWER_S - time.monotonic()):
        raise MlxmathError(f"{first} says nothing for {MEET_S:g} seconds")
    try:
        found = json.loads(connection.recv_bytes(MOST_BYTES))
        if "refused" in found:
            raise MlxmathError(found["refused"])
        return tuple(found["hosts"]), {0: connection}
    except (EOFError, ConnectionError):
        raise MlxmathError(f"{first} has ended before its time") from None
    except (OSError, ValueError, LookupError, TypeError):
        raise MlxmathError(
            f"what answers at {place[0]} port {launch.port} is not rank 0 of this run; give mlx.launch another "
            "--starting-port (nccl: --nccl-port)."
        ) from None


def _connection(a_socket: socket.socket) -> Connection:
    """The socket, whose messages are taken whole; a half one is an error after `_ANSWER_S`."""
    a_socket.setblocking(True)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        a_socket.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", _ANSWER_S, 0))
    a_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connection(a_socket.detach())


def _tell(connections: Mapping[int, Connection], message: Mapping[str, Any]) -> None:
    for connection in connections.values():
        with contextlib.suppress(OSError):  # noticed where it is read
            connection.send_bytes(json.dumps(message).encode())
