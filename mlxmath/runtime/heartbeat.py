"""Who of a run's processes is alive, and what all of them agree on.

MLX's collectives wait for a process that does not come, at full load and for ever. So before each of them all processes
vote, a few bytes of TCP: whoever is early sleeps, one that dies or falls silent is noticed wherever the others are, and
a decision that depends on a clock or on a signal is the same everywhere.

Beside each process of a run ("rank") another small one runs, which this file is as a script: the watchdog. It holds the
connections (rank 0's to all others, any other's to rank 0), gives the signs of life, counts the votes, and ends a rank
that does not notice itself that another one is lost. Nothing that the rank does keeps it from that: loading libraries
or waiting for MLX's ring can keep all Python threads of a process from running, for minutes.
"""

import atexit
import contextlib
import functools
import json
import math
import operator
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, Pipe
from typing import Any

import psutil

BEAT_S = 0.5
"""Seconds between two signs of life."""
SILENCE_S = 6.0
"""Seconds without one after which a process counts as lost (stopped, hung, unplugged)."""
LATE_S = 30.0
"""Seconds after which rank 0 says for whom it waits."""
GRACE_S = 2.0
"""Seconds that a process has to end by itself once another one is lost."""
KILL_S = 4.0
"""Seconds after which its watchdog ends it."""
MOST_BYTES = 1 << 20
"""Of a message."""
END = "end"
"""The vote after which nobody is missed any more."""


