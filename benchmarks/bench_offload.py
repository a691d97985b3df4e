"""What does training cost whose base stays on the disk (`--offload on`), against the same run in memory?

    python benchmarks/bench_offload.py [--weights float32,4-bit] [--steps 3] [--limit]

The shape of Qwen2.5-0.5B in float32 and in 4 bits, steps of 8 rows of GSM8K: `mlxmath train --grad-checkpoint 1` and
`--offload on` in turns, in processes of their own. A step's seconds are the median of those after the first; the disk's
rate is measured between the runs, past the system's cache; what was read is the system's own count for the process;
memory is the highest resident set, which holds mapped pages too. The bounds: seconds at most 1.15 times the larger of
the run in memory and bytes read / disk rate; memory at most 0.35 of the weights above the peak in memory less the
weights, plus the blocks' inputs of all rows of a step. The adapters must be the same bit for bit.

With --limit instead: a model whose weights are four times `--memory-limit-gb` trains within it.
"""

import hashlib
import json
import resource
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import command_line, gigabytes, machine, save_json, show_table
from benchmarks.processes import run_command
from benchmarks.runs import TEMPLATE, Conditions, train
from benchmarks.shapes import SHAPES, Shape
from benchmarks.workload import EFFECTIVE_BATCH, Workload, make_workload
from mlxmath.models.speed import disk_bytes_per_s

WAYS = {"in memory": ["--grad-checkpoint", "1"], "on the disk": ["--offload", "on"]}
BITS = {"float32": None, "8-bit": 8, "4-bit": 4}
LIMITED = Shape("deep", "llama", 512, 96, 8, 8, 1408, 4_000, True, 16, 16)
"""Of 1.24 GB in float32."""
LIMITED_ROWS = 2
"""A step's: what the blocks are given is kept of all of them, and more so of a model that is deep and narrow."""
Result = dict[str, Any]


def main() -> None:
    """Run, print a table, write JSON."""
    parser = command_line(__doc__, "offload.json", "data", "work", "backend", timeout_s=900)
    parser.add_argument("--shape", default="0.5b", help=f"one of {', '.join(SHAPES)} (default: 0.5b)")
    parser.add_argument("--weights", default="float32,4-bit", help=f"of {', '.join(BITS)}")
    parser.add_argument("--steps", type=int, default=3, help="of each run")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each way, in turns; the fastest counts")
    parser.add_argument("--limit", action="store_true", help="only the model that is larger than the limit")
    options = parser.parse_args()
    conditions = Conditions(options.backend, 1, options.timeout, ours_options=["--max-batch-tokens", "512"])
    record: Result = json.loads(options.out.read_text()) if options.out.exists() else {}
    record |= {"question": "training with the base on the disk", "machine": machine(("mlx", "mlx-lm", "numpy"))}
    if options.limit:
        workload = workload_of(LIMITED, options, LIMITED_ROWS)
        limit = workload.weights_bytes / 4
        found = run(
            workload,
            workload.model,
            conditions,
            options.steps,
            ["--offload", "on", "--memory-limit-gb", str(limit / 1e9)],
            LIMITED_ROWS,
        )
        record["limited"] = {"weights_bytes": workload.weights_bytes, "limit_bytes": limit, **found}
        print(json.dumps(record["limited"], indent=2))
        save_json(options.out, record)
        return
    for name in options.weights.split(","):
        workload = workload_of(SHAPES[options.shape], options)
        model = workload.model if BITS[name] is None else quantized(workload, BITS[name])
        weights = sum(file.stat().st_size for file in model.glob("*.safetensors"))
        disk = [disk_bytes_per_s(model)]
        runs: dict[str, Result] = {}
        for _ in range(options.repeat):
            for way, extra in WAYS.items():
                found = run(workload, model, conditions, options.steps, extra)
                print(f"{name}, {way}: {found}", flush=True)
                if "failed" in found:
                    sys.exit(found["failed"])
                if way not in runs or found["step_s"] < runs[way]["step_s"]:
                    runs[way] = found
                disk.append(disk_bytes_per_s(model))
        record[f"{options.shape} {name}"] = compared(workload, weights, statistics.median(disk), runs)
        save_json(options.out, record)
    show({name: found for name, found in record.items() if "ways" in found})


