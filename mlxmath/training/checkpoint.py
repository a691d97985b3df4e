"""Checkpoints that continue a run bit for bit: adapters, optimizer, random state and position.

`checkpoints/step-N/` holds adapters.safetensors, optimizer.safetensors (with the random state), what the parts of the
run add (the best adapters so far) and state.json, which also has the files' SHA-256, the settings that must not change
and a checksum over itself. It is written whole or not at all.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten

from mlxmath.config.load import Resolved
from mlxmath.config.schema import SETTINGS
from mlxmath.config.training import TrainingConfig
from mlxmath.data.batching import StepBatch
from mlxmath.errors import MlxmathError, OtherRunError, library_errors
from mlxmath.models.lora.adapter import WEIGHTS, load_arrays, load_weights, save_arrays, save_weights
from mlxmath.models.lora.inject import adapter_arrays
from mlxmath.runtime.console import say, warn
from mlxmath.runtime.files import atomic_folder, fits, link_or_copy, remove_folder, sha256
from mlxmath.runtime.ranks import Ranks
from mlxmath.runtime.sealed import sealed_json, unsealed_json
from mlxmath.training.deadline import Deadline
from mlxmath.weights.manifest import same_weights

FOLDER = "checkpoints"
_OPTIMIZER = "optimizer.safetensors"
_STATE = "state.json"
_RANDOM = "random_state"
HOLD_OUT = "hold-out"
"""The setting that says by which rule problems are held out."""
ENDS = "ends of an answer"
"""The setting that names what ends a completion of GRPO beyond the tokenizer's and the template's own token."""
_TARGETS = "lora.targets"
_UNSAID = {
    HOLD_OUT: "by row, so that a held-out problem could be trained on in another row",
    ENDS: "the end-of-text token and the template's end of a turn alone",
}
"""What runs did whose version did not record these settings."""
KEEP = 2


Ending = Literal["finished", "early_stopped", "paused", "deadline", "stopped", "diverged", "no_signal"]
"""Why a run ends: all planned steps are done; validation no longer improves; it came to `pause_at`; the time is up;
a signal came; step after step was not finite; GRPO found nothing to learn from."""


@dataclass(frozen=True)
class Position:
    """How far a run is: `window` is the next step of `epoch`; `step` counts them over all epochs."""

    step: int = 0
    epoch: int = 0
    window: int = 0
    num_tokens: int = 0
    num_targets: int = 0
    num_skipped: int = 0
    num_skipped_in_a_row: int = 0

    def after(self, batch: StepBatch, num_tokens: int, num_targets: int, *, skipped: bool) -> "Position":
        """The position once `batch` is done."""
        return replace(
            self,
            step=self.step + 1,
            epoch=batch.epoch,
            window=batch.index + 1,
            num_tokens=self.num_tokens + num_tokens,
            num_targets=self.num_targets + num_targets,
            num_skipped=self.num_skipped + skipped,
            num_skipped_in_a_row=self.num_skipped_in_a_row + 1 if skipped else 0,
        )


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose files are whole."""

    path: Path
    position: Position
    settings: dict[str, Any]
    """Settings of the run that a resumed run must share."""
    state: dict[str, Any] = field(default_factory=dict)
    """What the other parts of the run put there."""


class Part:
    """A part of a run that goes on where it was; as it stands, one that keeps nothing."""

    def state(self) -> dict[str, Any]:
        """What state.json is to hold of it."""
        return {}

    def files(self) -> dict[str, Path | bytes]:
        """What is to be kept with the checkpoint, by name: bytes, or files that are replaced, never edited."""
        return {}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where the checkpoint was."""


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: optim.Optimizer,
    position: Position,
    settings: dict[str, Any],
    *,
    parts: Sequence[Part] = (),
    keep: int = KEEP,
) -> Path:
    """Write `folder/checkpoints/step-N` and remove all others but the `keep` - 1 before it."""
    path = folder / FOLDER / f"step-{position.step}"
    optimizer_arrays = dict(tree_flatten(optimizer.state)) | {_RANDOM: mx.random.state[0]}
    with atomic_folder(path) as temporary:
        save_weights(temporary / WEIGHTS, model)
        save_arrays(temporary / _OPTIMIZER, dict(sorted(optimizer_arrays.items())))  # the same bytes after a resume
        state: dict[str, Any] = {}
        for part in parts:
            state |= part.state()
            for name, file in part.files().items():
                if isinstance(file, bytes):
                    (temporary / name).write_bytes(file)
                else:
                    link_or_copy(file, temporary / name)
        digests = {file.name: sha256(file) for file in sorted(temporary.iterdir())}
        found = {"position": asdict(position), "settings": settings, "state": state, "sha256": digests}
        sealed_json(temporary / _STATE, found)
    saved = by_step(folder)
    end = saved.index(path) + 1  # later ones are damaged: the run has gone on from one before them
    for old in (*saved[: max(0, end - keep)], *saved[end:]):
        remove_folder(old)
    return path


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint under `folder`; damaged ones are named and passed over."""
    for path in reversed(by_step(folder)):
        try:
            state = unsealed_json(path / _STATE, ("position", "settings", "state", "sha256"))
            for name, digest in state["sha256"].items():
                if sha256(path / name) != digest:
                    raise MlxmathError(f"{path / name} is damaged")
            parts = state["settings"], state.get("state", {})
            position = state["position"]
            is_one = fits(position, Position) and min(position.values()) >= 0
            if not is_one or not all(isinstance(part, dict) for part in parts):
                raise MlxmathError(f"{path / _STATE} is damaged")
            return Checkpoint(path, Position(**position), *parts)
        except (MlxmathError, OSError, AttributeError, KeyError, TypeError) as error:
            warn(f"checkpoint {path} is not usable ({error}); trying the one before")
    return None


