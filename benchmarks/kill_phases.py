"""The part of `kill_ranks.py` that loses a rank before training begins."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import REPOSITORY, ring_hostfile

WORKER = REPOSITORY / "benchmarks" / "peers" / "lost_rank.py"
PATIENCE_S = 150.0


@dataclass(frozen=True)
class Loss:
    """A rank that is lost, where and how."""

    phase: str
    how: str
    size: int
    lost: int | None
    held_s: float = 0.0
    """Seconds for which the other ranks run no Python then, as if they loaded a library."""
    launcher: bool = False
    """Whether mlx.launch starts them; it ends all when one fails."""
    limit_s: float = 10.0


LOSSES = (
    Loss("importing", "SIGKILL", 2, 0, launcher=True),
    Loss("importing", "SIGKILL", 3, 2, launcher=True),
    Loss("forming", "SIGKILL", 2, 1),
    Loss("forming", "SIGKILL", 3, 0),
    Loss("forming", "SIGSTOP", 2, 1, limit_s=35.0),
    Loss("converting", "SIGKILL", 2, 0),
    Loss("converting", "SIGSTOP", 2, 0),
    Loss("converting", "SIGKILL", 3, 1),
    Loss("preparing", "SIGKILL", 2, 0),
    Loss("preparing", "SIGSTOP", 3, 1),
    Loss("loading", "SIGKILL", 2, 1, held_s=20.0),
    Loss("loading", "SIGKILL", 3, 0, held_s=20.0),
    Loss("loading", "SIGSTOP", 2, 0),
    Loss("converting", "", 2, None, held_s=15.0),
)
"""With the last one nobody is lost: a rank that is merely busy must not be taken for one."""


def lose_early(loss: Loss, folder: Path, arguments: Sequence[str], environment: dict[str, str]) -> dict[str, Any]:
    """Start a run in `folder`, lose a rank of it, and see how long the others take to end and what they say."""
    hosts = ring_hostfile(folder, loss.size)
    job = json.dumps(
        {"lost": loss.lost, "phase": loss.phase, "signal": loss.how, "held_s": loss.held_s, "arguments": [*arguments]}
    )
    command = [sys.executable, str(WORKER), job]
    processes: dict[int, subprocess.Popen[bytes]] = {}
    if loss.launcher:
        first = json.loads(hosts.read_text())[0][0].rpartition(":")[2]
        launch = [str(Path(sys.executable).parent / "mlx.launch"), "-n", str(loss.size), "--backend", "ring",
                  "--starting-port", first, "--", *command]  # fmt: skip
        processes[-1] = _start(launch, folder, "launch", environment)
    else:
        for rank in range(loss.size):
            own = {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)}
            processes[rank] = _start(command, folder, str(rank), environment | own)
    try:
        codes = {rank: process.wait(PATIENCE_S) for rank, process in processes.items() if rank != loss.lost}
        ended = time.time()
    finally:
        for process in processes.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
    said = {path.stem: path.read_text() for path in sorted(folder.glob("*.log"))}
    if loss.lost is None:
        return asdict(loss) | {"accepted": set(codes.values()) == {0}, "said": {}}
    seconds = ended - float((folder / "lost-at").read_text())
    own = {name: text.splitlines()[-loss.size :] for name, text in said.items() if name != str(loss.lost)}
    named = all(f"rank {loss.lost}" in " ".join(lines[-1:] if not loss.launcher else lines) for lines in own.values())
    ends = loss.launcher or all(code != 0 for code in codes.values())
    return asdict(loss) | {
        "others_ended_s": round(seconds, 1), "said": own, "codes": [*codes.values()],
        "accepted": named and ends and seconds < loss.limit_s,
    }  # fmt: skip


def _start(command: Sequence[str], folder: Path, name: str, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    with (folder / f"{name}.log").open("w") as log:
        return subprocess.Popen(
            command, cwd=folder, env=os.environ | environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
