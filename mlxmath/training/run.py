"""The folder of a run: whose it is, what it records, and how it ends whole."""

import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlxmath.config.schema import DEMO, RunConfig
from mlxmath.console import say
from mlxmath.errors import InputError, MlxmathError
from mlxmath.files import atomic_json, disk_errors, read_json
from mlxmath.lora.adapter import CONFIG, WEIGHTS
from mlxmath.training.checkpoint import FOLDER, Checkpoint, newest_checkpoint
from mlxmath.training.events import EVENTS, PLOT, RUN

_OURS = (WEIGHTS, CONFIG, EVENTS, PLOT, RUN, FOLDER, "chat_template.jinja")


def claim(config: RunConfig) -> Checkpoint | None:
    """Make `--adapter-path` ready for this run, without losing another one's results.

    Returns:
        The checkpoint to continue from, with `--resume` and if there is one.

    Raises:
        InputError: the folder holds another run (not the demo's) and neither --resume nor --overwrite was given.
    """
    folder = Path(config.training.adapter_path)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--adapter-path: {folder} is a file; expected a folder.")
    if config.training.resume:
        if checkpoint := newest_checkpoint(folder):
            say(f"resuming {checkpoint.path} (step {checkpoint.position.step})")
            return checkpoint
        say(f"--resume: {folder} holds no checkpoint; starting from the beginning")
    if any((folder / name).exists() for name in (WEIGHTS, FOLDER)) and not (
        config.model.overwrite or _is_demo_run(folder)
    ):
        raise InputError(
            f"--adapter-path: {folder} holds the adapters of another run. Use --resume to continue it, --overwrite to "
            "replace it, or another --adapter-path."
        )
    with disk_errors(folder):
        for name in _OURS:
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
    return None


def write_run(folder: Path, record: dict[str, Any], **more: Any) -> None:
    """Write run.json: the record of the run, with what is now known about its end."""
    atomic_json(folder / RUN, record | more | {"updated": timestamp()})


def timestamp() -> str:
    """The time now, ISO 8601 in UTC."""
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")


def _is_demo_run(folder: Path) -> bool:
    try:
        return bool(read_json(folder / RUN)["config"]["model"]["model"] == DEMO)
    except (MlxmathError, KeyError, TypeError):
        return False
