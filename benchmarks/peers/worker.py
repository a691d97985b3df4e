"""What the peers' scripts share. Needs nothing but the standard library, whatever environment it runs in.

A job (JSON) holds: `model` (folder), `rows` ([{"tokens", "num_prompt"}]), `first_batch` (how many of the rows),
`batch_size`, `grad_accumulation_steps`, `num_epochs`, `rank`, `alpha`, `targets`, `learning_rate`, `dtype`, `backend`,
`seed` and `setting` (a peer's own switches).

A result holds: `first_batch_loss` (nats a target, before any step), `epoch_ends_s` (the clock at the end of each
epoch), `targets_per_epoch` (as the trainer itself counts them), memory, versions and `notes`. Or `skipped`: why the
peer cannot run here.
"""

import json
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
Job = dict[str, Any]
Result = dict[str, Any]


def main(run: Callable[[Job], Result], packages: tuple[str, ...]) -> None:
    """Load the BLAS that all share, run the job, write the result. A missing package is a reason to skip."""
    sys.path.insert(0, str(REPOSITORY))
    from mlxmath.runtime.blas import preload

    job = json.loads(Path(sys.argv[1]).read_text())
    blas = None if job.get("setting", {}).get("own_blas") else preload()
    try:
        result = run(job)
    except ImportError as error:
        result = {"skipped": f"{type(error).__name__}: {error}"}
    result["blas"] = blas and str(blas)
    result["versions"] = {package: _version(package) for package in packages}
    result["own_peak_rss_bytes"] = proc_bytes("VmHWM")
    Path(sys.argv[2]).write_text(json.dumps(result))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def proc_bytes(field: str) -> int | None:
    """`VmRSS` or `VmHWM` of this process, where there is a /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), None)


def reset_rss_peak() -> bool:
    """Begin a new VmHWM; False where the system does not let us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def select_mlx_device(job: Job) -> None:
    """Make the job's device MLX's default."""
    import mlx.core as mx

    mx.set_default_device(mx.cpu if job["backend"] == "cpu" else mx.gpu)


class EpochClock:
    """Notes when epochs end. `step()` after each finished optimizer step."""

    def __init__(self, job: Job) -> None:
        self._per_epoch = -(-len(job["rows"]) // (job["batch_size"] * job["grad_accumulation_steps"]))
        self._num_steps = 0
        self.ends_s: list[float] = [time.perf_counter()]

    def step(self) -> None:
        """Count a step."""
        self._num_steps += 1
        if self._num_steps % self._per_epoch == 0:
            self.ends_s.append(time.perf_counter())
