"""Work on what others wrote, in processes with bounds on time and memory: a hung, crashed or greedy one is killed and
replaced. They are started when first needed and end with this one.

They are started by command line, not by `multiprocessing`: nothing is forked under Metal or CUDA, and the caller's main
module is not imported again.
"""

import atexit
import contextlib
import json
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

_WALL_FACTOR = 6
"""The bound is on processor time, so that nothing depends on how busy the machine is; this ends what sleeps."""
_START_LIMIT_S = 60.0
_LOOK_S = 0.1

P = TypeVar("P", bound="Pool")


class OverrunError(Exception):
    """There was no reply within the bounds."""


class _Worker:
    """One process, one request at a time, over a socket."""

    def __init__(self, module: str, limit_s: float, memory_bytes: int, resident_bytes: int) -> None:
        paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._resident_bytes = resident_bytes
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(limit_s), str(memory_bytes)],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0"},
            )
        self._lines = self._socket.makefile("rw", encoding="utf-8")
        self._reply(_START_LIMIT_S)

    def ask(self, request: Any, limit_s: float) -> Any:
        return self._reply(limit_s, json.dumps(request) + "\n")

    def _reply(self, limit_s: float, request: str = "") -> Any:
        """What is answered to a request, or, to none, at the start."""
        self._socket.settimeout(limit_s)
        try:
            self._lines.write(request)
            self._lines.flush()
            self._wait(time.monotonic() + limit_s)
            self._socket.settimeout(limit_s)
            return json.loads(self._lines.readline())
        except (OSError, ValueError) as error:  # no time left, or the other end closed
            raise OverrunError from error

    def _wait(self, end_s: float) -> None:
        """Until something comes; looks at the memory meanwhile, which not every system bounds.

        Raises:
            TimeoutError: there is no time or memory left.
        """
        self._socket.settimeout(_LOOK_S)
        while True:
            with contextlib.suppress(TimeoutError):
                self._socket.recv(1, socket.MSG_PEEK)
                return
            import psutil

            with contextlib.suppress(psutil.Error):
                if psutil.Process(self._process.pid).memory_info().rss > self._resident_bytes:
                    raise TimeoutError
            if time.monotonic() > end_s:
                raise TimeoutError

    def end(self) -> None:
        self._process.kill()
        with contextlib.suppress(OSError):  # what is left in its buffer has no reader
            self._lines.close()
        self._socket.close()
        self._process.wait()


class Pool:
    """Up to `size` workers, shared by all threads.

    Args:
        module: that a worker runs; it calls `serve`.
        size: most workers.
        limit_s: seconds of processor time for a request.
        memory_bytes: of a worker, with what it maps.
        resident_bytes: of it, what may be in memory (None: the same).
    """

    def __init__(
        self, module: str, size: int, limit_s: float, memory_bytes: int, resident_bytes: int | None = None
    ) -> None:
        self.size = size
        self.num_started = 0
        self._made_of = module, limit_s, memory_bytes, resident_bytes or memory_bytes
        self._slots: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(size):
            self._slots.put(None)

    def reply(self, request: Any) -> Any:
        """A worker's reply; both are JSON.

        Raises:
            OverrunError: there was none within the bounds.
        """
        worker = self._slots.get()
        try:
            if worker is None:
                self.num_started += 1
                worker = _Worker(*self._made_of)
            return worker.ask(request, _WALL_FACTOR * self._made_of[1])
        except BaseException:
            # Interrupted or not: a reply may still be under way, so this worker can serve no other request.
            if worker:
                worker.end()
                worker = None
            raise
        finally:
            self._slots.put(worker)

    def close(self) -> None:
        """End all idle workers; the pool can be used again."""
        for worker in [self._slots.get_nowait() for _ in range(self._slots.qsize())]:
            if worker:
                worker.end()
            self._slots.put(None)


_lock = threading.Lock()


def own(make: Callable[[], P]) -> P:
    """This process's pool, made by `make` when first asked for: a forked child leaves its parent's alone."""
    with _lock:
        return _own(make, os.getpid())


@lru_cache(maxsize=8)
def _own(make: Callable[[], P], _: int) -> P:
    created = make()
    atexit.register(created.close)
    return created


def _alarm(seconds: float) -> None:
    """End this process after so much processor time, whatever it is doing; 0 takes that back."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)


def serve(work: Callable[[Any], Any], first: Any) -> None:
    """What a worker does: answers lines of JSON with `work` until the input ends, within the bounds of its arguments.

    Nothing but replies reaches the original standard output; the first says that the worker is ready.

    Args:
        work: makes a reply.
        first: a request that imports all that is needed; it has all the time it wants.
    """
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable()
    limit_s, memory_bytes = float(sys.argv[1]), int(sys.argv[2])
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))
    given_s = 0.0
    for line in chain([json.dumps(first)], sys.stdin):
        _alarm(given_s)
        reply = json.dumps(work(json.loads(line)))
        _alarm(0)
        given_s = limit_s
        print(reply, file=replies, flush=True)
