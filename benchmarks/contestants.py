"""Who takes part in the training benchmarks, at which settings, and how each is run and measured.

Ours runs through its front door, `python -m mlxmath.train`, as a user would; the others through `benchmarks/peers/`.
Every run is a fresh process that trains `num_epochs` times over the same rows. The first epoch is the warm-up (it
compiles, it grows the caches) and the others are timed, from the end of the first to the end of the last, all in.
"""

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.common import REPOSITORY, Finished, run_process
from benchmarks.workload import EFFECTIVE_BATCH, Workload

RANK, ALPHA, TARGETS, LEARNING_RATE, SEED = 8, 16.0, ("q_proj", "v_proj"), 1e-4, 0
TEMPLATE = "tutor"
PEERS = {"mlx_lm": "mlx_lm_lora", "torch": "torch_peft", "unsloth": "unsloth_mlx"}
NAMES = ("ours", *PEERS)
SHOWN = {"ours": "mlxmath", "mlx_lm": "mlx_lm.lora", "torch": "torch + peft", "unsloth": "Unsloth MLX"}


@dataclass(frozen=True)
class Entry:
    """A contestant at one setting."""

    contestant: str
    label: str
    batch_size: int
    setting: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For tables."""
        return f"{SHOWN[self.contestant]}, {self.label}"


@dataclass(frozen=True)
class Conditions:
    """What is the same for all entries of a run."""

    backend: str
    num_epochs: int
    timeout_s: float
    peer_python: Path | None = None
    ours_options: Sequence[str] = ()
    effective_batch: int = EFFECTIVE_BATCH
    """Rows of an optimizer step."""
    check_loss: bool = True
    """Also run ours on the first batch alone, for its loss (the others give theirs on the way)."""


def entries(
    names: Sequence[str], batches: Sequence[int], ours_batches: Sequence[int], torch_blas: Sequence[str] = ("own",)
) -> list[Entry]:
    """All settings of the contestants in `names`; those that differ in batch size only are tried at each of `batches`.

    mlx_lm.lora is always tried at batch 4, its default. torch runs on its own BLAS unless `torch_blas` says
    "preloaded": OpenBLAS's idle threads spin, and torch's OpenMP threads then wait for a core at every barrier.
    """
    found: list[Entry] = []
    if "ours" in names:
        found += [Entry("ours", f"batch {size}", size) for size in ours_batches]
    if "mlx_lm" in names:
        found += [Entry("mlx_lm", f"batch {size}", size) for size in sorted({4, *batches})]
    if "unsloth" in names:
        found.append(Entry("unsloth", "default (batch 2, checkpointing)", 2, {"grad_checkpoint": True}))
        found += [
            Entry("unsloth", f"batch {size}, no checkpointing", size, {"grad_checkpoint": False})
            for size in sorted({2, *batches} - {4, 8})
        ]
    if "torch" in names:
        for blas in torch_blas:
            label = ", OpenBLAS preloaded" if blas == "preloaded" else ""
            found += [Entry("torch", f"batch {size}{label}", size, {"own_blas": blas == "own"}) for size in batches]
    return found


def default_ours_batches(batches: Sequence[int]) -> list[int]:
    """Where `mlxmath train` plans its micro-batches by itself it is given the whole effective batch, once."""
    return [EFFECTIVE_BATCH] if "--batching" in train_help() else list(batches)


def train_help() -> str:
    """`python -m mlxmath.train --help`."""
    result = subprocess.run(
        [sys.executable, "-m", "mlxmath.train", "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return result.stdout


def measure(entry: Entry, workload: Workload, conditions: Conditions) -> dict[str, Any]:
    """Run an entry. The result has `tokens_per_s` and memory, or `skipped`, or `failed` with the reason."""
    with tempfile.TemporaryDirectory(prefix="mlxmath-bench-") as folder:
        run = _run_ours if entry.contestant == "ours" else _run_peer
        result = run(entry, workload, conditions, Path(folder))
    shown = {"contestant": entry.contestant, "setting": entry.label, "batch_size": entry.batch_size}
    if "failed" in result or "skipped" in result:
        return shown | result
    targets = result.pop("targets_per_epoch")
    seconds = result["epoch_ends_s"][-1] - result["epoch_ends_s"][0]
    epochs = len(result["epoch_ends_s"]) - 1
    result["epoch_ends_s"] = [round(end - result["epoch_ends_s"][0], 3) for end in result["epoch_ends_s"]]
    if round(targets) != workload.num_targets:  # it dropped or repeated rows: count what it trained
        result["notes"].append(f"trained {targets:,.0f} targets an epoch, not {workload.num_targets:,}")
    tokens = workload.num_tokens * targets / workload.num_targets
    result["tokens_per_s"] = epochs * tokens / seconds
    peak = result["peak_device_bytes"]
    if peak is not None:
        result["above_weights_bytes"] = peak - workload.weights_bytes
    elif "rss_above_start_bytes" in result:
        result["above_weights_bytes"] = result["rss_above_start_bytes"]
    return shown | result


def _accumulation(entry: Entry, conditions: Conditions) -> int:
    rows = conditions.effective_batch
    assert rows % entry.batch_size == 0, f"{rows} rows do not divide by {entry.batch_size}"
    return rows // entry.batch_size


def _memory(finished: Finished) -> dict[str, Any]:
    found: dict[str, Any] = {"peak_rss_bytes": finished.peak_rss_bytes, "wall_s": round(finished.seconds, 1)}
    if finished.num_processes > 1:
        found |= {"num_processes": finished.num_processes, "peak_pss_bytes": finished.peak_pss_bytes}
    return found


def _run_peer(entry: Entry, workload: Workload, conditions: Conditions, folder: Path) -> dict[str, Any]:
    python: Path | str = sys.executable
    if entry.contestant == "unsloth":
        if conditions.peer_python is None:
            return {"skipped": "no --peer-python with unsloth_zoo was given"}
        python = conditions.peer_python
    job = job_of(
        workload, conditions, batch_size=entry.batch_size, accumulation=_accumulation(entry, conditions),
        setting=entry.setting,
    )  # fmt: skip
    return run_worker(PEERS[entry.contestant], job, folder, conditions.timeout_s, python)


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
    memory = _memory(finished)
    memory["peak_rss_bytes"] = max(result.pop("own_peak_rss_bytes") or 0, memory["peak_rss_bytes"] or 0) or None
    return result | memory


def _run_ours(entry: Entry, workload: Workload, conditions: Conditions, folder: Path) -> dict[str, Any]:
    """The timed run, and before it one step on the first batch alone, for its loss."""
    found: dict[str, Any] = {}
    left_s = conditions.timeout_s
    if conditions.check_loss:
        first, finished = train(
            workload, folder / "first", workload.first_batch, conditions,
            batch_size=entry.batch_size, num_epochs=1, accumulation=-(-EFFECTIVE_BATCH // entry.batch_size),
        )  # fmt: skip
        if finished.failure:
            return {"failed": finished.failure}
        found["first_batch_loss"] = first["steps"][0]["loss"]
        left_s -= finished.seconds
    run, finished = train(
        workload, folder / "run", workload.dataset, replace(conditions, timeout_s=left_s),
        batch_size=entry.batch_size, num_epochs=conditions.num_epochs, accumulation=_accumulation(entry, conditions),
    )  # fmt: skip
    if finished.failure:
        return {"failed": finished.failure}
    ends: dict[int, float] = {}
    targets: dict[int, int] = {}
    tokens: dict[int, int] = {}
    for step in run["steps"]:
        ends[step["epoch"]] = step["time"]
        targets[step["epoch"]] = targets.get(step["epoch"], 0) + step["targets"]
        tokens[step["epoch"]] = tokens.get(step["epoch"], 0) + step["tokens"]
    notes = []
    if set(tokens.values()) != {workload.num_tokens}:
        notes.append(f"tokens of each epoch: {sorted(tokens.values())}, expected {workload.num_tokens}")
    return found | {
        "epoch_ends_s": [ends[epoch] for epoch in sorted(ends)],
        "targets_per_epoch": targets[max(targets)],
        "peak_device_bytes": run["peak_bytes"],
        "device": run["device"],
        "options": list(conditions.ours_options),
        "notes": notes,
        **_memory(finished),
    }


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
    return [
        sys.executable,
        "-m",
        "mlxmath.train",
        *(x for name, value in options.items() for x in (f"--{name}", str(value))),
    ]


def split_options(text: str) -> list[str]:
    """`--ours-options "--a 1 --b"` as a list."""
    return shlex.split(text)
