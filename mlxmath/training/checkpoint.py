"""Checkpoints that continue a run bit for bit: adapters, optimizer, random state and position.

`checkpoints/step-N/` holds adapters.safetensors, optimizer.safetensors (with the random state) and state.json, which
also has the files' SHA-256 and the settings that must not change. It is written whole or not at all.
"""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten

from mlxmath.console import warn
from mlxmath.errors import InputError, MlxmathError
from mlxmath.files import atomic_folder, atomic_json, read_json, sha256
from mlxmath.lora.adapter import WEIGHTS, load_weights, save_arrays, save_weights
from mlxmath.training.deadline import Deadline
from mlxmath.training.fit import Position, StepReport

FOLDER = "checkpoints"
_OPTIMIZER = "optimizer.safetensors"
_STATE = "state.json"
_RANDOM = "random_state"
KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose files are whole."""

    path: Path
    position: Position
    settings: dict[str, Any]
    """Settings of the run that a resumed run must share."""


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: optim.Optimizer, position: Position, settings: dict[str, Any]
) -> Path:
    """Write `folder/checkpoints/step-N` and remove all but the newest `KEEP`."""
    path = folder / FOLDER / f"step-{position.step}"
    optimizer_arrays = dict(tree_flatten(optimizer.state)) | {_RANDOM: mx.random.state[0]}
    with atomic_folder(path) as temporary:
        save_weights(temporary / WEIGHTS, model)
        save_arrays(temporary / _OPTIMIZER, optimizer_arrays)
        files = {name: sha256(temporary / name) for name in (WEIGHTS, _OPTIMIZER)}
        atomic_json(temporary / _STATE, {"position": asdict(position), "settings": settings, "sha256": files})
    for old in _by_step(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint under `folder`; damaged ones are named and passed over."""
    for path in reversed(_by_step(folder)):
        try:
            state = read_json(path / _STATE)
            for name, digest in state["sha256"].items():
                if sha256(path / name) != digest:
                    raise MlxmathError(f"{path / name} is damaged")
            return Checkpoint(path, Position(**state["position"]), state["settings"])
        except (MlxmathError, OSError, KeyError, TypeError) as error:
            warn(f"checkpoint {path} is not usable ({error}); trying the one before")
    return None


def check_settings(checkpoint: Checkpoint, settings: dict[str, Any]) -> None:
    """Raise if the run to be resumed was another one.

    Raises:
        InputError: names every setting that differs.
    """
    differing = [
        f"{name} was {checkpoint.settings.get(name)!r} and is {value!r}"
        for name, value in settings.items()
        if checkpoint.settings.get(name) != value
    ]
    if differing:
        raise InputError(
            f"--resume: {checkpoint.path} belongs to another run: {'; '.join(differing)}. Give the same settings, or "
            "start anew with --overwrite or another --adapter-path."
        )


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: optim.Optimizer) -> None:
    """Put adapters, optimizer state and random state back."""
    load_weights(model, checkpoint.path / WEIGHTS)
    arrays: dict[str, mx.array] = mx.load(str(checkpoint.path / _OPTIMIZER))
    mx.random.state[0][:] = arrays.pop(_RANDOM)
    optimizer.state = tree_unflatten(list(arrays.items()))
    mx.eval(optimizer.state, mx.random.state)


class Saver:
    """Saves a run: a checkpoint every `every` steps and at the end, and the adapters beside it.

    Args:
        folder: the adapter folder.
        model: holds the adapters.
        optimizer: its state goes into the checkpoints.
        settings: what a resumed run must share.
        every: steps between checkpoints.
        deadline: learns how long saving takes.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: optim.Optimizer,
        settings: dict[str, Any],
        every: int,
        deadline: Deadline,
    ) -> None:
        self._folder, self._model, self._optimizer = folder, model, optimizer
        self._settings, self._every, self._deadline = settings, every, deadline

    def on_step(self, report: StepReport) -> None:
        """Save if it is time to. A disk that is full now may not be at the next one: the run goes on."""
        if report.position.step % self._every == 0:
            try:
                self.save(report.position)
            except MlxmathError as error:
                warn(f"no checkpoint at step {report.position.step}: {error}")

    def save(self, position: Position) -> None:
        """Write the checkpoint, then the adapters."""
        start = self._deadline.elapsed_s
        save_checkpoint(self._folder, self._model, self._optimizer, position, self._settings)
        save_weights(self._folder / WEIGHTS, self._model)
        self._deadline.note_save(self._deadline.elapsed_s - start)


def _by_step(folder: Path) -> list[Path]:
    found = [path for path in (folder / FOLDER).glob("step-*") if path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]))
