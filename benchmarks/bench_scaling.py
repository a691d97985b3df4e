"""What do more machines bring? Measures the constants of `scaling_model.py`, checks it, and draws what it predicts.

    python benchmarks/bench_scaling.py [--only compute,network,runs,figure] [--links 100,25] [--out FILE]

`compute`: the steps of one rank on a core of its own, alone and beside others that do the same (a machine with fewer
cores than ranks is slower by that). `network`: MLX's ring all-reduce between network namespaces whose links have the
given rates (Mbit/s); the time a message and the bytes a second are fitted to two of them. `runs`: `mlxmath train` of 2
and 4 ranks in such namespaces, against the model's prediction out of those constants. `figure`: what docs/scaling.png
shows (`python tools/figures.py` draws it).

Each part adds to the JSON. The first three need Linux and root.
"""

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import scaling_net
from benchmarks.common import PROBLEMS, REPOSITORY, command_line, flags, machine, save_json, show_table
from benchmarks.runs import TEMPLATE
from benchmarks.scaling_model import Compute, Link, all_reduce_s, fit, shares_of, step_s
from benchmarks.shapes import Shape
from benchmarks.workload import Workload, make_workload

PARTS = ("compute", "network", "runs", "figure")
RANKS = (2, 4, 1)
"""In this order: of one, only the speed-up is known."""
SHAPE = Shape("scaling", "llama", 128, 4, 4, 4, 352, 2_000, False, 32, 32)
RANK, BATCH, EPOCHS, MAX_TOKENS, NUM_ROWS = 32, 16, 4, 512, 32
WARM_UP = 1
"""Steps that are not counted."""
SIZES = (4, 65_536, 1_048_576, 4_194_304)
NUM_BYTES = 4 * SHAPE.layers * sum(RANK * sum(size) for size in SHAPE.block_linears().values())
"""Of the message: LoRA on all linear layers."""
Result = dict[str, Any]


def main() -> None:
    """Run the parts, write the JSON, print what was predicted and found."""
    parser = command_line(__doc__, "scaling.json")
    parser.add_argument("--only", default=",".join(PARTS), help="some of compute,network,runs,figure (default: all)")
    parser.add_argument("--links", default="100,25", help="rates in Mbit/s (default: 100,25)")
    options = parser.parse_args()
    parts, rates = options.only.split(","), [float(rate) for rate in options.links.split(",")]
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only: {', '.join(sorted(unknown))} is unknown; there are {', '.join(PARTS)}")
    record: Result = json.loads(options.out.read_text()) if options.out.exists() else {}
    record["machine"] = machine(("mlx", "mlx-lm", "numpy"))
    if set(parts) - {"figure"} and (reason := scaling_net.missing()):
        sys.exit(reason)
    with tempfile.TemporaryDirectory(prefix="mlxmath-scaling-") as folder:
        work = Path(folder)
        if set(parts) - {"figure"}:
            workload = make_workload(SHAPE, work, PROBLEMS, dtype="float32", num_rows=NUM_ROWS, template=TEMPLATE)
            record["workload"] = {
                "shape": SHAPE.title, "rows": NUM_ROWS, "tokens": workload.num_tokens, "rows_a_step": BATCH,
                "message_bytes": NUM_BYTES, "data": PROBLEMS.name,
            }  # fmt: skip
        if "network" in parts:
            record["network"] = measured_network(rates, work)
            save_json(options.out, record)
        if "compute" in parts:
            for n in RANKS:
                record.setdefault("compute", {})[str(n)] = measured_compute(workload, n, work)
                save_json(options.out, record)
        if "runs" in parts:
            record["runs"] = []
            for rate in rates:
                for n in RANKS[:2]:
                    record["runs"].append(measured_run(workload, record, rate, n, work))
                    save_json(options.out, record)
    if "figure" in parts:
        from benchmarks.scaling_figure import predict

        record["predicted"] = predict(PROBLEMS)
        save_json(options.out, record)
    show(record)


