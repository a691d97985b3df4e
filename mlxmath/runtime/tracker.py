"""What tells TensorBoard, Weights & Biases or Trackio of a run: a process beside it, which reads its events.jsonl.

In a process of its own a tracker may raise, hang or crash without the run noticing, and what it imports takes no memory
there. It is started by `mlxmath.training.trackers`, which gives it a `Task` as a line of JSON; when its standard input
ends, so has the run, however it ended. What it says comes back as lines of JSON with "say" or "warn".

What has been sent is noted in the run's folder, by the kind of event: a run that is resumed goes on there, and a
tracker that is new to it gets all that there was.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from mlxmath.errors import MlxmathError
from mlxmath.runtime import tracker_services
from mlxmath.runtime.sealed import sealed_json, unsealed_json, unsealed_line
from mlxmath.runtime.tracker_services import FOLDER, TRACKERS, Task, Tracker, tell

POLL_S = 0.5
_MOST_SHOWN = 4000
"""Characters of a completion."""
_FAMILIES = {"step": "train", "validation": "validation", "rollout": "rollout", "pace": "pace"}
"""What the figures of an event are called by."""
_NO_FIGURES = ("event", "time", "step", "example", "applied", "best", "rollout")


@dataclass
class Kept:
    """What the run's folder keeps of a tracker.

    Attributes:
        id: of the run there.
        sent: the last step that was sent, by the kind of event.
    """

    id: str
    sent: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Kept | None":
        """None where there is none, or a damaged one."""
        try:
            found = unsealed_json(path, ("id", "sent"))
            return cls(str(found["id"]), {str(kind): int(step) for kind, step in found["sent"].items()})
        except (MlxmathError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        sealed_json(path, asdict(self))


def follow(task: Task, ended: threading.Event, tracker: Tracker) -> None:
    """Tell `tracker` of events as they are written, until the run has ended and all are told."""
    path = Path(task.folder) / FOLDER / f"{task.tracker}.json"
    kept = Kept.read(path) or Kept(task.id)
    status, last, position = None, 0, 0
    while True:
        is_last = ended.is_set()  # before what may still be written is read
        news = False
        with Path(task.events).open("rb") as file:
            file.seek(position)
            for event in _whole_lines(file):
                news = _tell_of(event, tracker, kept) or news
                last = max(last, _step(event))
                if event["event"] == "end":
                    status = str(event.get("status"))
            position = file.tell()
        if is_last:
            break
        if news:
            tracker.flush()
            kept.write(path)
        ended.wait(POLL_S)
    if status:
        for image in map(Path, task.images):
            if image.is_file():
                tracker.image(last, image)
    tracker.close(status)
    kept.write(path)


def _whole_lines(file: BinaryIO) -> Iterator[dict[str, Any]]:
    """Events; the file stands behind the last whole line afterwards."""
    while (line := file.readline()).endswith(b"\n"):
        event = unsealed_line(line)
        if event is not None and isinstance(event.get("event"), str):
            yield event
    file.seek(-len(line), os.SEEK_CUR)


def _step(event: Mapping[str, Any]) -> int:
    step = event.get("step", 0)
    return step if isinstance(step, int) else 0


def _tell_of(event: Mapping[str, Any], tracker: Tracker, kept: Kept) -> bool:
    """Whether the event was news."""
    kind, step = event["event"], _step(event)
    values = figures(event)
    if not values or step <= kept.sent.get(kind, -1):
        return False
    kept.sent[kind] = step
    tracker.figures(step, values, float(event.get("time", 0.0)))
    if isinstance(sample := event.get("example"), dict):
        tracker.sample(step, {k: v[:_MOST_SHOWN] if isinstance(v, str) else v for k, v in sample.items()})
    return True


def figures(event: Mapping[str, Any]) -> dict[str, float]:
    """An event's numbers, by names such as `train/loss`; of a group within it, `rollout/rewards/correctness`."""
    family = _FAMILIES.get(event["event"])
    found: dict[str, float] = {}
    for name, value in event.items() if family else ():
        if name in _NO_FIGURES:
            continue
        for inner, number in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(number, int | float) and not isinstance(number, bool):
                found["/".join(filter(None, (family, name, inner)))] = float(number)
    if event["event"] == "step" and event.get("seconds") and "tokens_per_second" not in event:
        found["train/tokens_per_second"] = event.get("tokens", 0) / event["seconds"]
    return found


def _wait_for_end(ended: threading.Event) -> None:
    sys.stdin.read()
    ended.set()


def main() -> None:
    """See the module."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tracker_services.report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what trackers print
    task = Task(**json.loads(sys.stdin.readline()))
    ended = threading.Event()
    threading.Thread(target=_wait_for_end, args=(ended,), daemon=True).start()
    try:
        follow(task, ended, TRACKERS[task.tracker](task))
    except BaseException as error:
        tell("warn", " ".join(f"{type(error).__name__}: {error}".split())[:300])
        os._exit(1)  # what hangs, or runs when Python ends, is not waited for


if __name__ == "__main__":
    main()
