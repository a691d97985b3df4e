"""A pool of worker processes for algebra on what a model wrote: each item has a time limit, a hung or crashed worker is
killed and replaced. Processes are started when first needed and ended with this one.

They are started by command line, not by `multiprocessing`: nothing is forked under Metal or CUDA, and the caller's main
module is not imported again.
"""

import atexit
import contextlib
import json
import os
import queue
import re
import socket
import subprocess
import sys
import threading
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

TIME_LIMIT_S = 5.0
"""Processor time for one item; the verdict does not depend on how busy the machine is."""
_WALL_FACTOR = 6
_START_LIMIT_S = 60.0
_MAX_WORKERS = 8
_MAX_CHARACTERS = 1000
_MAX_DEPTH = 24
_NOT_TRIED = re.compile(r"\d{200}|\x00")
_TOKEN = re.compile(r"[\d.]+!*|\\[A-Za-z]+|[A-Za-z]!*|\S")
_TOWER = 3
"""So many powers on top of each other are a tower."""


def refuses(text: str) -> bool:
    """Whether an answer is beyond what algebra is tried on: too long, too deeply nested, a tower of powers."""
    depths = accumulate((sign in "({[") - (sign in ")}]") for sign in text)
    return (
        len(text) > _MAX_CHARACTERS
        or bool(_NOT_TRIED.search(text))
        or _num_powers(text) >= _TOWER
        or max(depths, default=0) > _MAX_DEPTH
    )


def _num_powers(text: str) -> int:
    """How many powers stand on top of each other: 3 in `9^{9^{9^9}}` and in `9^9^9^9`, 1 in `x^3 + x^2 + 5^4`."""
    enclosing: list[tuple[int, int]] = []
    level = chain = highest = 0
    before = ""
    for token in _TOKEN.findall(text):
        if token in "({[":
            enclosing.append((level, chain if before == "^" else 0))
            level, chain = level + enclosing[-1][1], 0
        elif token in ")}]":
            level, chain = enclosing.pop() if enclosing else (0, 0)
        elif token == "^":
            chain += 1
            highest = max(highest, level + chain)
        elif before != "^":
            chain = 0
        before = token
    return highest


class _Failure(Exception):  # noqa: N818
    """The worker gave no reply in time, or died."""


class _Worker:
    """One process, one request at a time, over a socket."""

    def __init__(self, limit_s: float) -> None:
        paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "mlxmath.grading.symbolic", str(limit_s)],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0"},
            )
        self._lines = self._socket.makefile("rw", encoding="utf-8")
        self._reply(_START_LIMIT_S)

    def ask(self, answer: str, gold: str, limit_s: float) -> bool | None:
        return self._reply(limit_s, json.dumps([answer, gold]) + "\n")

    def _reply(self, limit_s: float, request: str = "") -> bool | None:
        """What is answered to a request, or, to none, at the start."""
        self._socket.settimeout(limit_s)
        try:
            self._lines.write(request)
            self._lines.flush()
            return json.loads(self._lines.readline())
        except (OSError, ValueError) as error:  # no time left, or the other end closed
            raise _Failure from error

    def end(self) -> None:
        self._process.kill()
        with contextlib.suppress(OSError):  # what is left in its buffer has no reader
            self._lines.close()
        self._socket.close()
        self._process.wait()


class Pool:
    """Up to `size` workers, shared by all threads."""

    def __init__(self, size: int, limit_s: float = TIME_LIMIT_S) -> None:
        self.size = size
        self.num_started = 0
        self._limit_s = limit_s
        self._slots: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(size):
            self._slots.put(None)
        self._known: dict[tuple[str, str], bool] = {}

    def ask(self, answer: str, gold: str) -> bool | None:
        """Whether math_verify takes the answers for the same; None after a time-out or a crash."""
        if refuses(answer) or refuses(gold):
            return False
        if (known := self._known.get((answer, gold))) is not None:
            return known
        worker = self._slots.get()
        try:
            if worker is None:
                self.num_started += 1
                worker = _Worker(self._limit_s)
            verdict = worker.ask(answer, gold, _WALL_FACTOR * self._limit_s)
        except BaseException as error:
            # Interrupted or not: a reply may still be under way, so this worker can serve no other question.
            if worker:
                worker.end()
                worker = None
            if isinstance(error, _Failure):
                return None
            raise
        finally:
            self._slots.put(worker)
        if verdict is not None:
            if len(self._known) > 50_000:
                self._known.clear()
            self._known[answer, gold] = verdict
        return verdict

    def close(self) -> None:
        """End all idle workers; the pool can be used again."""
        for worker in [self._slots.get_nowait() for _ in range(self._slots.qsize())]:
            if worker:
                worker.end()
            self._slots.put(None)


_lock = threading.Lock()


def pool() -> Pool:
    """This process's pool."""
    with _lock:
        return _pool_of(os.getpid())


@lru_cache(maxsize=1)
def _pool_of(_: int) -> Pool:
    """One pool a process: after a fork the child has its own workers and leaves the parent's alone."""
    created = Pool(max(1, min(_MAX_WORKERS, os.cpu_count() or 1)))
    atexit.register(created.close)
    return created
