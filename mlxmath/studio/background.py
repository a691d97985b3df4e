"""Questions to a process that answers one after the other: what is asked anew takes the place of what still waits."""

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from mlxmath.runtime.bounded import OverrunError, Pool
from mlxmath.studio import worker

_MOST_KEPT = 200
_LASTING_S = {"error": 15.0, "unprepared": 2.0}
"""For so long such an answer is not asked for again: the network, or what a command makes, may be there by then."""
_NO_ANSWER = (
    "This could not be looked at here: it takes too long, or too much memory. The command line does it without these "
    "bounds, and says more."
)

Answer = Mapping[str, Any]


class Asker:
    """Answers of a process, kept by question.

    Args:
        pool: gives the process.
    """

    def __init__(self, pool: Callable[[], Pool]) -> None:
        self._pool = pool
        self._changed = threading.Condition()
        self._kept: OrderedDict[str, tuple[float, Answer]] = OrderedDict()
        self._running = ""
        self._next: tuple[str, Any] | None = None
        self._thread: threading.Thread | None = None

    def ask(self, request: Mapping[str, Any], wait_s: float) -> Answer | None:
        """The answer; None if it is not there within `wait_s`: ask again then."""
        key = json.dumps(request, sort_keys=True)
        with self._changed:
            if (answer := self._answer(key)) is not None:
                return answer
            if key != self._running:
                self._next = key, request
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="studio's questions", daemon=True)
                self._thread.start()
            self._changed.wait_for(lambda: self._answer(key) is not None, wait_s)
            return self._answer(key)

    def _answer(self, key: str) -> Answer | None:
        made, answer = self._kept.get(key, (0.0, None))
        lasting_s = next((seconds for name, seconds in _LASTING_S.items() if name in (answer or ())), None)
        return None if lasting_s is not None and time.monotonic() - made > lasting_s else answer

    def _work(self) -> None:
        """Ask until nothing waits."""
        while True:
            with self._changed:
                if self._next is None:
                    self._thread, self._running = None, ""
                    return
                (self._running, request), self._next = self._next, None
            try:
                answer = self._pool().reply(request)
            except (OverrunError, OSError):  # the latter: no process can be started
                answer = {"error": _NO_ANSWER}
            with self._changed:
                self._kept[self._running] = time.monotonic(), answer
                self._kept.move_to_end(self._running)
                while len(self._kept) > _MOST_KEPT:
                    self._kept.popitem(last=False)
                self._running = ""
                self._changed.notify_all()


@cache
def planner() -> Asker:
    """Makes plans."""
    return Asker(worker.plans)


@cache
def reader() -> Asker:
    """Reads data."""
    return Asker(worker.readers)
