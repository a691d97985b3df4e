"""The line between each process of a run and the first one: who is alive, and what all of them agree on.

MLX's collectives wait for a process that does not come, at full load and for ever. So before each of them all processes
vote over this line, a few bytes of TCP: whoever is early sleeps, one that dies or falls silent is noticed wherever the
others are, and a decision that depends on a clock or on a signal is the same everywhere.
"""

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from mlxmath.errors import MlxmathError
from mlxmath.runtime.console import prefixed, say

BEAT_S = 0.5
"""Seconds between two signs of life."""
SILENCE_S = 6.0
"""Seconds without one after which a process counts as lost (stopped, hung, unplugged)."""
LATE_S = 30.0
"""Seconds after which rank 0 says for whom it waits."""
GRACE_S = 2.0
"""Seconds that a process has to end by itself once another one is lost."""
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
            if not self._changed.wait_for(self._settled, LATE_S):
                if late := [self._called(rank) for rank in self._connections if rank not in self._votes]:
                    say(f"still waiting for {', '.join(late)} ({name})")
                self._changed.wait_for(self._settled)
            if self._decision is None:
                self._told = True
                raise MlxmathError(str(self._lost))
            decision, self._decision, self._waiting = self._decision, None, None
            return decision

    def _settled(self) -> bool:
        return self._decision is not None or self._lost is not None

    def verdict(self) -> str | None:
        """Which rank is lost; waits as long as it takes to notice. None: none is."""
        with self._changed:
            self._changed.wait_for(lambda: self._lost is not None, SILENCE_S + 2 * BEAT_S)
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
                        if now - since > SILENCE_S:
                            self._lose(f"{self._called(rank)} has given no sign of life for {SILENCE_S:g} seconds")
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
