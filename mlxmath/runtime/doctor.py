"""What a machine needs, and whether it is there."""

import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from mlxmath import __version__
from mlxmath.runtime.blas import advice, num_usable_cores, preload
from mlxmath.runtime.console import size
from mlxmath.runtime.device import BACKENDS, choose, machine_memory_bytes
from mlxmath.runtime.files import real
from mlxmath.runtime.mac import old_mlx

Status = Literal["ok", "note", "missing"]
LEAST_DISK_BYTES = 5_000_000_000
"""A small model, its conversion and a few checkpoints."""
_PACKAGES = (
    "mlx", "mlx-lm", "transformers", "huggingface-hub", "datasets", "numpy", "safetensors", "sentencepiece", "pydantic",
    "math-verify", "matplotlib", "psutil",
)  # fmt: skip
_HUB_LIMIT_S = 5.0


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. "missing" is what work is impossible without; a "note" is worth knowing."""

    name: str
    status: Status
    found: str


def versions() -> Mapping[str, str | None]:
    """mlxmath's and its packages' versions; None: not installed."""
    found: dict[str, str | None] = {"mlxmath": __version__}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def check_machine(folder: Path, *, hub: bool = False) -> Iterator[Check]:
    """Look at this machine.

    Args:
        folder: where models, caches and adapters are to lie.
        hub: ask the Hugging Face hub too.
    """
    cores = f"{num_usable_cores()} cores"
    yield Check("machine", "ok", f"{platform.platform()}, {cores}, Python {platform.python_version()}")
    found = versions()
    yield Check("packages", "ok", ", ".join(f"{name} {version}" for name, version in found.items() if version))
    if absent := [name for name, version in found.items() if version is None]:
        yield Check("packages", "missing", f"{', '.join(absent)}: pip install {' '.join(absent)}")
    if note := old_mlx():
        yield Check("mlx", "note", note)
    yield from _backends()
    used = str(preload() or ("Accelerate" if sys.platform == "darwin" else "the slow one that MLX brings"))
    yield Check("BLAS", "note" if (improved := advice()) else "ok", f"{used}; {improved}" if improved else used)
    yield Check("memory", "ok", size(machine_memory_bytes()))
    free = shutil.disk_usage(folder).free
    place = f"{size(free)} free in {real(folder)}"
    if free >= LEAST_DISK_BYTES:
        yield Check("disk", "ok", place)
    else:
        yield Check("disk", "note", f"{place}; less than {size(LEAST_DISK_BYTES)} is soon full")
    if hub:
        yield _hub()


def _backends() -> Iterator[Check]:
    backends = [backend() for backend in BACKENDS.values()]
    reasons = {backend.name: backend.unavailable() for backend in backends}
    chosen = choose("auto")[0].name
    for backend in backends:
        if reason := reasons[backend.name]:
            yield Check(f"backend {backend.name}", "missing" if all(reasons.values()) else "note", reason)
        else:
            info = backend.describe()
            used = "; what --backend auto takes" if backend.name == chosen else ""
            text = f"{info.device}, {size(info.memory_bytes)} for MLX, computing in {info.compute_dtype}{used}"
            yield Check(f"backend {backend.name}", "ok", text)


def _hub() -> Check:
    from urllib.error import URLError
    from urllib.request import Request, urlopen

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return Check("hub", "note", "HF_HUB_OFFLINE is set: only what is in the cache can be used")
    try:
        with urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=_HUB_LIMIT_S):
            return Check("hub", "ok", f"{constants.ENDPOINT} answers")
    except (URLError, OSError, ValueError) as error:
        return Check(
            "hub", "note", f"{constants.ENDPOINT} does not answer ({error}); only local models and data can be used"
        )
