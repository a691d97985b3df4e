"""A real `mlxmath serve`, and a terminal for `mlxmath chat`."""

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers import ENVIRONMENT, command, start, wait_until


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[str]:
    """Serve at a free port until the block ends; gives the URL. Ctrl-C must end it well."""
    log = folder / "serve.log"
    process = start(folder, "serve", "--port", "0", *arguments, log=log)
    try:
        wait_until(lambda: "serving at" in log.read_text() or process.poll() is not None, "it does not serve")
        found = re.search(r"serving at (\S+):", log.read_text())
        assert found, log.read_text()
        yield found[1]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0, log.read_text()
        assert log.read_text().splitlines()[-1] == "stopped"
    finally:
        process.kill()
        process.wait()


class Terminal:
    """A command at a terminal of its own."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command(*arguments), cwd=folder, env=ENVIRONMENT | {"TERM": "dumb"} | environment, stdin=theirs,
            stdout=theirs, stderr=theirs, preexec_fn=lambda: os.login_tty(theirs), pass_fds=(theirs,),
        )  # fmt: skip
        os.close(theirs)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def until(self, text: str, seconds: float = 60) -> str:
        """What is shown up to and with a text, after what was read before."""
        end = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < end, f"{text!r} did not come: {self.shown!r}"
            if select.select([self._ours], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    self.shown += os.read(self._ours, 65536).decode(errors="replace").replace("\r\n", "\n")
        found, _, self.shown = self.shown.partition(text)
        return found + text

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)