class Heartbeat:
    """A rank's side: tells its watchdog what it votes, and hears what came of it.

    Once a rank is lost, `vote` returns None; where the process does something else meanwhile, it is ended after
    `GRACE_S` (files are written whole or not at all, so it can be at any moment).

    Args:
        rank: this process's number.
        names: what each rank is called.
        connections: by rank; they are the watchdog's from now on.
        say: prints a line.
        prefix: of an error that ends this process.
    """

    def __init__(
        self,
        rank: int,
        names: Sequence[str],
        connections: Mapping[int, Connection],
        say: Callable[[str], None],
        prefix: str = "",
    ) -> None:
        self._say, self._prefix = say, prefix
        self._changed = threading.Condition()
        self._decision: int | None = None
        self.lost: str | None = None
        self._told = self._closed = False
        self._pipe, theirs = Pipe()
        ends = {other: connection.fileno() for other, connection in {**connections, rank: theirs}.items()}
        task = {"parent": os.getpid(), "rank": rank, "names": names, "ends": ends, "prefix": prefix,
                "silence_s": SILENCE_S, "late_s": LATE_S, "kill_s": KILL_S}  # fmt: skip
        # -P: the modules beside this file are not found by their bare names; psutil is, wherever this process has it
        self._watchdog = subprocess.Popen(
            [sys.executable, "-P", __file__, json.dumps(task)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            pass_fds=[*ends.values()], start_new_session=True,
        )  # fmt: skip
        for connection in (theirs, *connections.values()):
            connection.close()
        self._thread = threading.Thread(target=self._listen, name="heartbeat", daemon=True)
        self._thread.start()

    def vote(self, name: str, flags: int = 0) -> int | None:
        """Wait for all ranks to vote on `name`; the bits that any of them set. None: a rank is lost, see `lost`."""
        self._tell(vote=name, flags=flags)
        with self._changed:
            self._changed.wait_for(lambda: self._decision is not None or self.lost is not None)
            self._told = self._decision is None
            decision, self._decision = self._decision, None
            return decision

    def verdict(self) -> str | None:
        """Which rank is lost; waits as long as it takes to notice. None: none is."""
        with self._changed:
            self._changed.wait_for(lambda: self.lost is not None, SILENCE_S + 2 * BEAT_S)
            self._told = self.lost is not None
            return self.lost

    def limit(self, seconds: float = math.inf, message: str = "") -> None:
        """End this process with `message` unless there is another limit, or none any more, within so many seconds."""
        self._tell(limit=message, seconds=seconds)

    def work(self) -> None:
        """From now on this process is missed if its Python threads do not run; until now that is preparation."""
        self._tell(work=True)

    def close(self) -> None:
        """Leave. Before the vote on `END` the others take it for a loss."""
        self._closed = True
        self._tell(leave=True)
        if self.lost:  # this process ends, and its watchdog soon after it has seen to the others
            return
        try:
            self._watchdog.wait(2 * GRACE_S)
        except subprocess.TimeoutExpired:
            self._watchdog.kill()
            self._watchdog.wait()
        self._thread.join()
        self._pipe.close()

    def _tell(self, **message: Any) -> None:
        with self._changed:
            _send(self._pipe, message)

    def _listen(self) -> None:
        while True:
            try:
                if not self._pipe.poll(BEAT_S):
                    self._tell()  # a sign of life
                    continue
                message = json.loads(self._pipe.recv_bytes())
            except (EOFError, OSError):
                if self._closed or self.lost:
                    return
                message = {"lost": "the watchdog of this process has ended before its time"}
            if "late" in message:
                self._say(message["late"])
            if "lost" in message and not self._closed:
                atexit.register(os._exit, 1)  # taking MLX apart may last, or wait for the others
                threading.Thread(target=self._give_up, daemon=True).start()
            with self._changed:
                self._decision = message.get("decision", self._decision)
                self.lost = message.get("lost", self.lost)
                self._changed.notify_all()

    def _give_up(self) -> None:
        time.sleep(GRACE_S)
        if not self._told:
            _print_error(self._prefix, str(self.lost))
        os._exit(1)


class Watchdog:
    """The other process; see the top of the module.

    Args:
        task: what `Heartbeat` gives it.
    """

    def __init__(self, task: Mapping[str, Any]) -> None:
        self._task, self._own, self._parent, self._names = task, task["rank"], task["parent"], task["names"]
        self._ends = {int(rank): Connection(end) for rank, end in task["ends"].items()}
        """By rank, this process's own among them."""
        self._selector = selectors.DefaultSelector()
        for rank, end in self._ends.items():
            self._selector.register(end, selectors.EVENT_READ, rank)
        self._heard: dict[int, float] = {}
        self._votes: dict[int, tuple[str, int]] = {}
        self._voting = ""
        self._late_s, self._kill_s = math.inf, math.inf
        """When rank 0 says for whom it waits, and when this process's rank is killed."""
        self._reason = ""
        self._lost = self._working = self._ended = self._left = False

    def run(self) -> None:
        """Watch until the rank ends, or says that it leaves; once another one is lost, until it has really ended."""
        self._heard = dict.fromkeys(self._ends, time.monotonic())
        beaten_s = turned_s = time.monotonic()
        while (self._lost or not self._left) and os.getppid() == self._parent:
            ready = self._selector.select(BEAT_S / 2)
            now = time.monotonic()
            if now - turned_s > 4 * BEAT_S:  # this process itself was stopped: listen first
                self._heard = dict.fromkeys(self._ends, now)
            turned_s = now
            self._hear(ready)
            for rank, heard_s in self._heard.items():
                if rank != self._own and now - heard_s > self._task["silence_s"]:
                    self._lose(f"{self._names[rank]} has given no sign of life for {self._task['silence_s']:g} seconds")
            if now > self._late_s:
                self._late_s = math.inf
                late = ", ".join(self._names[rank] for rank in self._ends if rank not in self._votes)
                _send(self._ends[0], {"late": f"still waiting for {late} ({self._voting})"})
            if now > self._kill_s:
                _print_error(self._task["prefix"], self._reason)
                os.kill(self._parent, signal.SIGKILL)
                return
            if now - beaten_s >= BEAT_S / 2 and (
                self._heard.get(self._own, 0) >= now or not (self._working or _is_stopped(self._parent))
            ):
                beaten_s = now
                self._tell_others({})
        end_s = time.monotonic() + GRACE_S
        while self._own == 0 and (self._ended or self._lost) and self._ends.keys() - {0} and time.monotonic() < end_s:
            self._hear(self._selector.select(BEAT_S))  # closing what is unread would take back what was said last

    def _hear(self, ready: Sequence[tuple[selectors.SelectorKey, int]]) -> None:
        """Take a message of each rank that has one, this process's own among them; any is a sign of life."""
        for key, _ in ready:
            rank: int = key.data
            self._heard[rank] = time.monotonic()
            try:
                self._take(rank, json.loads(self._ends[rank].recv_bytes(MOST_BYTES)))
            except (EOFError, OSError, ValueError, LookupError, TypeError):
                self._selector.unregister(key.fileobj)
                del self._ends[rank], self._heard[rank]
                self._left |= rank == self._own
                self._lose(f"{self._names[rank]} has ended before its time")

    def _take(self, rank: int, message: Mapping[str, Any]) -> None:
        if "vote" in message:
            self._count(rank, message)
        elif "decision" in message:
            self._decide(message)
        elif "lost" in message:
            self._lose(message["lost"])
        elif "limit" in message and not self._lost:
            self._reason, self._kill_s = message["limit"], time.monotonic() + message["seconds"]
        self._working |= "work" in message
        self._left |= "leave" in message

    def _count(self, rank: int, vote: Mapping[str, Any]) -> None:
        """Take a vote; at rank 0, with the last one, the decision."""
        if rank == self._own:
            self._voting = vote["vote"]
        if self._own:
            if 0 in self._ends:
                _send(self._ends[0], vote)
            return
        if rank == 0:
            self._late_s = time.monotonic() + self._task["late_s"]
        self._votes[rank] = (vote["vote"], vote["flags"])
        if self._votes.keys() != self._ends.keys() or self._lost:
            return
        names, flags = zip(*self._votes.values(), strict=True)
        if len(set(names)) > 1:
            apart = ", ".join(f"rank {rank} at {voted!r}" for rank, (voted, _) in sorted(self._votes.items()))
            self._lose(f"the ranks are out of step: {apart}")
            return
        self._votes.clear()
        decision = {"decision": functools.reduce(operator.or_, flags)}
        self._tell_others(decision)
        self._decide(decision)

    def _decide(self, decision: Mapping[str, Any]) -> None:
        self._late_s = math.inf
        self._ended |= self._voting == END
        if self._own in self._ends:
            _send(self._ends[self._own], decision)

    def _lose(self, reason: str) -> None:
        if self._ended or self._lost:
            return
        self._lost, self._reason, self._kill_s = True, reason, time.monotonic() + self._task["kill_s"]
        if self._own in self._ends:
            _send(self._ends[self._own], {"lost": reason})
        if self._own == 0:
            self._tell_others({"lost": reason})

    def _tell_others(self, message: Mapping[str, Any]) -> None:
        for rank, end in self._ends.items():
            if rank != self._own:
                _send(end, message)


def _send(connection: Connection, message: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):  # what is broken is noticed where it is read
        connection.send_bytes(json.dumps(message).encode())


def _is_stopped(process: int) -> bool:
    """Whether a process was stopped by a signal."""
    try:
        return psutil.Process(process).status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return False


def _print_error(prefix: str, text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(f"{prefix}error: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    Watchdog(json.loads(sys.argv[1])).run()
