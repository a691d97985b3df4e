"""The line between each process of a run and the first one: who is alive, and what all of them agree on.

MLX's collectives wait for a process that does not come, at full load and for ever. So before each of them all processes
vote over this line, a few bytes of TCP: whoever is early sleeps, one that dies or falls silent is noticed wherever the
others are, and a decision that depends on a clock or on a signal is the same everywhere.
"""

import contextlib
import hmac
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from mlxmath.console import prefixed
from mlxmath.errors import MlxmathError

BEAT_S = 0.5
"""Seconds between two signs of life."""
SILENCE_S = 6.0
"""Seconds without one after which a process counts as lost (stopped, hung, unplugged)."""
PREPARING_S = 60.0
"""The same before work begins: loading a library can keep a process from giving signs of life."""
GRACE_S = 2.0
"""Seconds that a process has to end by itself once another one is lost."""
JOIN_S = 60.0
_MOST_BYTES = 1 << 16
END = "end"
"""The vote after which nobody is missed any more."""


class Lifeline:
    """One process's end of the line; rank 0 has one to every other, each other one to rank 0.

    Each message is a line of JSON; an empty line is a sign of life. A thread sends and listens. Once a process is lost,
    `vote` raises; where the process does something else meanwhile, it is ended after `GRACE_S` (files are written
    whole or not at all, so it can be at any moment).

    Args:
        rank: this process's number.
        hosts: of all ranks, for messages.
        connections: by rank.
    """

    def __init__(self, rank: int, hosts: Sequence[str], connections: dict[int, socket.socket]) -> None:
        self._rank, self._hosts, self._connections = rank, hosts, connections
        self._changed = threading.Condition()
        self._votes: dict[int, tuple[str, int]] = {}
        self._decision: int | None = None
        self._lost: str | None = None
        self._told = self._ended = False
        self._waiting: str | None = None
        self.silence_s = PREPARING_S
        """Seconds without a sign of life after which a process counts as lost."""
        selector = selectors.DefaultSelector()
        for other, connection in connections.items():
            selector.register(connection, selectors.EVENT_READ, other)
        threading.Thread(target=self._listen, args=(selector,), name="lifeline", daemon=True).start()

    def vote(self, name: str, flags: int = 0) -> int:
        """Wait for all ranks to vote on `name`; the bits that any of them set.

        Raises:
            MlxmathError: a rank is lost; it is named.
        """
        with self._changed:
            self._waiting = name
            if self._rank == 0:
                self._count(0, name, flags)
            else:
                self._send(0, {"vote": name, "flags": flags})
            self._changed.wait_for(lambda: self._decision is not None or self._lost is not None)
            if self._decision is None:
                self._told = True
                raise MlxmathError(str(self._lost))
            decision, self._decision, self._waiting = self._decision, None, None
            return decision

    def verdict(self) -> str | None:
        """Which rank is lost; waits as long as it takes to notice. None: none is."""
        with self._changed:
            self._changed.wait_for(lambda: self._lost is not None, self.silence_s + 2 * BEAT_S)
            self._told = self._lost is not None
            return self._lost

    def close(self) -> None:
        """Leave. Before the vote on `END` the others take it for a loss."""
        with self._changed:
            self._ended = True
        for connection in self._connections.values():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _count(self, rank: int, name: str, flags: int) -> None:
        """At rank 0: take a vote; with the last one the decision."""
        self._votes[rank] = (name, flags)
        if len(self._votes) <= len(self._connections):
            return
        names = {voted for voted, _ in self._votes.values()}
        if len(names) > 1:
            apart = ", ".join(f"rank {rank} at {voted!r}" for rank, (voted, _) in sorted(self._votes.items()))
            self._lose(f"the ranks are out of step: {apart}")
            return
        decision = 0
        for _, bits in self._votes.values():
            decision |= bits
        self._votes.clear()
        for other in self._connections:
            self._send(other, {"decision": decision})
        self._decide(decision)

    def _decide(self, decision: int) -> None:
        self._ended = self._ended or self._waiting == END
        self._decision = decision
        self._changed.notify_all()

    def _lose(self, reason: str) -> None:
        if self._ended or self._lost is not None:
            return
        self._lost = reason
        if self._rank == 0:
            for other in self._connections:
                self._send(other, {"lost": reason})
        self._changed.notify_all()
        threading.Thread(target=self._give_up, daemon=True).start()

    def _give_up(self) -> None:
        time.sleep(GRACE_S)
        if not self._told:
            print(prefixed(f"error: {self._lost}"), file=sys.stderr, flush=True)
        os._exit(1)

    def _send(self, rank: int, message: dict[str, Any] | None) -> None:
        line = b"\n" if message is None else json.dumps(message).encode() + b"\n"
        with contextlib.suppress(OSError):  # a connection that broke is noticed where it is read
            self._connections[rank].sendall(line)

    def _listen(self, selector: selectors.BaseSelector) -> None:
        with selector:
            heard = dict.fromkeys(self._connections, time.monotonic())
            rests = dict.fromkeys(self._connections, b"")
            sent = turned = 0.0
            while True:
                ready = selector.select(BEAT_S)
                with self._changed:
                    if self._ended:
                        return
                    now = time.monotonic()
                    if now - turned > 4 * BEAT_S:  # this process itself was stopped: listen first
                        heard = dict.fromkeys(heard, now)
                    turned = now
                    for key, _ in ready:
                        other: int = key.data
                        heard[other] = now
                        if not self._read(other, rests):
                            selector.unregister(key.fileobj)
                            del heard[other]
                            self._lose(f"{self._called(other)} has ended before its time")
                    for rank, since in heard.items():
                        if now - since > self.silence_s:
                            self._lose(f"{self._called(rank)} has given no sign of life for {self.silence_s:g} seconds")
                    if now - sent >= BEAT_S:
                        sent = now
                        for rank in heard:
                            self._send(rank, None)

    def _read(self, rank: int, rests: dict[int, bytes]) -> bool:
        """Take what has come; whether the connection still stands."""
        try:
            data = self._connections[rank].recv(4096)
        except OSError:
            return False
        *lines, rests[rank] = (rests[rank] + data).split(b"\n")
        if not data or len(rests[rank]) > _MOST_BYTES:
            return False
        for line in filter(None, lines):
            message = json.loads(line)
            if "vote" in message:
                self._count(rank, message["vote"], message["flags"])
            elif "decision" in message:
                self._decide(message["decision"])
            elif "lost" in message:
                self._lose(message["lost"])
        return True

    def _called(self, rank: int) -> str:
        return f"rank {rank} ({self._hosts[rank]})"