def as_written(checkpoint: Checkpoint | None) -> AbstractContextManager[None]:
    """Where what a checkpoint says is used: contents that no run writes are one line, whatever they would lead to."""
    if checkpoint is None:
        return nullcontext()
    return library_errors(
        f"{checkpoint.path} holds what no run has written",
        "Remove this folder; --resume then goes on from the one before.",
    )


def check_settings(checkpoint: Checkpoint, settings: dict[str, Any]) -> None:
    """Raise if the run to be resumed was another one.

    Raises:
        OtherRunError: names every setting that differs.
    """
    new = {
        name: SETTINGS[name].default for name in settings if name in SETTINGS
    }  # what no run could set is as if unset
    recorded = new | checkpoint.settings
    differing = {
        name: f"{name} was {recorded.get(name, _UNSAID.get(name))!r} and is {value!r}"
        for name, value in settings.items()
        if not same_weights(value, recorded.get(name))
    }
    if differing:
        raise OtherRunError(
            f"--resume: {checkpoint.path} belongs to another run: {'; '.join(differing.values())}. Give the same "
            "settings, or start anew with --overwrite or another --adapter-path.", differing,
        )  # fmt: skip


def with_recorded_targets(resolved: Resolved, checkpoint: Checkpoint | None) -> Resolved:
    """The settings of a run, with its checkpoint's targets where none are asked for.

    What "unset" means may differ between versions: in 0.1.0 it was q_proj,v_proj whatever the model.
    """
    recorded = checkpoint.settings.get(_TARGETS) if checkpoint else None
    if resolved.config.lora.targets is not None or not isinstance(recorded, list):
        return resolved
    with as_written(checkpoint):
        say(f"--resume: adapters on {', '.join(recorded)}, as the run began")
    lora = resolved.config.lora.model_copy(update={"targets": tuple(recorded)})
    origin = {**resolved.origin, _TARGETS: "checkpoint"}
    return replace(resolved, config=resolved.config.model_copy(update={"lora": lora}), origin=origin)


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: optim.Optimizer) -> None:
    """Put adapters, optimizer state and random state back."""
    load_weights(model, checkpoint.path / WEIGHTS)
    arrays = load_arrays(checkpoint.path / _OPTIMIZER)
    mx.random.state[0][:] = arrays.pop(_RANDOM)
    optimizer.state = tree_unflatten(list(arrays.items()))
    mx.eval(optimizer.state, mx.random.state)


def share_checkpoint(checkpoint: Checkpoint | None, ranks: Ranks) -> Checkpoint | None:
    """Rank 0's checkpoint without its files, for the other ranks."""
    own = checkpoint and [asdict(checkpoint.position), checkpoint.settings, checkpoint.state]
    found = ranks.gather("checkpoint", own)[0]
    if ranks.first or found is None:
        return checkpoint
    return Checkpoint(Path(), Position(**found[0]), found[1], found[2])


def share_adapters(model: nn.Module, ranks: Ranks) -> None:
    """Give all ranks rank 0's adapters."""
    if ranks.size > 1:
        model.load_weights(list(ranks.broadcast("adapters", adapter_arrays(model)).items()), strict=False)


def share_state(model: nn.Module, optimizer: optim.Optimizer, ranks: Ranks) -> None:
    """Give all ranks what rank 0 trains from: adapters, optimizer state and random state."""
    share_adapters(model, ranks)
    if ranks.size == 1:
        return
    arrays = ranks.broadcast("optimizer", dict(tree_flatten(optimizer.state)) | {_RANDOM: mx.random.state[0]})
    mx.random.state[0][:] = arrays.pop(_RANDOM)
    optimizer.state = tree_unflatten(list(arrays.items()))
    mx.eval(model.parameters(), optimizer.state, mx.random.state)


class Saver:
    """Saves a run: a checkpoint every `save_every` steps, where it is asked for and at the end, the adapters beside it.

    Args:
        folder: the adapter folder.
        model: holds the adapters.
        optimizer: its state goes into the checkpoints.
        settings: what a resumed run must share.
        config: `save_every` steps lie between checkpoints, the newest `keep_checkpoints` are kept.
        deadline: learns how long saving takes.
        parts: what else goes into the checkpoints.
        is_marked: whether a checkpoint is asked for after a step.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: optim.Optimizer,
        settings: dict[str, Any],
        config: TrainingConfig,
        deadline: Deadline,
        parts: Sequence[Part] = (),
        is_marked: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self._is_marked = is_marked
        self._folder, self._model, self._optimizer = folder, model, optimizer
        self._settings, self._config, self._deadline, self._parts = settings, config, deadline, parts

    def after(self, position: Position) -> None:
        """Save if it is time to. A disk that is full now may not be at the next one: the run goes on."""
        if position.step % self._config.save_every == 0 or self._is_marked(position.step):
            try:
                self.save(position)
            except MlxmathError as error:
                warn(f"no checkpoint at step {position.step}: {error}")

    def save(self, position: Position) -> None:
        """Write the checkpoint, then the adapters, which may fit on a disk that has no room for the checkpoint."""
        start = self._deadline.elapsed_s
        try:
            save_checkpoint(
                self._folder, self._model, self._optimizer, position, self._settings,
                parts=self._parts, keep=self._config.keep_checkpoints,
            )  # fmt: skip
        finally:
            save_weights(self._folder / WEIGHTS, self._model)
        self._deadline.note_save(self._deadline.elapsed_s - start)


def by_step(folder: Path) -> list[Path]:
    """The folders of a run's checkpoints, the newest last."""
    found = [path for path in (folder / FOLDER).glob("step-*") if path.name[5:].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[5:]))
