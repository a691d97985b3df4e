"""Running the commands as a user does, in a folder of their own.

In this process where that shows the same, since a new one takes seconds to import its libraries; in one of its own
where that matters: to be killed, to be timed, to be seen at a terminal.
"""

import contextlib
import importlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from click.testing import CliRunner, Result
from safetensors.numpy import load_file

REPOSITORY = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "tests" / "without_torch"), str(REPOSITORY)]),
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONWARNINGS": "ignore",
}


def command(*arguments: str) -> list[str]:
    """`python -m mlxmath <name> …`; a first argument with a dot is another package's module."""
    name, *rest = arguments
    return [sys.executable, "-m", *([name] if "." in name else ["mlxmath", name]), *map(str, rest)]


class Finished(NamedTuple):
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


def run(folder: Path, name: str, *arguments: str, stdin: str | bytes = "") -> Finished:
    """Run a command to its end in `folder`, within this process."""
    main = importlib.import_module(name if "." in name else f"mlxmath.commands.{name.replace('-', '_')}").main
    paths, modules = sys.path[:], set(sys.modules)
    with contextlib.chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)
    sys.path[:] = paths
    for imported in set(sys.modules) - modules:  # the user's own, which another folder may have too
        if (getattr(sys.modules[imported], "__file__", None) or "").startswith(str(folder)):
            del sys.modules[imported]
    return Finished(result.exit_code, result.stdout, result.stderr)


def succeed(folder: Path, name: str, *arguments: str, stdin: str = "") -> Finished:
    """Run a command that must end well."""
    result = run(folder, name, *arguments, stdin=stdin)
    assert result.returncode == 0, result.stderr
    return result


def spawn(folder: Path, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in a process of its own."""
    return subprocess.run(
        command(*arguments), cwd=folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=timeout, check=False,
    )  # fmt: skip


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


def adapters(folder: Path) -> dict[str, bytes]:
    """The weights that a run in `folder` left."""
    return {name: array.tobytes() for name, array in load_file(folder / "adapters" / "adapters.safetensors").items()}


def events(folder: Path) -> list[dict]:
    """What a run in `folder` told programs."""
    return json_lines(folder / "adapters" / "events.jsonl")


def wait_until(sign: Callable[[], object], what: str = "", seconds: float = 60) -> None:
    """Wait until there is a sign."""
    end = time.monotonic() + seconds
    while not sign():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def wait_for_step(folder: Path, step: int, seconds: float = 60) -> None:
    """Wait until a run in `folder` has done a step."""
    path = folder / "adapters" / "events.jsonl"
    reached = [f'"step": {n},' for n in range(step, step + 50)]
    is_there = lambda: path.exists() and any(one in path.read_text() for one in reached)  # noqa: E731
    wait_until(is_there, f"step {step} was not reached", seconds)


def kill_at(folder: Path, step: int, *arguments: str) -> None:
    """Start a run in `folder`, and kill it once it has done a step."""
    process = start(folder, *arguments, log=folder / "log")
    wait_for_step(folder, step)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def invoke(main: Any, *arguments: str, code: int = 0) -> Result:
    """A command that ends with `code`, here and now."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return result


def json_lines(path: Path) -> list[dict]:
    """The rows of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
