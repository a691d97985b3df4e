"""The parts of `gpu.py`: each gives what it found, or why it found nothing, within its time."""

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.bench_grpo import measure
from benchmarks.common import REPOSITORY, gigabytes
from benchmarks.gpu_plan import GENERATION, LARGE_BYTES, Scale, training_entries
from benchmarks.processes import run_process
from benchmarks.runs import ALPHA, RANK, TARGETS, Conditions, run_worker
from benchmarks.training import Result, measure_shape, show
from benchmarks.workload import Workload

LEAST_S = 8.0
"""A process is not started with less time than this."""


def gpu() -> str | None:
    """Name, memory and driver of the GPU."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


_PYTEST = """
import os, signal, sys, threading, pytest
timer = threading.Timer(float(sys.argv[1]), os.kill, (os.getpid(), signal.SIGINT))
timer.daemon = True
timer.start()
raise SystemExit(pytest.main(sys.argv[2:]))
"""
"""pytest that interrupts itself after some seconds, so that there is a report of the tests until then."""
_REPORT_S = 8.0
_INTERRUPTED = 2
"""pytest's exit code."""


def unavailable(backend: str) -> str | None:
    """Why the backend cannot be used here; asked in a process of its own, which gives the GPU back."""
    ask = f"from mlxmath.runtime.device import BACKENDS; print(BACKENDS[{backend!r}]().unavailable() or '')"
    finished = run_process([sys.executable, "-c", ask], timeout_s=120, folder=REPOSITORY)
    return finished.failure or finished.output.strip() or None


def run_tests(names: tuple[str, ...], limit_s: float) -> Result:
    """Tests on whatever MLX's default device is here: counts, and what failed, was skipped, and why."""
    places = [str(place) for name in names if (place := REPOSITORY / "tests" / name).exists()]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-c", _PYTEST, str(max(1.0, limit_s - _REPORT_S))]
        command += ["-q", "-p", "no:cacheprovider", "-m", "not slow", f"--junitxml={report}", *places]
        finished = run_process(command, timeout_s=limit_s, folder=REPOSITORY)
        if not report.exists():
            kind = "skipped" if "No module named 'pytest'" in finished.output else "cut_off"
            return {kind: finished.failure, "output": finished.output[-1500:]}
        suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    found: Result = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    found["seconds"] = round(finished.seconds, 1)
    if finished.returncode == _INTERRUPTED:
        found["cut_off"] = f"after {finished.seconds:.0f} s"
    for outcome, tags in {"failed": ("failure", "error"), "why_skipped": ("skipped",)}.items():
        found[outcome] = [
            {"test": f"{case.get('classname')}.{case.get('name')}", "message": (problem.get("message") or "")[:500]}
            for case in suite.iter("testcase")
            for problem in case
            if problem.tag in tags
        ]
    return found


@dataclass(frozen=True)
class Place:
    """Where and how everything of a call runs."""

    backend: str
    scale: Scale
    contestants: tuple[str, ...]
    left_s: Callable[[], float]
    """Seconds that are left to the part at hand."""

    def worker(self, script: str, job: dict[str, Any], most_s: float) -> Result:
        """A script of `benchmarks/peers/` in a process of its own."""
        limit_s = min(most_s, self.left_s())
        if limit_s < LEAST_S:
            return {"skipped": "no time left"}
        with tempfile.TemporaryDirectory(prefix="mlxmath-gpu-") as folder:
            return run_worker(script, {"backend": self.backend} | job, Path(folder), limit_s)


def parity(place: Place) -> Result:
    """The device against the CPU on all objectives."""
    return place.worker("parity", {"sizes": dict(place.scale.parity_sizes)}, place.scale.parity_s)


def train(place: Place, workload: Workload, bits: int, dense: Path, save: Callable[[Result], None]) -> Result:
    """LoRA training of all contestants: tokens/s, memory, share of the matrix products' rate."""
    entries = training_entries(place.contestants, place.scale, bits, dense)
    conditions = Conditions(
        place.backend, 2, dict(place.scale.run_s)[workload.shape.name],
        ours_options=("--quantize", str(bits), "--group-size", str(place.scale.group_size)) if bits == 4 else (),
        effective_batch=place.scale.effective_batch,
        check_loss=workload.weights_bytes < LARGE_BYTES,
    )  # fmt: skip
    part = measure_shape(
        workload, entries, conditions, save=save, ceiling_s=8 * place.scale.piece_s, time_left_s=place.left_s,
    )  # fmt: skip
    show(workload, part)
    return part


def profile(place: Place, workload: Workload) -> Result:
    """The pieces of a step."""
    rows, width = place.scale.profile
    job = {
        "model": str(workload.model), "rank": RANK, "alpha": ALPHA, "targets": TARGETS, "rows": rows, "width": width,
        "seconds": place.scale.piece_s,
    }  # fmt: skip
    found = place.worker("step_profile", job, dict(place.scale.run_s)[workload.shape.name])
    for name, value in found.get("milliseconds", {}).items():
        print(f"  {name}: {value:,.2f} ms", flush=True)
    return found


def grpo(place: Place, workload: Workload) -> Result:
    """`mlxmath grpo`, after its first step: completions a second, and how long drawing and learning take."""
    scale = place.scale
    few = replace(workload, rows=workload.rows[: max(1, scale.prompts // 8)])
    few.dataset.write_text("".join(f"{line}\n" for line in workload.dataset.read_text().splitlines()[: len(few.rows)]))
    limit_s = min(dict(scale.run_s)[workload.shape.name], place.left_s())
    if limit_s < LEAST_S:
        return {"skipped": "no time left"}
    options = Namespace(backend=place.backend, timeout=limit_s, ours_options="")
    found = measure("ours", 0, {}, few, scale.max_tokens, options)
    print(f"  mlxmath grpo: {found}", flush=True)
    return found


def generate(place: Place, workload: Workload, save: Callable[[Result], None]) -> Result:
    """New tokens a second: evaluation and rollouts, and mlx_lm."""
    scale = place.scale
    prompts = [row.tokens[: row.num_prompt] for row in workload.rows[: scale.prompts]]
    found: Result = {}
    for who, name in GENERATION.items():
        if who.startswith("mlx_lm") and "mlx_lm" not in place.contestants:
            continue
        job = {
            "model": str(workload.model), "who": who, "prompts": prompts, "max_tokens": scale.max_tokens,
            "num_generations": scale.num_generations, "concurrency": scale.concurrency,
        }  # fmt: skip
        found[who] = place.worker("generation", job, dict(scale.run_s)[workload.shape.name])
        rate, peak = found[who].get("tokens_per_s"), found[who].get("peak_device_bytes")
        reason = found[who].get("skipped") or found[who].get("failed")
        print(f"  {name}: {f'{rate:,.0f} tokens/s, {gigabytes(peak)}' if rate else reason}", flush=True)
        save(found)
    return found


def quantized(place: Place, workload: Workload, bits: int) -> Workload | str:
    """The same workload on quantized weights, or why there is none."""
    folder = workload.folder / f"{bits}-bit"
    job = {
        "model": str(workload.model), "target": str(folder / "model"), "bits": bits,
        "group_size": place.scale.group_size,
    }  # fmt: skip
    made = place.worker("quantize", job, 60.0)
    if "weights_bytes" not in made:
        return str(made.get("skipped") or made.get("failed"))
    result = replace(workload, folder=folder, stored_bytes=made["weights_bytes"])
    for source, target in ((workload.dataset, result.dataset), (workload.first_batch, result.first_batch)):
        target.write_bytes(source.read_bytes())
    return result
