"""Starts the ranks of a run on this machine, as `mlx.launch` does: MLX's ring over free ports."""

import json
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import ring_hostfile
from tests.helpers import ENVIRONMENT, command


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def start_ranks(folder: Path, size: int, *arguments: str) -> list["subprocess.Popen[str]"]:
    """Start a command as `size` ranks (1: without a launcher's variables); output goes to rank-N.log."""
    hosts = ring_hostfile(folder, size)
    found = []
    for rank in range(size):
        own = {} if size == 1 else {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)}
        with (folder / f"rank-{rank}.log").open("w") as log:
            found.append(
                subprocess.Popen(
                    command(*arguments), cwd=folder, env=ENVIRONMENT | own, stdout=log, stderr=log, text=True
                )
            )
    return found


def run_jobs(folder: Path, size: int, jobs: Sequence[dict[str, Any]], timeout_s: float = 240) -> None:
    """Run jobs of `tests.runtime.worker` on `size` ranks."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    processes = start_ranks(folder, size, "tests.runtime.worker", "jobs.json")
    try:
        codes = [process.wait(timeout_s) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * size, "\n".join((folder / f"rank-{rank}.log").read_text() for rank in range(size))


def outcome(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    """What a job left: its exit code and output."""
    found: dict[str, Any] = json.loads((folder / f"{name}.{rank}.json").read_text())
    return found
