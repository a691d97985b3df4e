"""What is read of files that grow, and is shown often."""

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")
_SHARE = 0.1
"""Of the time, that reading a file again and again may take."""


class Remembered(Generic[T]):
    """Reads folders, and again once their files have changed; a large one that grows not all the time.

    Args:
        read: what is made of a folder.
        files: those in it that count.
        most: folders that are kept in memory.
    """

    def __init__(self, read: Callable[[Path], T], files: Callable[[Path], Iterable[Path]], most: int = 4) -> None:
        self._read, self._files, self._most = read, files, most
        self._kept: dict[Path, tuple[object, float, T]] = {}
        self._lock = threading.Lock()

    def __call__(self, folder: Path) -> T:
        """What the folder holds, or held a little while ago."""
        with self._lock:
            seen, again_s, found = self._kept.pop(folder, (None, 0.0, None))
            state = [(path.name, *state_of(path)) for path in sorted(self._files(folder))]
            if found is None or (state != seen and time.monotonic() >= again_s):
                begun_s = time.monotonic()
                found, seen = self._read(folder), state
                again_s = time.monotonic() + (time.monotonic() - begun_s) / _SHARE
            self._kept[folder] = seen, again_s, found
            while len(self._kept) > self._most:
                del self._kept[next(iter(self._kept))]
            return found


def state_of(path: Path) -> tuple[int, int, int]:
    """What changes with a file."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_ino, found.st_size, found.st_mtime_ns
