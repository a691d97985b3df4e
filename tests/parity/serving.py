"""A real `mlx_lm.server` of a folder that `train` has left."""

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers import ENVIRONMENT


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(folder: Path, port: int) -> Iterator[None]:
    """Serve `mlx_model` with `adapters`, as the README says, until the block ends."""
    command = [
        sys.executable, "-m", "mlx_lm", "server", "--model", "mlx_model", "--adapter-path", "adapters", "--port",
        str(port), "--chat-template", (folder / "adapters" / "chat_template.jinja").read_text(),
    ]  # fmt: skip
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=log, stderr=log)
    try:
        for _ in range(240):
            assert process.poll() is None, (folder / "server.log").read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.25)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)