def measured_compute(workload: Workload, n: int, work: Path) -> Result:
    """t_token and t_window with so many ranks computing at once, each for itself."""
    steps: list[Any] = []
    seconds: list[float] = []
    for batch in (BATCH, BATCH // max(RANKS)):  # whole steps, and such as one of the ranks has
        with scaling_net.network(n, 1e9) as prefixes:
            folders = [work / f"alone-{n}-{batch}-{i}" for i in range(n)]
            commands = [train_command(workload, folder, batch) for folder in folders]
            scaling_net.run_ranks(commands, prefixes, work, 170, ring=False)
        for folder in folders:
            steps += steps_of(workload, 1, batch)[WARM_UP:]
            seconds += seconds_of(folder)[WARM_UP:]
    compute = fit(steps, seconds)
    print(
        f"{n} at once: {1e6 * compute.token_s:.0f} us a padded token, {1e3 * compute.window_s:.1f} ms a step",
        flush=True,
    )
    return asdict(compute)


def measured_network(rates: list[float], work: Path) -> Result:
    """The ring's all-reduce, and each link's constants by the 2-rank times of the least and the largest message."""
    found: Result = {}
    script = str(REPOSITORY / "benchmarks" / "peers" / "all_reduce.py")
    for rate in rates:
        times: dict[int, dict[int, float]] = {}
        for n in RANKS[:2]:
            with scaling_net.network(n, 1e6 * rate) as prefixes:
                commands = [[script, *map(str, SIZES)]] * n
                output = scaling_net.run_ranks(commands, prefixes, work, 100, ring=True)[0]
            times[n] = {int(size): seconds for size, seconds in json.loads(output.splitlines()[-1]).items()}
        message_s = times[2][SIZES[0]] / 2
        bytes_per_s = SIZES[-1] / (times[2][SIZES[-1]] - times[2][SIZES[0]])
        link = Link(f"{rate:g} Mbit/s", bytes_per_s, message_s)
        found[f"{rate:g}"] = {
            "message_s": message_s, "bytes_per_s": bytes_per_s, "nominal_bytes_per_s": rate * 1e6 / 8,
            "seconds": times,
            "predicted": {n: {size: all_reduce_s(size, n, link) for size in SIZES} for n in RANKS[:2]},
        }  # fmt: skip
        print(f"{link.name}: {bytes_per_s / 1e6:.1f} MB/s, {1e6 * message_s:.0f} us a message; 4 ranks, "
              f"{SIZES[-1]} bytes: {times[4][SIZES[-1]]:.3f} s, predicted "
              f"{all_reduce_s(SIZES[-1], 4, link):.3f} s", flush=True)  # fmt: skip
    return found


def measured_run(workload: Workload, record: Result, rate: float, n: int, work: Path) -> Result:
    """`mlxmath train` on n ranks: mean seconds of a step, and those that the model says."""
    folder = work / f"together-{n}-{rate:g}"
    with scaling_net.network(n, 1e6 * rate) as prefixes:
        scaling_net.run_ranks([train_command(workload, folder)] * n, prefixes, work, 170, ring=True)
    seconds = seconds_of(folder)[WARM_UP:]
    line = record["network"][f"{rate:g}"]
    link = Link(f"{rate:g} Mbit/s", line["bytes_per_s"], line["message_s"])
    compute = Compute(**record["compute"][str(n)])
    predictions = [step_s(shares, NUM_BYTES, link, compute) for shares in steps_of(workload, n)[WARM_UP:]]
    measured, predicted = sum(seconds) / len(seconds), sum(predictions) / len(predictions)
    print(f"{rate:g} Mbit/s, {n} ranks: {measured:.3f} s a step, predicted {predicted:.3f} s", flush=True)
    return {
        "mbit_per_s": rate, "ranks": n, "measured_s": measured, "predicted_s": predicted,
        "all_reduce_s": all_reduce_s(NUM_BYTES, n, link), "error": predicted / measured - 1, "steps": len(seconds),
    }  # fmt: skip


def train_command(workload: Workload, folder: Path, batch: int = BATCH) -> list[str]:
    """`mlxmath train` with one worker."""
    options = {
        "model": workload.model, "mlx-path": workload.model, "dataset": workload.dataset, "template": TEMPLATE,
        "cache-dir": workload.folder / "cache", "adapter-path": folder, "lora-rank": RANK, "lora-targets": "*_proj",
        "batch-size": batch, "grad-accumulation-steps": 1, "num-epochs": EPOCHS, "max-batch-tokens": MAX_TOKENS,
        "deduplicate": "off", "decontaminate": "none", "save-every": 1_000_000, "seed": 0, "backend": "cpu",
        "workers": 1,
    }  # fmt: skip
    return ["-m", "mlxmath.train", *flags(options)]


def steps_of(workload: Workload, n: int, batch: int = BATCH) -> list[Any]:
    """The shares of all steps of a run."""
    lengths = [len(row.tokens) for row in workload.rows]
    return shares_of(lengths, n, batch=batch, epochs=EPOCHS, max_tokens=MAX_TOKENS)


def seconds_of(folder: Path) -> list[float]:
    """Of each step, as rank 0 recorded them."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event["seconds"] for event in events if event["event"] == "step"]


def show(record: Result) -> None:
    """Print predictions beside measurements."""
    rows = [
        [f"{run['ranks']} ranks, {run['mbit_per_s']:g} Mbit/s", f"{run['measured_s']:.3f} s",
         f"{run['predicted_s']:.3f} s", f"{run['all_reduce_s']:.3f} s", f"{run['error']:+.0%}"]
        for run in record.get("runs", [])
    ]  # fmt: skip
    if rows:
        show_table("a step", ("", "measured", "predicted", "of which all-reduce", "error"), rows)


if __name__ == "__main__":
    main()
