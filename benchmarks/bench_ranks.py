"""What do several processes on one machine bring, and what does their all-reduce cost?

    python benchmarks/bench_ranks.py [--shape small] [--epochs 2] [--repeat 1]

Trains the rows of `bench_train.py` (58M parameters, effective batch 8, float32) with one process and two workers, one
process and one worker (its matrix products on all cores, or on one), and two and four ranks of MLX's ring on this
machine with one worker each. The first epoch is not timed. Of rank 0 it also tells what it waited for the slowest rank
and spent in the all-reduce, in the whole run. The losses of all must agree.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import REPOSITORY, command_line, machine, ring_hostfile, save_json, show_table
from benchmarks.runs import TEMPLATE, record_of, train_command
from benchmarks.shapes import SHAPES
from benchmarks.workload import EFFECTIVE_BATCH, Workload, make_workload

SETUPS = ((1, 2, None), (1, 1, None), (1, 1, 1), (2, 1, None), (4, 1, None))
"""(ranks, workers of each, threads of the BLAS where they are limited)."""


def main() -> None:
    """Run, print a table, write the JSON."""
    parser = command_line(__doc__, "ranks.json", "data", "work")
    parser.add_argument("--shape", default="small", choices=SHAPES, help="model (default: small)")
    parser.add_argument("--epochs", type=int, default=2, help="the first is not timed (default: 2)")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each set-up, the fastest counts (default: 1)")
    parser.add_argument("--rows", type=int, help="rows (default: the shape's)")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    workload = make_workload(
        shape, options.work, options.data, dtype="float32", num_rows=options.rows or shape.rows, template=TEMPLATE
    )
    record: dict[str, Any] = {
        "question": "tokens/s of several ranks on one machine",
        "machine": machine(("mlx", "mlx-lm", "numpy")),
        "shape": shape.title,
        "rows": len(workload.rows),
        "tokens": workload.num_tokens,
        "epochs": f"{options.epochs}, the first not timed",
        "runs": [],
    }
    for setup in SETUPS:
        runs = [measure(workload, *setup, options.epochs) for _ in range(options.repeat)]
        record["runs"].append(max(runs, key=lambda run: run["tokens_per_s"]))
        save_json(options.out, record)
    for name, index in (("against_one_process", 0), ("against_one_worker", 1), ("against_one_core", 2)):
        for run in record["runs"]:
            run[name] = round(run["tokens_per_s"] / record["runs"][index]["tokens_per_s"], 3)
    losses = [run["last_loss"] for run in record["runs"]]
    record["losses_agree"] = max(losses) - min(losses) < 1e-3 * max(losses)
    save_json(options.out, record)
    show_table(
        record["shape"],
        ("ranks x workers", "tokens/s", "against 1 x 2", "1 x 1", "one core", "waited", "all-reduce", "of the run"),
        [
            [f"{run['ranks']} x {run['workers']}{', one core' if run['blas_threads'] else ''}",
             f"{run['tokens_per_s']:,.0f}",
             *(f"{run[f'against_one_{name}']:.2f}" for name in ("process", "worker", "core")),
             *(f"{run[name]:.2f} s" if name in run else "-" for name in ("waited_s", "exchanged_s", "seconds"))]
            for run in record["runs"]
        ],
    )  # fmt: skip
    print(f"\n-> {options.out}")
    if not record["losses_agree"]:
        sys.exit(f"the losses of the last step do not agree: {losses}")


def measure(workload: Workload, ranks: int, workers: int, blas_threads: int | None, epochs: int) -> dict[str, Any]:
    """Train with `ranks` processes; rank 0's figures."""
    with tempfile.TemporaryDirectory(prefix="mlxmath-bench-") as name:
        folder = Path(name)
        command = train_command(
            workload, folder / "run", workload.dataset, "cpu", batch_size=EFFECTIVE_BATCH, accumulation=1,
            num_epochs=epochs,
        )  # fmt: skip
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        if blas_threads:
            environment |= dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(blas_threads))
        processes = []
        hosts = ring_hostfile(folder, ranks)
        with (folder / "log").open("w+") as log:
            for rank in range(ranks):
                own = {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)} if ranks > 1 else {}
                processes.append(
                    subprocess.Popen([*command, "--workers", str(workers)], cwd=REPOSITORY, env=environment | own,
                                     stdout=log, stderr=log)
                )  # fmt: skip
            try:
                start = time.perf_counter()
                codes = [process.wait(600) for process in processes]
            finally:
                for process in processes:
                    process.kill()
            log.seek(0)
            assert codes == [0] * ranks, log.read()[-2000:]
        run = record_of(folder / "run")
        steps = run["steps"]
        ends = {step["epoch"]: step["time"] for step in steps}
        timed = sum(step["tokens"] for step in steps if step["epoch"] > 0)
        found = {
            "ranks": ranks,
            "workers": workers,
            "blas_threads": blas_threads,
            "tokens_per_s": round(timed / (ends[max(ends)] - ends[0]), 1),
            "seconds": round(run["seconds"], 2),
            "wall_s": round(time.perf_counter() - start, 1),
            "windows": len(steps),
            "last_loss": steps[-1]["loss"],
            "peak_bytes": run["peak_bytes"],
        }
        if ranks > 1:
            found |= {name: run["ranks"][name] for name in ("waited_s", "exchanged_s")}
            found["bytes_reduced_a_window"] = 4 * run["adapter"]["num_trainable"]
        return found


if __name__ == "__main__":
    main()
