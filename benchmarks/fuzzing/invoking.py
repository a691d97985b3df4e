"""Commands run as click runs them, in this process."""

import contextlib
import importlib
import os
import signal
from collections.abc import Iterator, Sequence

from click.testing import CliRunner

CODES = (0, 1, 2, 130, 143)
"""Done; failed; a wrong option; ended by Ctrl-C, by SIGTERM."""
COMMAND_LIMIT_S = 60.0
MAY = frozenset({"subprocess.Popen", "os.posix_spawn", "os.fork", "socket.connect"})
"""Commands start others (a grader, a server), and ask addresses that they are given."""


class WrongEndError(Exception):
    """A command ends as none may."""


def invoke(name: str, arguments: Sequence[str], interrupted_s: float = 0) -> int:
    """Run a command; its exit code.

    Args:
        name: of the command.
        arguments: its own.
        interrupted_s: Ctrl-C comes after so long; 0: never.

    Raises:
        WrongEndError: by its exit code, or what it printed.
    """
    command = importlib.import_module(f"mlxmath.commands.{name.replace('-', '_')}").main
    with _interrupted(interrupted_s):
        result = CliRunner().invoke(command, list(arguments), input="2 + 2?\n")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    check(result.exit_code, result.output)
    return result.exit_code


def check(code: int, output: str) -> None:
    """Raise `WrongEndError` for what no command may end with or print."""
    if code not in CODES:
        raise WrongEndError(f"exit code {code}")
    for word in ("defect", "Traceback (most recent call last)"):
        if word in output:
            raise WrongEndError(f"it prints {word!r}: {output[max(0, output.find(word) - 300) :][:600]}")


@contextlib.contextmanager
def _interrupted(seconds: float) -> Iterator[None]:
    def interrupt(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except KeyboardInterrupt:
        raise WrongEndError("Ctrl-C is not handled") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
