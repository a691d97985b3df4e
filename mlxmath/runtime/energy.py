"""The energy that a process's devices take, where the system tells it to anybody.

Linux counts a processor package's in /sys/class/powercap (RAPL; on most systems readable by root alone), NVIDIA's
library a GPU's since its driver was loaded. Both are of the whole device, whoever uses it. macOS tells root alone.
"""

import ctypes
import time
from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
_EVERY_S = 30.0
"""Counters of RAPL begin anew after some minutes at full power."""
_NVML = "libnvidia-ml.so.1"

Counter = tuple[str, Callable[[], float | None], float | None]
"""What it counts, joules so far (None: no longer told), and where it begins anew (None: nowhere)."""


class Meter:
    """Joules since it was made.

    Args:
        counters: that are there.
        clock: monotonic seconds.
    """

    def __init__(self, counters: list[Counter], clock: Callable[[], float] = time.monotonic) -> None:
        self._counters = [(name, read, wraps, first) for name, read, wraps in counters if (first := read()) is not None]
        self._last = [first for *_, first in self._counters]
        self._sums = [0.0] * len(self._last)
        self._clock, self._looked_s = clock, clock()
        self._is_lost = False

    def look(self) -> None:
        """Read the counters if it is time to; to be called often."""
        if self._counters and self._clock() - self._looked_s >= _EVERY_S:
            self._read()

    def _read(self) -> None:
        self._looked_s = self._clock()
        for i, (_, read, wraps, _) in enumerate(self._counters):
            now = read()
            if now is None:
                self._is_lost = True
                continue
            passed = now - self._last[i]
            self._sums[i] += passed if passed >= 0 or wraps is None else passed + wraps
            self._last[i] = now

    def told(self) -> dict[str, float] | None:
        """Joules by what was counted; None where nothing tells them."""
        self._read()
        if not self._counters or self._is_lost or min(self._sums) < 0:
            return None
        return {name: round(joules, 1) for (name, *_), joules in zip(self._counters, self._sums, strict=True)}


def counters(backend: str, powercap: Path = POWERCAP) -> list[Counter]:
    """Those of the processor, and with CUDA those of its GPUs."""
    return [*_rapl(powercap), *(_nvidia() if backend == "cuda" else ())]


def _rapl(powercap: Path) -> list[Counter]:
    """Of whole packages: `intel-rapl:0`, not its parts `intel-rapl:0:0`."""
    found: list[Counter] = []
    for place in sorted(powercap.glob("*-rapl:*")):
        if place.name.count(":") != 1:
            continue
        most = _number(place / "max_energy_range_uj")
        name = place.name.partition(":")[2]
        found.append((f"processor {name}", lambda file=place / "energy_uj": _number(file), most))  # type: ignore[misc]
    return found


def _number(file: Path) -> float | None:
    """Micro-joules in a file as joules; None if it cannot be read."""
    try:
        return int(file.read_text()) / 1e6
    except (OSError, ValueError):
        return None


def _nvidia() -> list[Counter]:
    """Of each GPU; none where the library or the GPU has no such counter (before Volta)."""
    try:
        library = ctypes.CDLL(_NVML)
        count = ctypes.c_uint()
        if library.nvmlInit_v2() or library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return []
    except (OSError, AttributeError):
        return []
    found: list[Counter] = []
    for index in range(count.value):
        handle = ctypes.c_void_p()
        if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)):
            continue

        def read(handle: ctypes.c_void_p = handle) -> float | None:
            millijoules = ctypes.c_ulonglong()
            failed = library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
            return None if failed else millijoules.value / 1e3

        found.append((f"GPU {index}", read, None))
    return found
