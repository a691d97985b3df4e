"""What a machine needs, and whether it is there."""

import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from mlxmath import __version__
from mlxmath.runtime.blas import INSTALL_HINT, blas_is_missing, num_usable_cores, preload
from mlxmath.runtime.console import size
from mlxmath.runtime.device import machine_memory_bytes
from mlxmath.runtime.select import BACKENDS, choose

Status = Literal["ok", "note", "missing"]
LEAST_DISK_BYTES = 5_000_000_000
"""A small model, its conversion and a few checkpoints."""
_PACKAGES = (
    "mlx", "mlx-lm", "transformers", "huggingface-hub", "datasets", "numpy", "safetensors", "sentencepiece", "pydantic",
    "math-verify", "matplotlib",
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


def check_machine(folder: Path, *, hub: bool = False) -> list[Check]:
    """Look at this machine.

    Args:
        folder: where models, caches and adapters are to lie.
        hub: ask the Hugging Face hub too.
    """
    return [
        Check(
            "machine", "ok", f"{platform.platform()}, {num_usable_cores()} cores, Python {platform.python_version()}"
        ),
        *_packages(),
        *_backends(),
        _blas(),
        Check("memory", "ok", size(machine_memory_bytes())),
        _disk(folder),
        *([_hub()] if hub else []),
    ]


def _packages() -> list[Check]:
    found = versions()
    there = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    absent = [name for name, version in found.items() if version is None]
    checks = [Check("packages", "ok", there)]
    if absent:
        checks.append(Check("packages", "missing", f"{', '.join(absent)}: pip install {' '.join(absent)}"))
    return checks


def _backends() -> list[Check]:
    reasons = {name: backend().unavailable() for name, backend in BACKENDS.items()}
    if all(reasons.values()):
        return [Check(f"backend {name}", "missing", str(reason)) for name, reason in reasons.items()]
    chosen, _ = choose("auto")
    checks = []
    for name, reason in reasons.items():
        if reason is not None:
            checks.append(Check(f"backend {name}", "note", reason))
            continue
        used = "; what --backend auto takes" if name == chosen.name else ""
        info = BACKENDS[name]().open(seed=0)
        text = f"{info.device}, {size(info.memory_bytes)} for MLX, computing in {info.compute_dtype}"
        checks.append(Check(f"backend {name}", "ok", text + used))
    return checks


def _blas() -> Check:
    if blas_is_missing():
        return Check("BLAS", "note", f"none but the slow one that MLX brings: {INSTALL_HINT}")
    return Check("BLAS", "ok", preload() or ("Accelerate" if sys.platform == "darwin" else "not needed"))


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    status: Status = "ok" if free >= LEAST_DISK_BYTES else "note"
    hint = "" if status == "ok" else f"; less than {size(LEAST_DISK_BYTES)} is soon full"
    return Check("disk", status, f"{size(free)} free in {folder.resolve()}{hint}")


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
