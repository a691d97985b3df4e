"""Running the commands as a user does: real processes in a folder of their own."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "tests" / "without_torch"), str(REPOSITORY)]),
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONWARNINGS": "ignore",
}


def command(*arguments: str) -> list[str]:
    """`python -m mlxmath.<name> …`; a first argument with a dot is another package's module."""
    name, *rest = arguments
    return [sys.executable, "-m", name if "." in name else f"mlxmath.{name.replace('-', '_')}", *map(str, rest)]


def run(folder: Path, *arguments: str, stdin: str = "", timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in `folder`."""
    return subprocess.run(
        command(*arguments), cwd=folder, env=ENVIRONMENT, input=stdin, capture_output=True, text=True, timeout=timeout,
        check=False,
    )  # fmt: skip


def succeed(folder: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command that must end well."""
    result = run(folder, *arguments, stdin=stdin)
    assert result.returncode == 0, result.stderr
    return result


def start(folder: Path, *arguments: str, log: Path) -> "subprocess.Popen[str]":
    """Start a command in the background; its output goes to `log`."""
    with log.open("w") as file:
        return subprocess.Popen(command(*arguments), cwd=folder, env=ENVIRONMENT, stdout=file, stderr=file, text=True)
