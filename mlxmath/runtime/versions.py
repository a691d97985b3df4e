"""With what something was computed: the versions of what decides its numbers, and the commit of a clone."""

import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

from mlxmath import __version__

_PACKAGES = ("mlx", "mlx-lm", "transformers", "tokenizers", "datasets", "numpy")
_TOO_LONG_S = 5.0


def versions() -> dict[str, str]:
    """By name; `commit`, with "-dirty" where files were changed, if mlxmath runs from a clone."""
    found = {"mlxmath": __version__, "python": platform.python_version(), "system": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if (commit := _commit(Path(__file__).parents[2])) is not None:
        found["commit"] = commit
    return found


@cache
def _commit(clone: Path) -> str | None:
    if not (clone / ".git").exists():
        return None
    try:
        told = subprocess.run(
            ["git", "-C", str(clone), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True, text=True, check=True, timeout=_TOO_LONG_S,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.strip() or None
