"""`export`: write a tuned model for another program, whole or not at all, and compare it with the original."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

from mlxmath.config.schema import RunConfig
from mlxmath.errors import InputError, MlxmathError
from mlxmath.exporting.check import Answers, Checked, check, problems_of
from mlxmath.exporting.original import Job, Original
from mlxmath.runtime.console import say, size
from mlxmath.runtime.device import opened_backend
from mlxmath.runtime.files import atomic_folder
from mlxmath.runtime.locks import making
from mlxmath.runtime.sealed import sealed_json, unsealed_json
from mlxmath.weights.manifest import read_fingerprint, versions

RECORD = "mlxmath_export.json"
"""In the folder that is written: what it was made of."""

TARGETS: Mapping[str, str] = {
    "peft": "mlxmath.exporting.peft",
    "mlx": "mlxmath.exporting.mlx",
    "hf": "mlxmath.exporting.hf",
    "gguf": "mlxmath.exporting.gguf",
    "ollama": "mlxmath.exporting.ollama",
}
"""The module of each target; it has the functions of `Target`."""


class Target(Protocol):
    """What a target's module can do."""

    def write(self, job: Job) -> Sequence[str]:
        """Write the files into `job.folder`, which is empty.

        Returns:
            What people should know of it, a sentence each without its end.

        Raises:
            InputError: the target cannot express this model or adapter, or a setting is none of its.
            MlxmathError: the original is damaged, or the disk full.
        """
        ...

    def reopened(self, job: Job) -> Answers:
        """What lies in `job.folder`, asked as its users will ask it."""
        ...


@dataclass(frozen=True)
class Exported:
    """What `export` gives."""

    folder: Path
    to: str
    num_bytes: int
    notes: tuple[str, ...]
    checked: Checked | None
    """None unless it was asked for."""


def export(config: RunConfig, adapter: Path | None, *, overwrite: bool = False) -> Exported:
    """Write a model and its adapter as `config.export` says.

    Args:
        config: model, export, runtime.
        adapter: its folder, ours or PEFT's; None exports the base.
        overwrite: replace an earlier export.

    Raises:
        InputError: a setting is wrong, the folder holds something else, or the target cannot express the adapter.
        MlxmathError: the model or the adapter is missing or damaged.
    """
    settings = config.export
    if settings.to is None:
        raise InputError(f"--to is missing; give one of {', '.join(TARGETS)}.")
    folder = Path(settings.export_path or f"exported/{settings.to}").expanduser()
    with making(folder, "mlxmath export", "--export-path"):
        return _export(config, adapter, folder, overwrite=overwrite)


def _export(config: RunConfig, adapter: Path | None, folder: Path, *, overwrite: bool) -> Exported:
    """See `export`; the folder is nobody else's meanwhile."""
    settings = config.export
    _check_free(folder, overwrite=overwrite)
    if settings.check:
        problems_of(settings)  # so that a wrong name is said before anything is written
    target = cast(Target, importlib.import_module(TARGETS[str(settings.to)]))
    with opened_backend(config.runtime, 0) as (_, device):
        original = Original(Path(config.model.mlx_path), adapter, device.compute_dtype)
        with atomic_folder(folder) as temporary:
            job = Job(original, settings, temporary)
            notes = tuple(target.write(job))
            sealed_json(temporary / RECORD, _record(job))
        num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        say(f"wrote {folder} ({size(num_bytes)})")
        for note in notes:
            say(f"  {note}")
        checked = None
        if settings.check:
            job = replace(job, folder=folder)
            checked = check(job, partial(target.reopened, job))
            for line in checked.lines():
                say(f"  {line}")
            sealed_json(folder / RECORD, _record(job) | {"check": asdict(checked)})
    return Exported(folder, str(settings.to), num_bytes, notes, checked)


def _check_free(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder with something in it that must not be replaced."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--export-path {folder} is a file; expected a folder.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    try:
        record = unsealed_json(folder / RECORD, None)
    except MlxmathError:
        raise InputError(
            f"--export-path {folder} holds files that are no export of mlxmath, so it is not replaced; choose another."
        ) from None
    if not overwrite:
        raise InputError(
            f"--export-path {folder} holds an export already ({record.get('to')}); choose another folder, or "
            "replace it with --overwrite."
        )


def _record(job: Job) -> dict[str, Any]:
    """What an export was made of."""
    original = job.original
    return {
        "to": job.settings.to,
        "model": str(original.model),
        "base_fingerprint": read_fingerprint(original.model),
        "adapter": str(original.adapter) if original.adapter else None,
        "settings": job.settings.model_dump(mode="json"),
        "versions": versions(),
    }
