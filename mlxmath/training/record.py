"""The folder of a run: whose it is, what it records, and how it ends whole."""

import contextlib
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlxmath import __version__
from mlxmath.config.load import RUN, RUN_FILE, Resolved
from mlxmath.config.schema import RunConfig
from mlxmath.config.section import DEMO
from mlxmath.config.training import TrainingConfig
from mlxmath.data.load import RULE
from mlxmath.errors import InputError, MlxmathError
from mlxmath.models.lora.adapter import CONFIG, WEIGHTS, save_config
from mlxmath.models.lora.inject import Injected
from mlxmath.runtime.blas import preload
from mlxmath.runtime.console import say, warn
from mlxmath.runtime.device import DeviceInfo
from mlxmath.runtime.files import atomic_write, disk_errors, real, remove, remove_leftovers
from mlxmath.runtime.locks import locked
from mlxmath.runtime.ranks import Ranks
from mlxmath.runtime.sealed import sealed_json, unsealed_json
from mlxmath.runtime.tracker_services import BOARD
from mlxmath.runtime.tracker_services import FOLDER as TRACKERS
from mlxmath.runtime.versions import versions
from mlxmath.training.absolute import absolute_settings
from mlxmath.training.checkpoint import FOLDER, HOLD_OUT, Checkpoint, as_written, by_step, newest_checkpoint
from mlxmath.training.event_file import EVENTS
from mlxmath.training.judge import FOLDER as JUDGED
from mlxmath.training.logging import CURVES_PLOT, LOSS_PLOT
from mlxmath.training.validation import BEST, HELD_OUT

BLAS = "blas"
CHAT_TEMPLATE = "chat_template.jinja"
_OF_ONE_HOST = (
    "adapter_path", "init_adapter", "resume", "validation_dataset", "save_every", "keep_checkpoints", "report_to",
)  # fmt: skip
"""Settings of [training] that may differ between the ranks of a run: paths, and what rank 0 alone does."""
EARLIER = "earlier"
"""Where a resumed run that begins anew leaves what it found, all of whose checkpoints are damaged."""
_OURS = (
    WEIGHTS, CONFIG, EVENTS, LOSS_PLOT, CURVES_PLOT, RUN, FOLDER, BEST, HELD_OUT, CHAT_TEMPLATE, TRACKERS, BOARD,
    JUDGED,
)  # fmt: skip


def agree(ranks: Ranks, config: RunConfig, device: DeviceInfo, fixed: dict[str, Any]) -> None:
    """Make sure that all ranks are about to train the same, from the same, in the same way.

    Args:
        ranks: all of them.
        config: this rank's.
        device: this rank's.
        fixed: see `fixed_settings`; it holds the fingerprints of model and data.

    Raises:
        MlxmathError: one is not; it and every difference are named.
    """
    training = config.training.model_dump(mode="json")
    settings = {f"training.{name}": value for name, value in training.items() if name not in _OF_ONE_HOST}
    ranks.agree("settings", fixed | settings | {"backend": device.backend, "type": device.compute_dtype})


def blas_of_ranks(checkpoint: Checkpoint | None, device: DeviceInfo, ranks: Ranks) -> list[dict[str, Any] | None]:
    """What each rank multiplies with; where the bits of a run on CPUs are others by it, a warning says so.

    Args:
        checkpoint: what is resumed.
        device: this rank's.
        ranks: all of them.
    """
    used = preload()
    found: list[dict[str, Any] | None] = ranks.gather(BLAS, used and used.identity)
    before = checkpoint.state.get(BLAS, found) if checkpoint else found
    with as_written(checkpoint):
        others = _called(before) if any(one not in before for one in found) else ""
    if device.backend == "cpu" and others:
        warn(f"until now matrix products were made by {others}, from here on by {_called(found)}: results may "
             "differ in their last bits from those of a run that was not interrupted")  # fmt: skip
    elif device.backend == "cpu" and any(one != found[0] for one in found):
        warn(f"the ranks make their matrix products by different libraries: {_called(found)}")
    return found


def _called(libraries: list[dict[str, Any] | None]) -> str:
    names = [" with kernels for ".join(filter(None, one.values())) if one else "MLX's own BLAS" for one in libraries]
    return ", ".join(dict.fromkeys(names))


def check_initial_adapter(training: TrainingConfig) -> None:
    """Refuse to write over the adapter that the run starts from.

    Raises:
        InputError: it is in the run's own folder, as `best/` and the checkpoints are.
    """
    if not training.init_adapter:
        return
    initial, folder = real(Path(training.init_adapter)), real(Path(training.adapter_path))
    if initial == folder:
        raise InputError(
            f"--init-adapter and --adapter-path are both {training.adapter_path}; write the result to another folder."
        )
    if initial.is_relative_to(folder):
        raise InputError(f"--init-adapter: {initial} lies in --adapter-path; write the result to another folder.")


@contextmanager
def claimed(config: RunConfig, method: str) -> Iterator[Checkpoint | None]:
    """`--adapter-path`, for this run alone to write to. Nothing in it is changed yet.

    Args:
        config: of the run.
        method: what trains it.

    Yields:
        The checkpoint to continue from, with `--resume` and if there is one that is whole. A run that was ended before
        its first one, or all of whose are damaged, begins anew.

    Raises:
        InputError: another process writes to the folder, or it holds another run (not the demo's) and neither --resume
            nor --overwrite was given.
    """
    folder = Path(config.training.adapter_path)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--adapter-path: {folder} is a file; expected a folder.")
    with locked(folder, "--adapter-path", f"mlxmath {method}"):
        yield _found(config, folder)


