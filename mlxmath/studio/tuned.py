"""The converted models in the folder, and the adapters that belong to each: what can be asked and compared."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mlxmath.errors import MlxmathError
from mlxmath.parsing import HALF_A_CHARACTER
from mlxmath.runtime.files import read_json
from mlxmath.studio.place import Studio
from mlxmath.weights.manifest import FILE_NAME, Manifest, read_manifest

BASE = "base"
"""The model without an adapter, as `mlxmath serve` names it."""
_ADAPTER, _BEST = "adapter_config.json", "best"
_WEIGHTS = ("adapters.safetensors", "adapter_model.safetensors", "adapter_model.bin")
"""Ours and mlx_lm's, and PEFT's. (What reads them brings MLX along, which this process does without.)"""
_NO_NAME = re.compile(r"[^\w.:@/-]")
_LONGEST_NAME = 90


@dataclass(frozen=True)
class Adapter:
    """A folder with an adapter's weights."""

    name: str
    """Relative to the studio's folder."""
    changed_ns: int
    """When its weights were written."""
    fingerprint: str | None
    """Of the model that it was trained on, where it tells."""


@dataclass(frozen=True)
class Model:
    """A converted model."""

    name: str
    """Relative to the studio's folder."""
    described: str
    """What it was made from, its type and size."""
    source: str
    """What it was made from, as `--model` takes it; its own folder where that need not be there any more."""
    adapters: tuple[Adapter, ...]
    """Trained on it, or on nobody knows what; the newest first."""


def models(studio: Studio, also: Iterable[str] = ()) -> list[Model]:
    """All of them, by name.

    Args:
        studio: in whose folder they are.
        also: adapters to name that are not looked for, as those of checkpoints.
    """
    made, adapters = (
        [],
        [found for name in also if name and not HALF_A_CHARACTER.search(name) and (found := adapter(studio, name))],
    )
    for folder in studio.holding(FILE_NAME, _ADAPTER):
        if HALF_A_CHARACTER.search(str(folder)):
            continue  # no page can name it
        if manifest := _manifest(folder, written_ns(folder / FILE_NAME)):
            made.append((folder, manifest))
        adapters += [found for place in (folder, folder / _BEST) if (found := _adapter(studio, place))]
    adapters = list(dict.fromkeys(adapters))
    adapters.sort(key=lambda one: -one.changed_ns)
    return [
        Model(
            studio.name(folder), manifest.describe(),
            studio.name(folder) if Path(manifest.source).is_absolute() else manifest.source,
            tuple(one for one in adapters if one.fingerprint is None or manifest.identity.accepts(one.fingerprint)),
        )
        for folder, manifest in made
    ]  # fmt: skip


@dataclass(frozen=True)
class Contestants:
    """What the choice of who answers shows."""

    models: list[Model]
    model: Model | None
    """The chosen one."""
    chosen: list[str]
    """Its adapters that are chosen."""


def contestants(studio: Studio, model: str = "", adapters: Sequence[str] = ()) -> Contestants:
    """Those that are named; else the first model, or that of the adapters, and its newest adapter.

    Raises:
        InputError: a name leads out of the folder.
    """
    found = models(studio, adapters)
    of_adapter = next((one for one in found if any(each.name in adapters for each in one.adapters)), None)
    taken = next((one for one in found if one.name == model), of_adapter or next(iter(found), None))
    own = [one.name for one in taken.adapters] if taken else []
    return Contestants(found, taken, [name for name in own if name in adapters] or own[:1])


def further(studio: Studio, model: str, name: str | None) -> dict[str, str]:
    """Settings of a run of a model that begins with an adapter, for the address of a form.

    Args:
        studio: in whose folder both are.
        model: the model's folder; "" for the one that the adapter was trained on.
        name: the adapter's folder; None for none.
    """
    adapters = [] if name is None else [name]
    found = contestants(studio, model, adapters).model
    if found is None or (name and not any(one.name == name for one in found.adapters)):
        return {}
    settings = {"model": found.source, "mlx_path": found.name}
    if name is None:
        return settings
    record = _record(studio.inside(name) / _ADAPTER, written_ns(studio.inside(name) / _ADAPTER)) or {}
    shape, alpha = record.get("lora_parameters"), record.get("lora_alpha")
    if not isinstance(shape, dict) or not isinstance(shape.get("keys"), list):
        return settings
    layers = dict.fromkeys(str(key).rpartition(".")[2] for key in shape["keys"])
    settings |= {"init_adapter": name, "lora_rank": str(shape.get("rank", "")), "lora_targets": ",".join(layers)}
    return settings | ({} if alpha is None else {"lora_alpha": f"{alpha:g}" if type(alpha) is float else str(alpha)})


def adapter(studio: Studio, name: str) -> Adapter | None:
    """The adapter in a folder; None if there is none.

    Raises:
        InputError: it lies outside.
    """
    return _adapter(studio, studio.inside(name, "adapter"))


def _adapter(studio: Studio, folder: Path) -> Adapter | None:
    path = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    record = _record(folder / _ADAPTER, written_ns(folder / _ADAPTER))
    if path is None or record is None or record.get("reward_model"):
        return None
    fingerprint = record.get("base_fingerprint")
    return Adapter(studio.name(folder), written_ns(path), fingerprint if isinstance(fingerprint, str) else None)


def written_ns(path: Path) -> int:
    """When a file was written; 0 if it is absent."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=256)
def _manifest(folder: Path, changed_ns: int) -> Manifest | None:
    """That of a model's folder; None if there is none, or a damaged one."""
    try:
        return read_manifest(folder) if changed_ns else None
    except MlxmathError:
        return None


@lru_cache(maxsize=256)
def _record(path: Path, changed_ns: int) -> dict[str, Any] | None:
    """What an adapter says of itself; None if it does not, or is damaged."""
    try:
        found = read_json(path) if changed_ns else None
    except MlxmathError:
        return None
    return found if isinstance(found, dict) else None


def served_names(adapters: Iterable[Adapter]) -> dict[str, Adapter]:
    """The adapters under names that `mlxmath serve` takes."""
    found: dict[str, Adapter] = {}
    for one in adapters:
        name = plain = _NO_NAME.sub("_", one.name).strip("/")[-_LONGEST_NAME:].lstrip("/") or "tuned"
        number = 1
        while name in found or name in (BASE, "default_model"):
            number += 1
            name = f"{plain}-{number}"
        found[name] = one
    return found


def argument(studio: Studio, name: str) -> str:
    """A path as a command takes it that runs in the folder: the whole of it where a part would mean something else."""
    is_plain = name == name.strip() and not name.startswith(("~", "-"))
    return name if is_plain else str(studio.folder / name)
