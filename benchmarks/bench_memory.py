"""How does the peak memory of training grow with the length of the rows and with the vocabulary?

    python benchmarks/bench_memory.py [--mlx-lm] [--quick]

One row a step, rank-8 LoRA on q and v of a small Llama (hidden 512, 8 blocks), every token but the prompt's a target,
float32 on the CPU: `mlxmath train` with and without --grad-checkpoint, and with --mlx-lm also mlx_lm.lora. "above
weights" is the peak of MLX's allocator during training less the weights. The last column is the growth from the row
before, in kB a token (constant where memory is linear in the length). A last table sets the whole peak of some other
runs against what `mlxmath plan` says of them before they start.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.architectures import CONFIGS, write_model
from benchmarks.common import PROBLEMS, command_line, gigabytes, machine, save_json, show_table
from benchmarks.runs import TEMPLATE, Conditions, job_of, run_worker, train, train_help
from benchmarks.shapes import SHAPES, Shape
from benchmarks.workload import Workload, make_workload, tokenize

NUM_IDS = 2_000
"""Size of the tokenizer, whatever the model's vocabulary: memory does not depend on which ids occur."""
NUM_STEPS = 2
CHECKPOINT = "--grad-checkpoint"

_PACK = ["--batching", "pack", "--max-batch-tokens", "512", "--workers", "1"]
PLANNED: dict[str, tuple[int, int, list[str]]] = {
    "one worker": (512, 1, ["--workers", "1"]),
    "two workers, 8 rows": (256, 8, ["--workers", "2"]),
    "checkpointing every block": (1024, 1, [CHECKPOINT, "1"]),
    "checkpointing every other block": (1024, 1, [CHECKPOINT, "2"]),
    "all layers, rank 64": (512, 1, ["--lora-targets", "*", "--lora-rank", "64"]),
    "4-bit weights": (512, 1, ["--quantize", "4"]),
    "full fine-tuning": (512, 1, ["--full"]),
    "full fine-tuning, 8-bit AdamW": (512, 1, ["--full", "--optimizer", "adamw8bit"]),
}
"""Runs of the shape whose plan is checked: tokens of a row, rows a step, options."""
SETTINGS: dict[str, tuple[int, int, list[str]]] = {
    "a row of 256": (256, 1, []),
    "a row of 512": (512, 1, []),
    "8 rows of 128": (128, 8, ["--max-batch-tokens", "512", "--workers", "1"]),
    "8 rows of 128, packed": (128, 8, _PACK),
    "a row of 512, checkpointing every block": (512, 1, [CHECKPOINT, "1"]),
    "a row of 512, checkpointing every other block": (512, 1, [CHECKPOINT, "2"]),
}
"""The same for each of the other models."""
MODELS: dict[str, tuple[str, list[str]]] = {
    **{name: (name, ["--lora-targets", "*"]) for name in CONFIGS},
    "4 bits": ("dense", ["--quantize", "4"]),
    "4 and 8 bits": ("mixed", []),
    "mixture in 4 bits": ("mixture", ["--quantize", "4"]),
    "hybrid in 4 bits": ("hybrid", ["--quantize", "4", "--lora-targets", "*"]),
}
"""Of `benchmarks.architectures`, with their options."""

Result = dict[str, Any]