def listen(address: str) -> socket.socket:
    """Rank 0's socket, on any free port of `address`."""
    try:
        return socket.create_server((address, 0), backlog=64)
    except OSError as error:
        raise MlxmathError(
            f"rank 0 cannot listen on {address} ({error}); the hosts file must give it an address of its own machine."
        ) from error


def accept(server: socket.socket, hosts: Sequence[str], token: str) -> dict[int, socket.socket]:
    """The connections of all other ranks; strangers, who do not know the token, are turned away.

    Raises:
        MlxmathError: one does not come; it is named.
    """
    found: dict[int, socket.socket] = {}
    end = time.monotonic() + JOIN_S
    while len(found) < len(hosts) - 1:
        server.settimeout(max(0.01, end - time.monotonic()))
        try:
            connection, _ = server.accept()
        except TimeoutError:
            absent = next(rank for rank in range(1, len(hosts)) if rank not in found)
            host, port = server.getsockname()[:2]
            raise MlxmathError(
                f"rank {absent} ({hosts[absent]}) does not reach rank 0 at {host} port {port}; let it through any "
                "firewall between the two."
            ) from None
        try:
            connection.settimeout(5)
            with connection.makefile("rb", buffering=0) as file:  # what follows the line is the lifeline's
                said, _, number = file.readline(200).decode().strip().partition(" ")
            rank = int(number)
            welcome = hmac.compare_digest(said, token) and 0 < rank < len(hosts) and rank not in found
        except (OSError, ValueError):
            welcome = False
        if welcome:
            connection.settimeout(None)
            found[rank] = _prompt(connection)
        else:
            connection.close()
    return found


def connect(address: str, port: int, token: str, rank: int) -> socket.socket:
    """This rank's connection to rank 0.

    Raises:
        MlxmathError: there is none.
    """
    try:
        connection = socket.create_connection((address, port), timeout=JOIN_S / 2)
        connection.sendall(f"{token} {rank}\n".encode())
    except OSError as error:
        raise MlxmathError(f"rank 0 is not reached at {address} port {port}: {error}") from error
    connection.settimeout(None)
    return _prompt(connection)


def _prompt(connection: socket.socket) -> socket.socket:
    """Small messages leave at once."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection
