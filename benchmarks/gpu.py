"""Everything there is to know of a CUDA machine, within minutes, in one JSON.

    python benchmarks/gpu.py [--minutes 8] [--out FILE] [--shapes 0.5b,1.5b,7b] [--dry-run]
    python benchmarks/gpu.py --backend cpu --tiny        (the same on any machine, on tiny shapes)

First the tests of the backend and of what runs on it, then for each shape LoRA training in bfloat16 (random weights,
made here, removed afterwards): mlxmath against mlx_lm.lora and torch + peft, as `bench_train.py` does it. Each part has
a limit of its own, what time is left is shared among the shapes that are left, and the JSON is written anew after every
run, so that being cut off costs one part. A package that is missing here means a contestant that is skipped, with the
reason.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

from mlxmath.backends.blas import preload  # noqa: E402

preload()

from benchmarks.bench_train import PACKAGES, Result, measure_shape, show  # noqa: E402
from benchmarks.common import (  # noqa: E402
    DEMO_ROWS,
    GSM8K,
    RESULTS,
    exit_on_sigterm,
    gigabytes,
    machine,
    run_process,
    save_json,
)
from benchmarks.contestants import TEMPLATE, Conditions, entries  # noqa: E402
from benchmarks.workload import SHAPES, Shape, make_workload  # noqa: E402

TESTS = {"device": (("backends", "kernels"), 60.0), "training": (("lora", "models", "objectives", "training"), 60.0)}
"""Groups of folders of `tests/`, and the seconds that each group may take."""
RUN_S = {"0.5b": 60.0, "1.5b": 75.0, "7b": 110.0}
NUM_ROWS = {"0.5b": 128, "1.5b": 64, "7b": 32}
LARGE_BYTES = 6e9
"""Models from this size on are loaded once a contestant: the loss of the first batch is left out for ours."""


def main() -> None:
    """Run all parts and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="time for everything (default: 8)")
    parser.add_argument("--backend", default="cuda", choices=("cuda", "cpu", "metal"))
    parser.add_argument("--shapes", default="0.5b,1.5b,7b", help="which, in this order (default: 0.5b,1.5b,7b)")
    parser.add_argument("--contestants", default="ours,mlx_lm,torch")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to see that everything works")
    parser.add_argument("--no-tests", action="store_true", help="leave the tests out")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    parser.add_argument("--data", type=Path, help="problems and solutions (default: GSM8K, else the bundled problems)")
    parser.add_argument("--work", type=Path, help="folder for the models (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/gpu.json, with --tiny gpu_tiny.json")
    options = parser.parse_args()
    exit_on_sigterm()
    names = options.shapes.split(",")
    if unknown := set(names) - set(SHAPES):
        parser.error(f"--shapes: {', '.join(sorted(unknown))} is unknown; there are {', '.join(SHAPES)}")
    shapes = [tiny(SHAPES[name]) if options.tiny else SHAPES[name] for name in names]
    dtype = "float32" if options.backend == "cpu" else "bfloat16"
    chosen = entries(options.contestants.split(","), [8], [8])
    out = options.out or RESULTS / ("gpu_tiny.json" if options.tiny else "gpu.json")
    if options.dry_run:
        print(f"{options.minutes:g} minutes on {options.backend}, {dtype}, -> {out}")
        if not options.no_tests:
            for folders, limit_s in TESTS.values():
                print(f"  tests of {', '.join(folders)}: at most {limit_s:.0f} s")
        for name, shape in zip(names, shapes, strict=True):
            size = gigabytes(shape.num_parameters * (4 if dtype == "float32" else 2))
            runs = "; ".join(entry.name for entry in chosen)
            print(f"  {shape.title}, {size} of random weights, {NUM_ROWS.get(name, 32)} rows twice, at most "
                  f"{RUN_S.get(name, 60):.0f} s a run: matrix products alone; {runs}")  # fmt: skip
        return

    deadline = time.monotonic() + 60 * options.minutes

    def left_s() -> float:
        return deadline - time.monotonic()

    record: Result = {
        "question": "tests and LoRA training on a GPU",
        "backend": options.backend,
        "gpu": gpu(),
        "machine": machine((*PACKAGES, "mlx-cuda-12", "mlx-cuda-13", "datasets")),
        "minutes": options.minutes,
        "shapes": {},
    }
    save_json(out, record)
    if not options.no_tests:
        record["tests"] = {}
        for group, (folders, limit_s) in TESTS.items():
            record["tests"][group] = found = run_tests(folders, min(limit_s, left_s()))
            counts = {name: value for name, value in found.items() if name != "failed"}
            print(f"tests of {', '.join(folders)}: {counts}", flush=True)
            save_json(out, record)
    work = options.work or Path(tempfile.mkdtemp(prefix="mlxmath-gpu-"))
    data = options.data or (GSM8K if GSM8K.exists() else DEMO_ROWS)
    try:
        for i, (name, shape) in enumerate(zip(names, shapes, strict=True)):
            ends = time.monotonic() + left_s() / (len(names) - i)
            part = run_shape(name, shape, work, data, options.backend, dtype, chosen, record, out, ends)
            print(f"{name}: {part.get('skipped') or 'done'}; {left_s():.0f} s left", flush=True)
    finally:
        if options.work is None:
            shutil.rmtree(work, ignore_errors=True)
    record["seconds"] = round(60 * options.minutes - left_s(), 1)
    save_json(out, record)
    print(f"\n-> {out} ({record['seconds']:.0f} s)")


