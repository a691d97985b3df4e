"""How fast are matrix products, and training, on a CPU by each BLAS there is, and does mlxmath choose well?

    python benchmarks/bench_blas.py [--rows N] [--package FOLDER] [--mkl FOLDER] [--earlier FOLDER] [--only WAY,...]

Ways: "chosen" by mlxmath; each library alone, with its fastest kernels; the first OpenBLAS with each set of kernels by
hand (OPENBLAS_CORETYPE); "unknown": chosen where a library's own choice is its oldest kernels, as on a processor newer
than itself (a stand-in asks for these where mlxmath asks for none); "fallback": these kernels, as a user may set them;
"earlier": the same in the checkout --earlier; "none": no library, so that linear layers go through NumPy and the rest
through MLX's own. --package is a folder with scipy_openblas32, --mkl one with libmkl_rt.

Each way in two processes of its own: one product of 1,024 rows by MLX, the best of many, and `mlxmath train` on the 58M
shape, of which the last of three epochs counts. Nothing is remembered from way to way: "start" is what the first of the
two takes to measure, choose and load. Writes benchmarks/results/blas.json.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import REPOSITORY, command_line, machine, save_json, show_table
from benchmarks.processes import run_process
from benchmarks.runs import TEMPLATE, record_of, train_command
from benchmarks.shapes import SHAPES
from benchmarks.workload import Workload, make_workload
from mlxmath.runtime import blas_trials
from mlxmath.runtime.blas_trials import VARIABLE

ROWS, OLDEST, EPOCHS = 1024, "Prescott", 3
HOOKS = f"""
import os, sys
from mlxmath.runtime import blas, blas_trials
way, real = os.environ["WAY"], blas_trials.libraries
if way.startswith("/"):
    blas_trials.libraries = lambda: [way]
if way == "none":
    blas_trials.libraries = blas.libraries = lambda: []
if way == "unknown":
    trial = blas_trials.trial
    def of_old(library, asked):
        found = trial(library, asked or "{OLDEST}")
        return found and type(found)(library, asked, found.kernels, found.flops_per_s)
    blas_trials.trial = of_old
"""
PRODUCT = HOOKS + f"""
import time
start = time.perf_counter()
found = blas.preload()
seconds = time.perf_counter() - start
import mlx.core as mx
mx.set_default_device(mx.cpu)
x = mx.random.normal(({ROWS}, {ROWS}))
mx.eval(x @ x)
best, end = float("inf"), time.perf_counter() + 1
while time.perf_counter() < end:
    begin = time.perf_counter()
    mx.eval(x @ x)
    best = min(best, time.perf_counter() - begin)
print({2 * ROWS**3} / best, seconds, found)
"""  # fmt: skip
TRAIN = HOOKS + "from mlxmath.commands.train import main; main(prog_name='train')"


def main() -> None:
    """Measure and write the results."""
    parser = command_line(__doc__, "blas.json", "data", "work")
    parser.add_argument("--rows", type=int, default=8, help="rows to train on (default: 8)")
    parser.add_argument("--package", type=Path, help="folder that holds scipy_openblas32, unless it is installed")
    parser.add_argument("--mkl", type=Path, help="folder that holds libmkl_rt, unless it is installed")
    parser.add_argument("--earlier", type=Path, help="checkout of an earlier version")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each, in turns; the fastest counts (default: 1)")
    parser.add_argument("--only", help="some of the ways (default: all); the file keeps the others")
    options = parser.parse_args()
    paths = {"PYTHONPATH": options.package, "LD_LIBRARY_PATH": options.mkl}
    for name, folder in paths.items():
        if folder:
            os.environ[name] = f"{folder.resolve()}:{os.environ.get(name, '')}"
            sys.path.append(str(folder))
    found = blas_trials.libraries()
    by_hand = [path for path in found if "libopenblas" in path][:1]
    _, flags = blas_trials.processor()
    kernels = [name for name, needed in blas_trials.KERNELS.items() if by_hand and needed <= flags]
    ways: dict[str, dict[str, str]] = {"chosen": {}} | {Path(path).name: {"WAY": path} for path in found}
    ways |= {f"{name} kernels": {"WAY": by_hand[0], VARIABLE: name} for name in kernels}
    ways |= {"unknown": {}, "fallback": {VARIABLE: OLDEST}} if by_hand else {}
    ways |= {"earlier": {VARIABLE: OLDEST, "PYTHONPATH": str(options.earlier)}} if options.earlier and by_hand else {}
    ways["none"] = {}
    names = options.only.split(",") if options.only else list(ways)
    shape = SHAPES["small"]
    workload = make_workload(
        shape, options.work, options.data, dtype="float32", num_rows=options.rows, template=TEMPLATE
    )
    record: dict[str, Any] = {"question": __doc__.splitlines()[0], "machine": machine(("mlx", "numpy")), "ways": {}}
    if options.only and options.out.exists():
        record["ways"] = json.loads(options.out.read_text())["ways"]
    record |= {"product_rows": ROWS, "training_rows": options.rows, "libraries": found}
    for name in names * options.repeat:
        with tempfile.TemporaryDirectory() as cache:
            environment = {"XDG_CACHE_HOME": cache, "WAY": name} | ways[name]
            result = ({} if name == "earlier" else product(environment)) | train(workload, environment, name)
        if (before := record["ways"].get(name, {})) and before["tokens_per_s"] > result["tokens_per_s"]:
            result = before
        record["ways"][name] = result
        print(name, result, flush=True)
        if {"chosen", "none"} <= record["ways"].keys():
            record["times"] = record["ways"]["chosen"]["flops_per_s"] / record["ways"]["none"]["flops_per_s"]
        save_json(options.out, record)
    show_table(
        "by each BLAS", ("way", "library", "GFLOP/s", "tokens/s", "start"),
        [(name, one.get("library", ""), f"{one.get('flops_per_s', 0) / 1e9:.0f}", f"{one['tokens_per_s']:.0f}",
          f"{one.get('start_s', 0):.2f} s") for name, one in record["ways"].items()],
    )  # fmt: skip


def product(environment: dict[str, str]) -> dict[str, Any]:
    """MLX's product."""
    done = subprocess.run(
        [sys.executable, "-c", PRODUCT], cwd=REPOSITORY, env=os.environ | environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    rate, seconds, library = done.stdout.strip().split(" ", 2)
    return {"library": library, "flops_per_s": float(rate), "start_s": round(float(seconds), 3)}


def train(workload: Workload, environment: dict[str, str], way: str) -> dict[str, Any]:
    """The speed of the last epoch."""
    with tempfile.TemporaryDirectory(prefix="mlxmath-bench-") as folder:
        command = train_command(
            workload, Path(folder), workload.dataset, "cpu", batch_size=8, accumulation=1, num_epochs=EPOCHS
        )
        command[1:3] = ["-m", "mlxmath.train"] if way == "earlier" else ["-c", TRAIN]
        at = Path(environment["PYTHONPATH"]) if way == "earlier" else REPOSITORY
        finished = run_process(command, timeout_s=600, folder=at, environment={"HF_HUB_OFFLINE": "1"} | environment)
        if finished.failure:
            sys.exit(f"{way}: {finished.failure}")
        steps = record_of(Path(folder))["steps"]
    ends = {step["epoch"]: step["time"] for step in steps}
    last = max(ends)
    return {"tokens_per_s": round(workload.num_tokens / (ends[last] - ends[last - 1]), 1)}


if __name__ == "__main__":
    main()
