"""The curves of a run, out of events.jsonl as it grows.

The log is read on from where it ended the last time, and kept as columns of numbers. What a page is sent are at most
some thousand points a curve: of each span of events the lowest and the highest value, so that no peak is lost. A span
is of 2^k events and begins at a multiple of that, so that what was sent of it stays as it is until k grows.
"""

import io
import math
import os
import re
import secrets
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mlxmath.runtime.sealed import unsealed_line
from mlxmath.training.event_file import number

Column = NDArray[np.float64]
Event = dict[str, Any]

KINDS = ("step", "rollout", "validation")
"""Events of which curves are made; there may be 100,000 of them."""
PLACES = ("step", "tokens", "seconds")
"""Over what a curve is drawn: optimizer steps, tokens learned from, seconds of work (pauses do not count)."""
MOST_SPANS = 512
MOST_COLUMNS = 48
_MOST_OTHERS, _MOST_SAMPLES = 100, 12
_NO_FIGURES = ("event", "time", "step", "epoch", "rollout", "example", "left_s")
_BLOCK = 1 << 22
"""Bytes read at a time; a longer line is none of ours."""
_TAIL = 64
"""Bytes before the place where reading goes on, by which a file that was written anew is told from one that grew."""
_MARK = re.compile(r"([0-9a-f]{16})" + r"\.(\d{1,12})" * len(KINDS))


def span_of(count: int) -> int:
    """Events in a span: a power of two; at most `MOST_SPANS` spans of two points each come of it."""
    span = 1
    while count > MOST_SPANS * max(span, 2):  # a span of one event is one point
        span *= 2
    return span


@dataclass
class Table:
    """Events of one kind: where each stands, by `PLACES`, and a column for each number in them (NaN: it has none).

    The columns of an inner object are "object.name".
    """

    places: dict[str, Column] = field(default_factory=lambda: {name: np.empty(0) for name in PLACES})
    columns: dict[str, Column] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.places["step"])

    def add(self, places: Sequence[tuple[float, float, float]], rows: Sequence[dict[str, float]]) -> None:
        """Append events."""
        before = len(self)
        for name, values in zip(PLACES, zip(*places, strict=True), strict=True):
            self.places[name] = np.append(self.places[name], values)
        names = dict.fromkeys((*self.columns, *(name for row in rows for name in row)))
        for name in list(names)[:MOST_COLUMNS]:
            old = self.columns[name] if name in self.columns else np.full(before, np.nan)
            self.columns[name] = np.append(old, [row.get(name, np.nan) for row in rows])

    def points(self, seen: int) -> dict[str, Any]:
        """The points from the first span on that is not as it was when there were `seen` events.

        Returns:
            from: how many points before them stay as they are; over: by `PLACES`; values: by column (None: none).
        """
        span = span_of(len(self))
        first = seen // span if seen <= len(self) and span_of(seen) == span else 0
        return {
            "from": first * min(span, 2),
            "over": {name: _numbers(_ends(each[first * span :], span), 12) for name, each in self.places.items()},
            "values": {name: _numbers(_extremes(each[first * span :], span), 6) for name, each in self.columns.items()},
        }


def _ends(places: Column, span: int) -> Column:
    """Of each span where it begins and where it ends."""
    if span == 1:
        return places
    starts = np.arange(0, len(places), span)
    return np.stack([places[starts], places[_lasts(starts, len(places))]], axis=1).ravel()


def _extremes(values: Column, span: int) -> Column:
    """Of each span the lowest and the highest value: first the one to which its beginning is the closer."""
    if span == 1:
        return values
    starts = np.arange(0, len(values), span)
    low, high = np.fmin.reduceat(values, starts), np.fmax.reduceat(values, starts)
    rises = values[starts] <= values[_lasts(starts, len(values))]
    return np.stack([np.where(rises, low, high), np.where(rises, high, low)], axis=1).ravel()


def _lasts(starts: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    return np.append(starts[1:], count) - 1 if len(starts) else starts


def _numbers(values: Column, digits: int) -> list[float | None]:
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values.tolist()]


