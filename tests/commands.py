"""Running the commands as a user does, in a folder of their own: real processes, or this one to spare its imports."""

import contextlib
import importlib
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner, Result

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


def in_terminal(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run a command whose standard error is a terminal; its exit code and what it wrote there, without colors."""
    ours, theirs = pty.openpty()
    environment = ENVIRONMENT | {"TERM": "xterm", "COLUMNS": "100", "LINES": "50"}
    process = subprocess.Popen(
        command(*arguments), cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # the end, as Linux tells it
        while part := os.read(ours, 65536):
            written += part
    os.close(ours)
    return process.wait(timeout=60), re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode()).replace("\r\n", "\n")


def invoke(folder: Path, name: str, *arguments: str, code: int = 0) -> Result:
    """Run a command in `folder` within this process; it must end with `code`."""
    main = importlib.import_module(f"mlxmath.{name}").main
    with contextlib.chdir(folder):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result