def main() -> None:
    """Run, print tables, write JSON and a plot."""
    parser = command_line(__doc__, "memory.json", "work", "backend", timeout_s=900)
    parser.add_argument("--shape", default="small", help=f"one of {', '.join(SHAPES)} (default: small)")
    parser.add_argument("--lengths", default="128,256,512,1024,2048", help="tokens of a row")
    parser.add_argument("--vocabularies", default="8000,32000,64000,128000,152000")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row where the vocabulary varies")
    parser.add_argument("--mlx-lm", action="store_true", help="measure mlx_lm.lora too")
    parser.add_argument("--quick", action="store_true", help="two lengths, two vocabularies")
    parser.add_argument("--plan", action="store_true", help="only the last table; the rest is as it was")
    parser.add_argument("--models", default=",".join(MODELS), help="those of the last table")
    options = parser.parse_args()
    lengths, vocabularies = (
        [int(part) for part in text.split(",")][: 2 if options.quick else None]
        for text in (options.lengths, options.vocabularies)
    )
    shape = SHAPES[options.shape]
    conditions = Conditions(options.backend, 1, options.timeout)
    ways = [("mlxmath", False)] + ([("mlxmath", True)] if CHECKPOINT in train_help() else [])
    ways += [("mlx_lm.lora", False), ("mlx_lm.lora", True)] if options.mlx_lm else []
    record: Result = {
        "question": "peak memory of a training step of one row",
        "machine": machine(("mlx", "mlx-lm", "numpy")),
        "shape": shape.title,
        "by_length": [],
        "by_vocabulary": [],
    }
    if options.plan:
        earlier = json.loads(options.out.read_text())
        record |= {name: earlier[name] for name in ("by_length", "by_vocabulary")}
    plan = [("by_length", length, shape.vocab) for length in lengths]
    plan += [("by_vocabulary", options.length, vocabulary) for vocabulary in vocabularies]
    for kind, length, vocabulary in [] if options.plan else plan:
        workload = row_of(replace(shape, vocab=vocabulary), options.work, length)
        for trainer, checkpoint in ways:
            result = measure(workload, conditions, trainer, length, checkpoint=checkpoint)
            record[kind].append({"trainer": trainer, "grad_checkpoint": checkpoint, "length": length,
                                 "vocabulary": vocabulary, **result})  # fmt: skip
            print(f"{_way(record[kind][-1])}, {length} tokens, vocabulary {vocabulary:,}: "
                  f"{result.get('failed') or gigabytes(result['above_weights_bytes'])}", flush=True)  # fmt: skip
            save_json(options.out, record)
    record["planned"] = []
    runs = [(name, *run, None) for name, run in PLANNED.items()]
    for name, (model, extra) in MODELS.items():
        if name in options.models.split(","):
            runs += [
                (f"{name}: {setting}", length, rows, [*extra, *more], model)
                for setting, (length, rows, more) in SETTINGS.items()
            ]
    for name, length, rows, extra, model in runs[: 1 if options.quick else None]:
        result = planned(row_of(shape, options.work, length), conditions, length, rows, extra, model)
        record["planned"].append({"run": name, **result})
        ratio = "failed" if "failed" in result else f"{result['planned_bytes'] / result['peak_bytes']:.3f}"
        print(f"{name}: {ratio}", flush=True)
        save_json(options.out, record)
    show_table(
        "planned and measured",
        ("", "planned", "measured", "planned / measured"),
        [
            [r["run"], gigabytes(r["planned_bytes"]), gigabytes(r["peak_bytes"]),
             f"{r['planned_bytes'] / r['peak_bytes']:.2f}"] if "failed" not in r else [r["run"], "failed", "", ""]
            for r in record["planned"]
        ],
    )  # fmt: skip
    show("by length", record["by_length"], "length")
    show(f"by vocabulary, {options.length} tokens", record["by_vocabulary"], "vocabulary")
    plot(record, options.out.with_suffix(".png"))
    print(f"\n-> {options.out}, {options.out.with_suffix('.png')}")


def row_of(shape: Shape, work: Path, length: int, num_rows: int = NUM_STEPS) -> Workload:
    """A workload of `num_rows` equal rows with exactly `length` inputs (`length` + 1 tokens)."""
    workload = make_workload(shape, work, PROBLEMS, dtype="float32", num_rows=1, template=TEMPLATE, num_ids=NUM_IDS)

    def lines(num_words: int) -> list[str]:
        return [json.dumps({"problem": "Say a.", "solution": "a" + " a" * num_words})] * num_rows

    def rows(num_words: int) -> list[Any]:
        return tokenize(lines(num_words), workload.folder, workload.model, TEMPLATE)

    num_words = length + 1 - len(rows(0)[0].tokens)
    found = replace(workload, rows=rows(num_words), folder=workload.folder)
    assert all(len(row.tokens) == length + 1 for row in found.rows), (length, len(found.rows[0].tokens))
    found.dataset.write_text("".join(line + "\n" for line in lines(num_words)))
    return found


