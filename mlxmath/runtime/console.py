"""What a run tells people, on stderr so that stdout carries only results: lines, and how far something is.

What is said goes to Python's `logging`, under the name "mlxmath". A command prints it (`shown`); a program that uses
mlxmath as a library sees nothing unless it asks `logging` for it.
"""

import contextlib
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

import click

from mlxmath.errors import shortened

_log = logging.getLogger("mlxmath")
_log.addHandler(logging.NullHandler())
EVERY_S = 10.0
"""Seconds between two lines about how far something is, in a log."""


class _Stderr(logging.Handler):
    """Prints on standard error, above a progress bar if one is shown."""

    prefix = ""
    num_uses = 0

    def emit(self, record: logging.LogRecord) -> None:
        text = shortened(record.getMessage())
        if record.levelno >= logging.ERROR:
            text = prefixed(f"error: {text}")
        elif self.prefix:
            return
        elif record.levelno >= logging.WARNING:
            text = click.style("warning: ", fg="yellow") + text if sys.stderr.isatty() else f"warning: {text}"
        # The log's reader may go, its disk be full, its terminal be closed; a signal may come in the middle of a line:
        # the run counts more.
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            if "tqdm" in sys.modules:
                from tqdm import tqdm

                tqdm.write(text, file=sys.stderr)
            else:
                click.echo(text, err=True)


_stderr = _Stderr()
_lock = threading.Lock()


@contextmanager
def shown() -> Iterator[None]:
    """Print what is said meanwhile, by any thread."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the process was started without it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123
    with _lock:
        _stderr.num_uses += 1
        _log.addHandler(_stderr)
        _log.setLevel(logging.INFO)
        _log.propagate = False
    try:
        yield
    finally:
        with _lock:
            _stderr.num_uses -= 1
            if not _stderr.num_uses:
                _log.removeHandler(_stderr)
                _log.setLevel(logging.NOTSET)
                _log.propagate = True
                _stderr.prefix = ""
        for stream in (sys.stdout, sys.stderr):
            _drop_unwritten(stream)


def _drop_unwritten(stream: TextIO) -> None:
    """Forget what a stream could not write, or Python would try again when it ends, and fail."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def is_shown() -> bool:
    """Whether what is said is printed: tables and live views, which `logging` does not carry, are printed only then."""
    return _stderr.num_uses > 0 and not _stderr.prefix


def only_errors(prefix: str) -> None:
    """From now on print nothing but errors, each with `prefix`: this process is not the one that people watch."""
    _stderr.prefix = prefix


def prefixed(text: str) -> str:
    """The line as this process prints it."""
    return _stderr.prefix + text


def say(text: str = "") -> None:
    """A line for those who watch."""
    _log.info("%s", text)


def warn(text: str) -> None:
    """A warning."""
    _log.warning("%s", text)


def printable(text: str) -> str:
    """Text of others on one line, without what would steer a terminal: control characters become blanks."""
    return "".join(c if c.isprintable() else " " for c in text)


def fail(text: str) -> None:
    """An error."""
    _log.error("%s", text)


class Progress:
    """How far something is: a bar on a terminal; in a log a line every `EVERY_S` seconds; nothing in a library.

    `step 120/3,000: loss 0.52, 3m 10s left`. Used as a context manager or closed by `close`; for one thread at a time.

    Args:
        label: what goes on, as the line begins.
        total: how much there is to do; None if nobody knows.
        done: how much was done before.
        unit: of these; "B" for bytes.
        clock: tells seconds.
    """

    def __init__(
        self, label: str, total: int | None, done: int = 0, unit: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.label, self.total, self.done, self.unit = label, total, done, unit
        self._before, self._clock = done, clock
        self._start_s = self._said_s = clock()
        self._bar = None
        if is_shown() and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                desc=label, total=total, initial=done, unit=unit or "it", unit_scale=unit == "B", leave=False,
                dynamic_ncols=True, bar_format="{desc} {n_fmt}/{total_fmt} {bar} {elapsed}{postfix}",
            )  # fmt: skip

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start_s

    @property
    def left_s(self) -> float:
        """Seconds that the rest takes at the speed so far; infinite if that cannot be told."""
        new = self.done - self._before
        return math.inf if self.total is None or not new else self.elapsed_s / new * (self.total - self.done)

    def update(self, count: int = 1, status: str = "", left_s: float | None = None, *, now: bool = False) -> None:
        """So much more is done.

        Args:
            count: how much.
            status: what else there is to tell.
            left_s: seconds that the rest takes, where more is known than the speed so far; infinite: not known.
            now: a log gets its line, however short ago the last one was.
        """
        self.done += count
        left_s = self.left_s if left_s is None else left_s
        parts = [status] if status else []
        if math.isfinite(left_s):
            parts.append(f"{duration(left_s)} left")
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(parts), refresh=False)
            self._bar.update(count)
        elif now or self._clock() - self._said_s >= EVERY_S:
            self._said_s = self._clock()
            say(f"{self.label} {self._reached()}{': ' if parts else ''}{', '.join(parts)}")

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()

    def _reached(self) -> str:
        written = size if self.unit == "B" else "{:,}".format
        total = "" if self.total is None else f"/{written(self.total)}"
        return f"{written(self.done)}{total}{f' {self.unit}' if self.unit not in ('', 'B') else ''}"


def size(num_bytes: float) -> str:
    """`1234567` as `1.23 MB` (decimal units)."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.2f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.2f} TB"


def counted(number: int, noun: str) -> str:
    """`1 problem`, `1,234 problems`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """`3725` as `1h 02m`; `65` as `1m 05s`; `5` as `5.0s`."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m"