def workload_of(shape: Shape, options: Any, rows: int = EFFECTIVE_BATCH) -> Workload:
    """The model and as many rows as the steps take."""
    num_rows = rows * options.steps
    return make_workload(shape, options.work, options.data, dtype="float32", num_rows=num_rows, template=TEMPLATE)


def quantized(workload: Workload, bits: int) -> Path:
    """The same model in so many bits."""
    folder = workload.folder / f"{bits}-bit"
    if not folder.exists():
        run_command(
            workload.folder, "convert", "--model", str(workload.model), "--mlx-path", str(folder), "--quantize",
            str(bits), timeout_s=600,
        )  # fmt: skip
    return folder


def run(
    workload: Workload, model: Path, conditions: Conditions, steps: int, extra: list[str], rows: int = EFFECTIVE_BATCH
) -> Result:  # fmt: skip
    """A run, and what it took."""
    with tempfile.TemporaryDirectory() as name:
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_inblock
        record, finished = train(
            workload, Path(name) / "run", workload.dataset, conditions, batch_size=rows,
            accumulation=1, num_epochs=1, extra=["--mlx-path", str(model), "--max-steps", str(steps), *extra],
        )  # fmt: skip
        if finished.failure:
            return {"failed": finished.failure}
        adapters = (Path(name) / "run" / "adapters.safetensors").read_bytes()
    seconds = [step["seconds"] for step in record["steps"]]
    return {
        "step_s": statistics.median(seconds[1:]),
        "all_step_s": seconds,
        "tokens": [step["tokens"] for step in record["steps"]],
        "read_bytes": 512 * (resource.getrusage(resource.RUSAGE_CHILDREN).ru_inblock - before),
        "peak_rss_bytes": finished.peak_rss_bytes,
        "peak_device_bytes": record["peak_bytes"],
        "planned_bytes": record["planned_bytes"],
        "adapters": hashlib.sha256(adapters).hexdigest(),
    }


def compared(workload: Workload, weights: int, disk: float, runs: dict[str, Result]) -> Result:
    """The two ways against the bounds."""
    inside, outside = (runs[way] for way in WAYS)
    read_a_step = outside["read_bytes"] / len(outside["all_step_s"])
    least_s = max(inside["step_s"], read_a_step / disk)
    widest = max(outside["tokens"])
    borders = workload.shape.layers * workload.shape.hidden * 4 * widest
    activations = inside["peak_rss_bytes"] - weights + borders
    return {
        "ways": runs,
        "weights_bytes": weights,
        "disk_bytes_per_s": disk,
        "read_bytes_a_step": read_a_step,
        "seconds_ratio": outside["step_s"] / least_s,
        "borders_bytes": borders,
        "above_activations_of_weights": (outside["peak_rss_bytes"] - activations) / weights,
        "same_adapters": inside["adapters"] == outside["adapters"],
    }


def show(found: dict[str, Result]) -> None:
    """Print the table."""
    rows = [
        [name, *(f"{r['ways'][way]['step_s']:.2f} s" for way in WAYS), f"{r['disk_bytes_per_s'] / 1e9:.2f} GB/s",
         gigabytes(r["read_bytes_a_step"]), f"{r['seconds_ratio']:.2f}", f"{r['above_activations_of_weights']:.3f}",
         "yes" if r["same_adapters"] else "NO"]
        for name, r in found.items()
    ]  # fmt: skip
    columns = ("", *WAYS, "disk", "read a step", "of the bound (1.15)", "memory (0.35)", "same adapters")
    show_table("a step with the base in memory and on the disk", columns, rows)


if __name__ == "__main__":
    main()
