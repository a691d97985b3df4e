"""events.jsonl, as whoever looks at a run reads it; `mlxmath.training.events` writes it. No MLX."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlxmath.runtime.sealed import lines_of, unsealed_line

EVENTS = "events.jsonl"
SMOOTHED = "smoothed_"
"""What the name of a smoothed value begins with."""


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events in a log, one after the other; a last line cut off by a kill, and what is damaged, is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in lines_of(file):
            event = unsealed_line(line)
            if event and isinstance(event.get("event"), str) and isinstance(event.get("step", 0), int):
                yield event


def number(value: Any) -> float | None:
    """A value of an event that is a finite number; None for anything else, as a log of others may hold."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) <= sys.float_info.max else None
