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
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

PROJECT = "mlxmath"
FOLDER, BOARD = "trackers", "tensorboard"
"""In the run's folder: what is kept of each tracker, and what TensorBoard reads."""
POLL_S = 0.5
_MOST_SHOWN = 4000
"""Characters of a completion."""
_FAMILIES = {"step": "train", "validation": "validation", "rollout": "rollout", "pace": "pace"}
"""What the figures of an event are called by."""
_NO_FIGURES = ("event", "time", "step", "example", "applied", "best", "rollout")


@dataclass(frozen=True)
class Task:
    """What a tracker is to tell of.

    Attributes:
        tracker: its name.
        folder: the run's.
        name: of the run, for people.
        method: what trains it.
        id: of the run, the same when it is resumed.
        config: settings by section, without secrets.
        events: events.jsonl.
        images: files that are drawn at the end, if they are.
    """

    tracker: str
    folder: str
    name: str
    method: str
    id: str
    config: dict[str, Any]
    events: str
    images: tuple[str, ...]


class Tracker(Protocol):
    """Where figures go. Anything that it raises ends it, and nothing else."""

    def figures(self, step: int, values: Mapping[str, float], time_s: float) -> None:
        """Values by name, at a step, at a time in seconds since 1970."""

    def sample(self, step: int, sample: Mapping[str, Any]) -> None:
        """A completion with its question, the right answer and its reward."""

    def image(self, step: int, path: Path) -> None:
        """A picture (PNG)."""

    def flush(self) -> None:
        """What was given is to be safe now."""

    def close(self, status: str | None) -> None:
        """The run has ended so; None: it was killed, or failed."""


