"""Two ways for a run to end early: its time is up, or somebody asks it to stop."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from mlxmath.runtime.console import say


class Deadline:
    """A time limit that leaves room for one more step, the last validation and the final save.

    Args:
        limit_s: seconds from now.
        clock: monotonic seconds.
    """

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self.limit_s = limit_s
        self._step_s = 0.0
        self.validation_s = 0.0
        """Seconds that the last validation takes, with some to spare."""
        self._save_s = min(1.0, 0.1 * limit_s)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    @property
    def left_s(self) -> float:
        """Seconds to the limit."""
        return self.limit_s - self.elapsed_s

    def note_step(self, seconds: float) -> None:
        """Learn how long steps take (the longest counts, fading slowly, since lengths differ)."""
        self._step_s = max(seconds, 0.95 * self._step_s)

    def note_save(self, seconds: float) -> None:
        """Learn how long saving takes."""
        self._save_s = max(self._save_s, 2 * seconds)

    def note_validation(self, seconds: float) -> None:
        """Learn how long a validation takes; the run ends with one."""
        self.validation_s = 1.25 * seconds

    @property
    def room_s(self) -> float:
        """Seconds until the last validation and the final save have to begin."""
        return self.left_s - self.validation_s - self._save_s

    def reached(self) -> bool:
        """Whether another step, the last validation and the final save would no longer fit."""
        return self.room_s < self._step_s

    def must_save(self) -> bool:
        """Whether there is time for the final save only."""
        return self.left_s < self._save_s


class StopRequest:
    """Whether a signal asked the run to stop, and which."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Catch the first SIGINT, SIGTERM or SIGHUP; a second one ends the process at once, even inside a computation.

        SIGHUP, when the terminal goes (which is how ssh passes on the Ctrl-C to `mlx.launch`), unless it is ignored, as
        under nohup; what the run would write there goes nowhere then.
        """
        if threading.current_thread() is not threading.main_thread():  # Python gives signals to that one alone
            yield self
            return
        names = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            names.append(signal.SIGHUP)
        terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

        def handle(number: int, _: FrameType | None) -> None:
            self.signal = number
            for name in names:
                signal.signal(name, signal.SIG_DFL)
            if number == signal.SIGHUP:
                for descriptor in terminals:
                    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
            say(f"{signal.Signals(number).name}: saving and stopping (once more to exit at once)")

        before = {name: signal.signal(name, handle) for name in names}
        try:
            yield self
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)
