"""How a run is started and read: ours by its front door, a peer by its script in `benchmarks/peers/`."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import REPOSITORY, flags
from benchmarks.processes import Finished, run_process
from benchmarks.workload import EFFECTIVE_BATCH, Workload

RANK, ALPHA, TARGETS, LEARNING_RATE, SEED = 8, 16.0, ("q_proj", "v_proj"), 1e-4, 0
TEMPLATE = "tutor"


@dataclass(frozen=True)
class Conditions:
    """What is the same for all entries of a run."""

    backend: str
    num_epochs: int
    timeout_s: float
    peer_pythons: Mapping[str, str] = field(default_factory=dict)
    """By name, of contestants that have an environment of their own."""
    ours_options: Sequence[str] = ()
    effective_batch: int = EFFECTIVE_BATCH
    """Rows of an optimizer step."""
    check_loss: bool = True
    """Also run ours on the first batch alone, for its loss (the others give theirs on the way)."""


def job_of(
    workload: Workload,
    conditions: Conditions,
    *,
    batch_size: int,
    accumulation: int,
    setting: dict[str, Any],
    first_batch: int = EFFECTIVE_BATCH,
) -> dict[str, Any]:
    """What a script of `benchmarks/peers/` is to do; see `peers/worker.py`."""
    return {
        "model": str(workload.model),
        "rows": [{"tokens": row.tokens, "num_prompt": row.num_prompt} for row in workload.rows],
        "first_batch": first_batch,
        "batch_size": batch_size,
        "grad_accumulation_steps": accumulation,
        "num_epochs": conditions.num_epochs,
        "rank": RANK,
        "alpha": ALPHA,
        "targets": TARGETS,
        "learning_rate": LEARNING_RATE,
        "dtype": workload.dtype,
        "backend": conditions.backend,
        "seed": SEED,
        "setting": setting,
    }


def run_worker(
    script: str, job: dict[str, Any], folder: Path, timeout_s: float, python: Path | str = sys.executable
) -> dict[str, Any]:
    """Run a script of `benchmarks/peers/` on a job."""
    job_path, result_path = folder / "job.json", folder / "result.json"
    job_path.write_text(json.dumps(job))
    command = [python, REPOSITORY / "benchmarks" / "peers" / f"{script}.py", job_path, result_path]
    finished = run_process(command, timeout_s=timeout_s, folder=folder, environment={"HF_HUB_OFFLINE": "1"})
    if finished.failure:
        return {"failed": finished.failure}
    result: dict[str, Any] = json.loads(result_path.read_text())
    if "skipped" in result:
        return result
    memory = memory_of(finished)
    memory["peak_rss_bytes"] = max(result.pop("own_peak_rss_bytes") or 0, memory["peak_rss_bytes"] or 0) or None
    return result | memory


def train(
    workload: Workload,
    folder: Path,
    dataset: Path,
    conditions: Conditions,
    *,
    batch_size: int,
    num_epochs: int,
    accumulation: int | None = None,
    extra: Sequence[str] = (),
) -> tuple[dict[str, Any], Finished]:
    """Run `python -m mlxmath.train`; returns run.json with the events of its steps under `steps`, and the process."""
    command = train_command(
        workload, folder, dataset, conditions.backend, batch_size=batch_size, num_epochs=num_epochs,
        accumulation=accumulation or EFFECTIVE_BATCH // batch_size,
    )  # fmt: skip
    finished = run_process(
        [*command, *conditions.ours_options, *extra],
        timeout_s=conditions.timeout_s,
        folder=REPOSITORY,
        environment={"HF_HUB_OFFLINE": "1"},
    )
    return ({} if finished.failure else record_of(folder)), finished


def record_of(folder: Path) -> dict[str, Any]:
    """run.json of a finished run with the events of its steps under `steps`."""
    record: dict[str, Any] = json.loads((folder / "run.json").read_text())
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    record["steps"] = [event for event in events if event["event"] == "step"]
    return record


def train_command(
    workload: Workload,
    folder: Path,
    dataset: Path,
    backend: str,
    *,
    batch_size: int,
    accumulation: int,
    num_epochs: int,
) -> list[str]:
    """`python -m mlxmath.train` with the settings that all contestants share."""
    options = {
        "model": workload.model,
        "mlx-path": workload.model,
        "dataset": dataset,
        "template": TEMPLATE,
        "cache-dir": workload.folder / "cache",
        "adapter-path": folder,
        "lora-rank": RANK,
        "lora-alpha": ALPHA,
        "lora-targets": ",".join(TARGETS),
        "learning-rate": LEARNING_RATE,
        "batch-size": batch_size,
        "grad-accumulation-steps": accumulation,
        "num-epochs": num_epochs,
        "deduplicate": "off",
        "decontaminate": "none",
        "save-every": 1_000_000,
        "seed": SEED,
        "backend": backend,
    }
    return [sys.executable, "-m", "mlxmath.train", *flags(options)]


def train_help() -> str:
    """`python -m mlxmath.train --help`."""
    result = subprocess.run(
        [sys.executable, "-m", "mlxmath.train", "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return result.stdout


def memory_of(finished: Finished) -> dict[str, Any]:
    found: dict[str, Any] = {"peak_rss_bytes": finished.peak_rss_bytes, "wall_s": round(finished.seconds, 1)}
    if finished.num_processes > 1:
        found |= {"num_processes": finished.num_processes, "peak_pss_bytes": finished.peak_pss_bytes}
    return found