class TensorBoard:
    """Event files in the run's folder, which `tensorboard --logdir` shows."""

    def __init__(self, task: Task) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.plugins.text.summary_v2 import text_pb
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary, self._text = Event, Summary, text_pb
        folder = Path(task.folder) / BOARD
        is_new = not any(folder.glob("*tfevents*"))
        self._writer = EventFileWriter(str(folder))
        self._num_unsafe = 0
        if is_new:
            flat = {f"{section}.{name}": value for section, own in task.config.items() for name, value in own.items()}
            rows = "".join(f"| {name} | {_cell(value)} |\n" for name, value in flat.items())
            self._write(0, self._text("settings", f"| setting | value |\n|---|---|\n{rows}"))
            plain = {
                name: value if isinstance(value, bool | int | float | str) else json.dumps(value)
                for name, value in flat.items() if value not in (None, [], {})
            }  # fmt: skip
            self._write(0, hparams_pb(plain, trial_id=task.id))

    def _write(self, step: int, summary: Any, time_s: float | None = None) -> None:
        self._writer.add_event(
            self._event(wall_time=time.time() if time_s is None else time_s, step=step, summary=summary)
        )

    def figures(self, step: int, values: Mapping[str, float], time_s: float) -> None:
        """See `Tracker`."""
        one = self._summary.Value
        self._write(step, self._summary(value=[one(tag=k, simple_value=v) for k, v in values.items()]), time_s)

    def sample(self, step: int, sample: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        text = "\n\n".join(f"**{name}**\n\n{_indented(value)}" for name, value in sample.items())
        self._write(step, self._text("sample", text))

    def image(self, step: int, path: Path) -> None:
        """See `Tracker`."""
        data = path.read_bytes()
        width, height = struct.unpack(">II", data[16:24])  # a PNG begins with its header chunk
        image = self._summary.Image(height=height, width=width, colorspace=4, encoded_image_string=data)
        self._write(step, self._summary(value=[self._summary.Value(tag=path.stem, image=image)]))

    def flush(self) -> None:
        """See `Tracker`."""
        self._writer.flush()

    def close(self, status: str | None) -> None:
        """See `Tracker`."""
        self._write(0, self._text("status", status or "failed"))
        self._writer.close()


class WandB:
    """Weights & Biases: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE and its other variables mean what they always do.

    The program's arguments, its code, its output and the machine's packages are not sent.
    """

    def __init__(self, task: Task) -> None:
        import wandb

        self._wandb = wandb
        settings = wandb.Settings(
            silent=True, console="off", disable_git=True, save_code=False, x_disable_meta=True,
            x_save_requirements=False,
        )  # fmt: skip
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=os.environ.get("WANDB_NAME", task.name), id=task.id,
            dir=os.environ.get("WANDB_DIR", str(Path(task.folder) / FOLDER)), job_type=task.method, config=task.config,
            resume="allow", settings=settings,
        )  # fmt: skip
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")  # a step that is done again is no step back for W&B then
        offline = f"offline; `wandb sync {Path(self._run.dir).parent}` sends it" if self._run.offline else None
        _tell("say", f"wandb: {offline or self._run.url}")

    def figures(self, step: int, values: Mapping[str, float], time_s: float) -> None:  # noqa: ARG002
        """See `Tracker`; it has its own clock."""
        self._run.log({**values, "step": step})

    def sample(self, step: int, sample: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        row = [value if isinstance(value, bool | int | float) else str(value) for value in sample.values()]
        self._run.log({"sample": self._wandb.Table(columns=list(sample), data=[row]), "step": step})

    def image(self, step: int, path: Path) -> None:
        """See `Tracker`."""
        self._run.log({path.stem: self._wandb.Image(str(path)), "step": step})

    def flush(self) -> None:
        """W&B sends as it likes."""

    def close(self, status: str | None) -> None:
        """See `Tracker`."""
        self._run.summary["status"] = status or "failed"
        self._run.finish(exit_code=0 if status else 1)


class Trackio:
    """Trackio, on this machine unless TRACKIO_SPACE_ID or TRACKIO_SERVER_URL says otherwise."""

    def __init__(self, task: Task) -> None:
        import trackio

        self._trackio = trackio
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        trackio.init(
            project, name=f"{task.name}-{task.id}", config=task.config, resume="allow", embed=False, private=True
        )
        _tell("say", f"trackio: `trackio show --project {project}`")

    def figures(self, step: int, values: Mapping[str, float], time_s: float) -> None:  # noqa: ARG002
        """See `Tracker`; it has its own clock."""
        self._trackio.log(dict(values), step=step)

    def sample(self, step: int, sample: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        row = [str(value) for value in sample.values()]
        self._trackio.log({"sample": self._trackio.Table(columns=list(sample), data=[row])}, step=step)

    def image(self, step: int, path: Path) -> None:
        """See `Tracker`."""
        self._trackio.log({path.stem: self._trackio.Image(str(path))}, step=step)

    def flush(self) -> None:
        """Trackio writes as it likes."""

    def close(self, status: str | None) -> None:  # noqa: ARG002
        """See `Tracker`."""
        self._trackio.finish()


TRACKERS: dict[str, type[TensorBoard] | type[WandB] | type[Trackio]] = {
    "tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio
}  # fmt: skip
"""By what `--report-to` calls them; each is the name of its package and of the extra that brings it."""


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
            found = json.loads(path.read_text())
            return cls(str(found["id"]), {str(kind): int(step) for kind, step in found["sent"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(json.dumps(asdict(self)) + "\n")
        temporary.replace(path)


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
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
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


def _cell(value: Any) -> str:
    return str("" if value is None else value).replace("|", "\\|").replace("\n", " ")


def _indented(value: Any) -> str:
    """As a block of Markdown that shows a text as it is."""
    return "\n".join(f"    {line}" for line in str(value).splitlines())


_report = sys.stdout
"""Where what is to be said goes."""


def _tell(kind: str, text: str) -> None:
    print(json.dumps({kind: text}), file=_report, flush=True)


def _wait_for_end(ended: threading.Event) -> None:
    sys.stdin.read()
    ended.set()


def main() -> None:
    """See the module."""
    global _report
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what trackers print
    task = Task(**json.loads(sys.stdin.readline()))
    ended = threading.Event()
    threading.Thread(target=_wait_for_end, args=(ended,), daemon=True).start()
    try:
        follow(task, ended, TRACKERS[task.tracker](task))
    except BaseException as error:
        _tell("warn", " ".join(f"{type(error).__name__}: {error}".split())[:300])
        os._exit(1)  # what hangs, or runs when Python ends, is not waited for


if __name__ == "__main__":
    main()
