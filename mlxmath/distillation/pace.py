"""When the next request may be made, for all threads together."""

import threading
import time
from collections.abc import Callable


class Pace:
    """Spaces requests evenly, and holds all of them while the endpoint asks for it.

    Args:
        per_minute: requests; None for no limit.
        clock: seconds, never going back.
    """

    def __init__(self, per_minute: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._interval = 60 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self, stop: threading.Event) -> bool:
        """Wait for this thread's turn; False if `stop` was set first."""
        while not stop.is_set():
            with self._lock:
                now = self._clock()
                if now >= self._next:
                    self._next = now + self._interval
                    return True
                delay = self._next - now
            stop.wait(delay)
        return False

    def hold(self, seconds: float) -> None:
        """Let nobody ask for so long."""
        with self._lock:
            self._next = max(self._next, self._clock() + seconds)
