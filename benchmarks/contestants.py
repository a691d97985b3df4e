"""Who takes part in the training benchmarks, at which settings, and how each is measured.

Ours runs through its front door, `python -m mlxmath.train`, as a user would; the others through `benchmarks/peers/`.
Every run is a fresh process that trains `num_epochs` times over the same rows. The first epoch is the warm-up (it
compiles, it grows the caches) and the others are timed, from the end of the first to the end of the last, all in.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.runs import Conditions, job_of, memory_of, run_worker, train, train_help
from benchmarks.workload import EFFECTIVE_BATCH, Workload

PEERS = {
    "mlx_lm": "mlx_lm_lora",
    "torch": "torch_peft",
    "unsloth": "unsloth_mlx",
    "train_perf": "train_perf",
    "mlx_lm_lora": "sft_mlx_lm_lora",
}
NAMES = ("ours", *PEERS)
SHOWN = {
    "ours": "mlxmath",
    "mlx_lm": "mlx_lm.lora",
    "torch": "torch + peft",
    "unsloth": "Unsloth MLX",
    "train_perf": "mlx-train-perf",
    "mlx_lm_lora": "mlx-lm-lora",
}
APART = ("unsloth", "train_perf", "mlx_lm_lora")
"""Peers that ask for an environment of their own."""


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


def entries(
    names: Sequence[str], batches: Sequence[int], ours_batches: Sequence[int], torch_blas: Sequence[str] = ("own",)
) -> list[Entry]:
    """All settings of the contestants in `names`; those that differ in batch size only are tried at each of `batches`.

    mlx_lm.lora, and what is made after it, is always tried at batch 4, its default. torch runs on its own BLAS unless
    `torch_blas` says "preloaded": OpenBLAS's idle threads spin, and torch's OpenMP threads then wait for a core at
    every barrier.
    """
    found: list[Entry] = []
    if "ours" in names:
        found += [Entry("ours", f"batch {size}", size) for size in ours_batches]
    for name in ("mlx_lm", "train_perf", "mlx_lm_lora"):
        if name in names:
            found += [Entry(name, f"batch {size}", size) for size in sorted({4, *batches})]
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


def _run_peer(entry: Entry, workload: Workload, conditions: Conditions, folder: Path) -> dict[str, Any]:
    python = conditions.peer_pythons.get(entry.contestant, sys.executable)
    if entry.contestant in APART and python == sys.executable:
        return {"skipped": f"no --peer-python {entry.contestant}=PATH was given"}
    job = job_of(
        workload, conditions, batch_size=entry.batch_size, accumulation=_accumulation(entry, conditions),
        setting=entry.setting,
    )  # fmt: skip
    return run_worker(PEERS[entry.contestant], job, folder, conditions.timeout_s, python)


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
        **memory_of(finished),
    }
