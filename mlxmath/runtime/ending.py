"""SIGTERM and SIGHUP as an end like Ctrl-C's: what is half-written is removed, and the reason is said."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(SystemExit):
    """Somebody asked this process to end, or its terminal has gone."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Have the first SIGTERM or SIGHUP raise `Terminated` in the main thread; a second one ends the process at once.

    A signal that is ignored, as SIGHUP is under nohup, stays so.
    """
    if threading.current_thread() is not threading.main_thread():  # Python gives signals to that one alone
        yield
        return

    def handle(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Terminated(number)

    listened = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]
    for number in listened:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in listened:
            signal.signal(number, signal.SIG_DFL)
