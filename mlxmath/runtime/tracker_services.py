"""TensorBoard, Weights & Biases and Trackio, as a tracker's process speaks to them; see `mlxmath.runtime.tracker`."""

import json
import os
import struct
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mlxmath.runtime.markdown import block, cell

PROJECT = "mlxmath"
FOLDER, BOARD = "trackers", "tensorboard"
"""In the run's folder: what is kept of each tracker, and what TensorBoard reads."""


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
            rows = "".join(f"| {name} | {cell('' if value is None else value)} |\n" for name, value in flat.items())
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
        text = "\n\n".join(f"**{name}**\n\n{block(value)}" for name, value in sample.items())
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
        tell("say", f"wandb: {offline or self._run.url}")

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
        tell("say", f"trackio: `trackio show --project {project}`")

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


def tell(kind: str, text: str) -> None:
    """Have the run "say" or "warn" something."""
    print(json.dumps({kind: text}), file=report, flush=True)


report = sys.stdout
"""Where what is to be said goes."""