def _found(config: RunConfig, folder: Path) -> Checkpoint | None:
    """The checkpoint to continue from; see `claimed`."""
    if config.training.resume:
        _clean(folder)
        if checkpoint := newest_checkpoint(folder):
            say(f"resuming {checkpoint.path} (step {checkpoint.position.step})")
            return checkpoint
    begun = (folder / FOLDER).exists() or status_of(folder) in ("running", "failed")
    may_begin = config.model.overwrite or (config.training.resume and begun)
    if any((folder / name).exists() for name in (WEIGHTS, FOLDER)) and not (may_begin or _is_demo_run(folder)):
        without = ", and no checkpoint to go on from" if config.training.resume else ""
        raise InputError(
            f"--adapter-path: {folder} holds the adapters of another run{without}. Use --resume to continue it, "
            "--overwrite to replace it, or another --adapter-path."
        )
    if config.training.resume:
        say(f"--resume: {folder} holds no whole checkpoint; starting from the beginning")
    return None


def fixed_settings(
    config: RunConfig, base_fingerprint: str, data_fingerprint: str, held_out_fingerprint: str | None = None
) -> dict[str, Any]:
    """What a resumed run must share with the run that it continues, by name."""
    unchanging = (
        "full",
        "optimizer",
        "validation_split",
        "batching",
        "batch_size",
        "grad_accumulation_steps",
        "weight_decay",
        "max_grad_norm",
        "seed",
    )
    return {
        HOLD_OUT: RULE if config.training.validation_split is not None else None,
        "base model": base_fingerprint,
        "data": data_fingerprint,
        "held-out rows": held_out_fingerprint,
        **{f"lora.{name}": value for name, value in config.lora.model_dump(mode="json").items()},
        **{f"training.{name}": getattr(config.training, name) for name in unchanging},
    }


def start(folder: Path, adapter: dict[str, Any], chat_template: str, *, anew: bool, resumed: bool = False) -> None:
    """Write what is known of the adapter before it is trained: its configuration and how it is prompted.

    Args:
        folder: the adapter folder.
        adapter: adapter_config.json.
        chat_template: Jinja, for chat servers.
        anew: remove what an earlier run left there.
        resumed: set it aside, if it had come to adapters.
    """
    _clean(folder)
    if anew:
        with disk_errors(folder):
            if resumed and any((folder / name).exists() for name in (WEIGHTS, BEST)):
                set_aside(folder)
            is_elsewhere = (folder / FOLDER).is_symlink()  # somebody keeps checkpoints on another disk
            for path in [*by_step(folder), *(folder / name for name in _OURS if name != FOLDER or not is_elsewhere)]:
                remove(path)
            folder.mkdir(parents=True, exist_ok=True)
    save_config(folder, adapter)
    atomic_write(folder / CHAT_TEMPLATE, chat_template)


def set_aside(folder: Path) -> None:
    """Move what a run has left into a folder within its own, whole: its adapters can be used there."""
    numbered = (folder / (EARLIER if n == 1 else f"{EARLIER}-{n}") for n in itertools.count(1))
    place = next(path for path in numbered if not path.exists())
    place.mkdir()
    for name in _OURS:
        if (folder / name).exists():
            (folder / name).rename(place / name)
    warn(f"what was in {folder} is in {place} now; remove it if you do not need it")


def save_settings(folder: Path, settings: Resolved, sections: tuple[str, ...], revision: str | None) -> None:
    """Write run.toml: these sections, with the model's revision and absolute paths, so that it repeats the run."""
    exact = absolute_settings(settings.config) | ({"model.revision": revision} if revision else {})
    exact = {name: value for name, value in exact.items() if name.split(".")[0] in sections}
    atomic_write(folder / RUN_FILE, settings.as_toml(sections, exact))


class Record:
    """run.json: everything that a run was, kept up to date."""

    def __init__(
        self, folder: Path, resolved: Resolved, device: DeviceInfo, blas: list[Any], data: dict[str, Any],
        adapter: Injected, method: str, base: dict[str, Any], plan: dict[str, int | None],
    ) -> None:  # fmt: skip
        self._path = folder / RUN
        self._record = {
            "mlxmath": __version__,
            "started": timestamp(),
            "folder": str(Path.cwd()),
            "method": method,
            "versions": versions(),
            "base": base,
            "config": resolved.config.model_dump(mode="json"),
            "origin": dict(resolved.origin),
            "device": asdict(device),
            BLAS: blas,
            "data": data,
            "adapter": asdict(adapter),
            **plan,
        }
        self.write(status="running")

    def update(self, **facts: Any) -> None:
        """Put what is known meanwhile into the file. A disk that is full now may not be later: the run goes on."""
        try:
            self.write(**{"status": "running"} | facts)
        except MlxmathError as error:
            warn(f"{RUN} is not up to date: {error}")

    def write(self, **outcome: Any) -> None:
        """Write the file again with what is known of the outcome."""
        sealed_json(self._path, self._record | outcome | {"updated": timestamp()})


def _clean(folder: Path) -> None:
    """Remove what killed runs left half-written."""
    for place in (folder, folder / FOLDER, folder / BEST):
        remove_leftovers(place)


def timestamp() -> str:
    """The time now, ISO 8601 in UTC."""
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")


def _is_demo_run(folder: Path) -> bool:
    try:
        return bool(unsealed_json(folder / RUN, None)["config"]["model"]["model"] == DEMO)
    except (MlxmathError, KeyError, TypeError):
        return False


def status_of(folder: Path) -> Any:
    """What run.json says of the run's end; None if it says nothing."""
    with contextlib.suppress(MlxmathError):
        return unsealed_json(folder / RUN, None).get("status")
    return None