class Log:
    """events.jsonl of a run, as far as it has been read.

    Attributes:
        lock: held by whoever reads, or looks at more than one of the others.
        tables: the events of each of `KINDS`.
        others: the last events of no `KINDS`: start, resume, end, …
        samples: the last completions that a run told, each an event "rollout" with its "example".
    """

    def __init__(self, path: Path) -> None:
        self._path, self.lock = path, threading.RLock()
        self._clear()

    def _clear(self) -> None:
        self.tables = {kind: Table() for kind in KINDS}
        self.others: deque[Event] = deque(maxlen=_MOST_OTHERS)
        self.samples: deque[Event] = deque(maxlen=_MOST_SAMPLES)
        self._tokens = self._seconds = 0.0
        self._version = secrets.token_hex(8)
        self._file: tuple[int, int] | None = None
        self._offset, self._tail = 0, b""

    def refresh(self, most_bytes: float = math.inf) -> "Log":
        """Read what has come since; everything, if the file is another one by now, as after a resume.

        Args:
            most_bytes: nothing is read if there is more than that.
        """
        with self.lock:
            try:
                file = self._path.open("rb")
            except OSError:  # not yet, or no more
                if self._offset:
                    self._clear()
                return self
            with file:
                found = os.fstat(file.fileno())
                if self._file != (found.st_dev, found.st_ino) or not self._is_continued(file):
                    self._clear()
                    self._file = (found.st_dev, found.st_ino)
                if found.st_size - self._offset > most_bytes:
                    return self
                for lines in self._blocks(file):
                    self._take(filter(None, map(unsealed_line, lines)))
        return self

    def points(self, mark: str) -> dict[str, Any]:
        """What has come since `mark`, which the last answer had; everything, if there was none or the file is another.

        Returns:
            mark: for the next time; tables: by kind, see `Table.points`.
        """
        with self.lock:
            self.refresh()
            found = _MARK.fullmatch(mark)
            seen = [int(count) for count in found.groups()[1:]] if found and found[1] == self._version else [0] * 3
            return {
                "mark": ".".join([self._version, *(str(len(table)) for table in self.tables.values())]),
                "tables": {
                    kind: table.points(count) for (kind, table), count in zip(self.tables.items(), seen, strict=True)
                },
            }

    def _is_continued(self, file: BinaryIO) -> bool:
        """Whether the file still holds what was read."""
        file.seek(self._offset - len(self._tail))
        return file.read(len(self._tail)) == self._tail

    def _blocks(self, file: BinaryIO) -> Iterator[Iterable[bytes]]:
        """The whole lines that have come since."""
        file.seek(self._offset)
        while block := file.read(_BLOCK):
            end = block.rfind(b"\n") + 1
            if not end and len(block) < _BLOCK:
                return  # a line that is not whole yet
            read = block[: end or _BLOCK]
            self._offset += len(read)
            self._tail = (self._tail + read)[-_TAIL:]
            file.seek(self._offset)
            if end:
                yield io.BytesIO(read)

    def _take(self, events: Iterable[Event]) -> None:
        """Put events where they belong."""
        places: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in KINDS}
        rows: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
        for event in events:
            kind, step = event.get("event"), number(event.get("step", 0))
            if not isinstance(kind, str) or step is None:
                continue
            if kind not in KINDS:
                self.others.append(event)
                continue
            row = dict(_figures(event))
            seconds, tokens = max(0.0, row.pop("seconds", 0.0)), max(0.0, row.get("tokens", 0.0))
            self._seconds += seconds
            if kind == "step":
                self._tokens += tokens
                if seconds:
                    row.setdefault("tokens_per_second", tokens / seconds)
            if isinstance(event.get("example"), dict):
                self.samples.append(event)
            places[kind].append((step, self._tokens, self._seconds))
            rows[kind].append(row)
        for kind, table in self.tables.items():
            if rows[kind]:
                table.add(places[kind], rows[kind])


def _figures(event: Event) -> Iterator[tuple[str, float]]:
    for name, value in event.items():
        if name in _NO_FIGURES or not name.isprintable():
            continue
        if (found := number(value)) is not None:
            yield name, found
        elif isinstance(value, dict):
            for inner, each in value.items():
                if inner.isprintable() and (found := number(each)) is not None:
                    yield f"{name}.{inner}", found


@lru_cache(16)
def log_of(path: Path) -> Log:
    """The log that was read at this path the last time, or one that is yet to be read."""
    return Log(path)
