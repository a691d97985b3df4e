"""Does memory grow with the length of a row, or with its square? And is a row of ordinary length as fast as before?

    python benchmarks/bench_long_rows.py [--lengths 4096,8192,16384] [--earlier CHECKOUT]

One row a step, rank-8 LoRA on q and v of a small Llama (hidden 512, 8 blocks), every block checkpointed, float32 on the
CPU: the peak of MLX's allocator above the weights, the process's resident memory, what `mlxmath plan` says of the
whole peak, and the seconds of a step. With --earlier, a step of --length tokens also in another checkout, in turns.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.bench_memory import CHECKPOINT, row_of
from benchmarks.common import REPOSITORY, command_line, gigabytes, machine, save_json, show_table
from benchmarks.runs import Conditions, train
from benchmarks.shapes import SHAPES
from benchmarks.workload import Workload

Result = dict[str, Any]


def main() -> None:
    """Run, print tables, write JSON."""
    parser = command_line(__doc__, "long_rows.json", "work", "backend", timeout_s=900)
    parser.add_argument("--lengths", default="4096,8192,16384", help="tokens of a row")
    parser.add_argument("--shape", default="small", help=f"one of {', '.join(SHAPES)} (default: small)")
    parser.add_argument("--steps", type=int, default=1, help="steps of a run whose memory is measured (default: 1)")
    parser.add_argument("--earlier", type=Path, help="another checkout, to be as fast as at --length")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row whose speed is compared")
    parser.add_argument(
        "--repeat", type=int, default=3, help="runs of each checkout, in turns; the fastest step counts"
    )
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    conditions = Conditions(options.backend, 1, options.timeout)
    record: Result = {
        "question": "peak memory of a training step of one long row, every block checkpointed",
        "machine": machine(("mlx", "mlx-lm", "numpy")),
        "shape": shape.title,
        "by_length": [],
        "speed": [],
    }
    for length in map(int, filter(None, options.lengths.split(","))):
        workload = row_of(shape, options.work, length, options.steps)
        record["by_length"].append({"length": length, **measure(workload, conditions, length, REPOSITORY)})
        print(record["by_length"][-1], flush=True)
        save_json(options.out, record)
    checkouts = {"this build": REPOSITORY, "earlier": options.earlier} if options.earlier else {}
    workload = row_of(shape, options.work, options.length, 2)
    for _ in range(options.repeat):
        for name, checkout in checkouts.items():
            for checkpoint in ("0", "1"):
                result = measure(workload, conditions, options.length, checkout.resolve(), checkpoint)
                record["speed"].append({"build": name, "grad_checkpoint": int(checkpoint), **result})
                print(record["speed"][-1], flush=True)
                save_json(options.out, record)
    show(record)
    print(f"\n-> {options.out}")


def measure(
    workload: Workload, conditions: Conditions, length: int, checkout: Path, checkpoint: str = "1"
) -> Result:  # fmt: skip
    """Peak memory and the fastest step of a run of one row a step."""
    with tempfile.TemporaryDirectory() as folder:
        run, finished = train(
            workload, Path(folder) / "run", workload.dataset, conditions, batch_size=1, accumulation=1, num_epochs=1,
            extra=["--max-seq-len", str(length + 1), CHECKPOINT, checkpoint], repository=checkout,
        )  # fmt: skip
    if finished.failure:
        return {"failed": finished.failure}
    return {
        "above_weights_bytes": run["peak_bytes"] - workload.weights_bytes,
        "peak_bytes": run["peak_bytes"],
        "peak_rss_bytes": finished.peak_rss_bytes,
        "planned_bytes": run["planned_bytes"],
        "step_s": min(step["seconds"] for step in run["steps"]),
    }


def show(record: Result) -> None:
    """Print both tables."""
    rows, before = [], None
    for point in record["by_length"]:
        above = point.get("above_weights_bytes")
        if above is None:
            rows.append([f"{point['length']:,}", "failed", "", "", "", ""])
            continue
        growth = f"{above / before:.2f}x" if before else "-"
        planned = f"{point['planned_bytes'] / point['peak_bytes']:.2f}"
        rows.append([f"{point['length']:,}", gigabytes(above), growth, gigabytes(point["peak_rss_bytes"]), planned,
                     f"{point['step_s']:.1f}"])  # fmt: skip
        before = above
    columns = "tokens", "above weights", "growth", "resident", "planned / measured", "s a step"
    show_table("memory", columns, rows)
    best: dict[tuple[str, int], float] = {}
    for point in record["speed"]:
        key = point["build"], point["grad_checkpoint"]
        best[key] = min(best.get(key, float("inf")), point.get("step_s", float("inf")))
    if best:
        cells = [[build, str(bool(every)), f"{seconds:.2f}"] for (build, every), seconds in best.items()]
        show_table("speed", ("build", "checkpointed", "s a step"), cells)


if __name__ == "__main__":
    main()