def tiny(shape: Shape) -> Shape:
    """The same kind of model, next to nothing in size."""
    return replace(shape, hidden=64, layers=2, heads=4, kv_heads=2, intermediate=160, vocab=2_000)


def gpu() -> str | None:
    """Name, memory and driver of the GPU."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def run_tests(names: tuple[str, ...], limit_s: float) -> dict[str, Any]:
    """Tests on whatever MLX's default device is here: counts, and what failed and why."""
    folders = [str(folder) for name in names if (folder := REPOSITORY / "tests" / name).is_dir()]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
        command += [f"--junitxml={report}", *folders]
        finished = run_process(command, timeout_s=limit_s, folder=REPOSITORY)
        if not report.exists():
            kind = "skipped" if "No module named pytest" in finished.output else "cut_off"
            return {kind: finished.failure, "output": finished.output[-1500:]}
        suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    found: dict[str, Any] = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    found["seconds"] = round(finished.seconds, 1)
    found["failed"] = [
        {"test": f"{case.get('classname')}.{case.get('name')}", "message": (problem.get("message") or "")[:500]}
        for case in suite.iter("testcase")
        for problem in case
        if problem.tag in ("failure", "error")
    ]
    return found


def run_shape(
    name: str,
    shape: Shape,
    work: Path,
    data: Path,
    backend: str,
    dtype: str,
    chosen: list[Any],
    record: Result,
    out: Path,
    ends: float,
) -> Result:
    """Make the model of a shape, measure all contestants on it until `ends` (monotonic seconds), remove it."""
    num_bytes = shape.num_parameters * (4 if dtype == "float32" else 2)
    work.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(work).free < 1.5 * num_bytes:
        part: Result = {"skipped": f"{gigabytes(1.5 * num_bytes)} are not free in {work}"}
        record["shapes"][name] = part
        return part
    started = time.monotonic()
    workload = make_workload(shape, work, data, dtype=dtype, num_rows=NUM_ROWS.get(name, 32), template=TEMPLATE)
    made_s = round(time.monotonic() - started, 1)
    print(f"\n{shape.title}: made in {made_s} s", flush=True)
    conditions = Conditions(
        backend, 2, RUN_S.get(name, 60.0), ours_options=(), check_loss=workload.weights_bytes < LARGE_BYTES
    )

    def save(part: Result) -> None:
        record["shapes"][name] = part | {"made_s": made_s, "dtype": dtype}
        save_json(out, record)

    try:
        part = measure_shape(
            workload, chosen, conditions, save=save, ceiling_s=2.0, time_left_s=lambda: ends - time.monotonic()
        )
        show(workload, part)
    finally:
        shutil.rmtree(workload.folder, ignore_errors=True)
    return part


if __name__ == "__main__":
    main()