def measure(workload: Workload, conditions: Conditions, trainer: str, length: int, *, checkpoint: bool) -> Result:
    """Peak memory of a few steps of one row."""
    with tempfile.TemporaryDirectory() as folder:
        if trainer == "mlxmath":
            extra = ["--max-seq-len", str(length + 1)] + ([CHECKPOINT, "1"] if checkpoint else [])
            run, finished = train(
                workload, Path(folder) / "run", workload.dataset, conditions,
                batch_size=1, accumulation=1, num_epochs=1, extra=extra,
            )  # fmt: skip
            result = {"failed": finished.failure} if finished.failure else {"peak_device_bytes": run["peak_bytes"]}
        else:
            job = job_of(workload, conditions, batch_size=1, accumulation=1, first_batch=1,
                         setting={"grad_checkpoint": checkpoint})  # fmt: skip
            result = run_worker("mlx_lm_lora", job, Path(folder), conditions.timeout_s)
    if "failed" in result or "skipped" in result:
        return {"failed": result.get("failed") or result["skipped"]}
    peak = result["peak_device_bytes"]
    return {"peak_device_bytes": peak, "above_weights_bytes": peak - workload.weights_bytes}


def planned(
    workload: Workload, conditions: Conditions, length: int, rows: int, extra: list[str], model: str | None
) -> Result:
    """Bytes planned and taken by two steps of `rows` rows each, of a model of `CONFIGS` or (None) the workload's."""
    if model is not None:
        name = "dense" if model == "mixed" else model
        source = write_model(
            name, workload.model, workload.folder / model.replace(" ", "-"), mixed_bits=model == "mixed"
        )
        extra = ["--model", str(source), *extra]
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder) / "rows.jsonl"
        dataset.write_text(workload.dataset.read_text() * rows)
        run, finished = train(
            workload, Path(folder) / "run", dataset, conditions, batch_size=rows, accumulation=1, num_epochs=1,
            extra=["--max-seq-len", str(length + 1), "--mlx-path", str(Path(folder) / "model"), *extra],
        )  # fmt: skip
    if finished.failure:
        return {"failed": finished.failure}
    steady = {"active_bytes": run["active_bytes"], "peak_rss_bytes": finished.peak_rss_bytes}
    return {"planned_bytes": run["planned_bytes"], "peak_bytes": run["peak_bytes"], **steady, "options": extra}


def _way(result: Result) -> str:
    return result["trainer"] + (", checkpointing" if result["grad_checkpoint"] else "")


def _curves(results: Sequence[Result]) -> dict[str, list[Result]]:
    curves: dict[str, list[Result]] = {}
    for result in results:
        if "failed" not in result:
            curves.setdefault(_way(result), []).append(result)
    return curves


def show(title: str, results: Sequence[Result], by: str) -> None:
    """Print a table: each way's memory against `by`."""
    rows = []
    for way, points in _curves(results).items():
        for i, point in enumerate(points):
            growth = "-"
            if i:
                before = points[i - 1]
                step = (point["above_weights_bytes"] - before["above_weights_bytes"]) / (point[by] - before[by])
                growth = f"{step / 1000:,.1f} kB"
            above = point["above_weights_bytes"]
            cells = [f"{point[by]:,}", gigabytes(point["peak_device_bytes"]), f"{above / 1e6:,.1f} MB", growth]
            rows.append([way, *cells])
    show_table(title, ("", by, "peak", "above weights", f"growth a unit of {by}"), rows)


def plot(record: Result, path: Path) -> None:
    """Memory above the weights against length and against vocabulary."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = zip(figure.subplots(1, 2), (("by_length", "length"), ("by_vocabulary", "vocabulary")), strict=True)
    for axes, (kind, by) in panels:
        for way, points in _curves(record[kind]).items():
            x = [point[by] for point in points]
            axes.plot(x, [point["above_weights_bytes"] / 1e6 for point in points], marker="o", label=way)
        axes.set(xlabel={"length": "tokens of a row"}.get(by, by), ylabel="peak above weights (MB)", ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"Memory of a training step, {record['shape']}")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
