"""How fast is linear attention trained, and in how much memory? Against mlx_lm's loop over tokens and mlx_lm.lora.

    python benchmarks/bench_gated_delta.py [--lengths 128,512,1024] [--repeat N] [--only rule|training]

The gated delta rule alone, forward and backward, one row, float32: the heads of Qwen 3.5 (128 wide, two value heads a
key head) and of Kimi Linear (128 wide, a decay of each channel), of either a quarter, 8 value heads. Both sides in
turns in one process; the fastest of `--repeat` counts. Memory is the peak of MLX's allocator above the inputs.

Then LoRA on q and v of full and on q, k and v of linear attention of a small random Qwen 3.5 (`hybrid` of
`benchmarks.architectures`), on rows of GSM8K: `mlxmath train` and mlx_lm.lora at its default and at its usual best, in
turns, each in a fresh process.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.architectures import write_model
from benchmarks.common import command_line, flags, gigabytes, machine, save_json, show_table
from benchmarks.contestants import entries, measure
from benchmarks.runs import TEMPLATE, Conditions
from benchmarks.shapes import SHAPES
from benchmarks.training import TOLERANCE, loss_disagreements, ratios
from benchmarks.workload import EFFECTIVE_BATCH, Workload, make_workload

HEADS = {"Qwen 3.5": (4, 8, False), "Kimi Linear": (8, 8, True)}
"""Key heads, value heads, whether each channel decays on its own."""
WIDTH = 128
NUM_ROWS = 8
TARGETS = ("self_attn.q_proj", "self_attn.v_proj", "linear_attn.in_proj_qkv")

Result = dict[str, Any]


def main() -> None:
    """Run, print tables, write the JSON."""
    parser = command_line(__doc__, "gated_delta.json", "data", "work", "backend", timeout_s=600)
    parser.add_argument("--lengths", default="128,512,1024", help="tokens of the row (default: 128,512,1024)")
    parser.add_argument("--repeat", type=int, default=2, help="runs of each, in turn (default: 2)")
    parser.add_argument("--only", choices=("rule", "training"), help="one part; the other stays as it was")
    options = parser.parse_args()
    lengths = [int(length) for length in options.lengths.split(",")]
    record: Result = json.loads(options.out.read_text()) if options.only and options.out.exists() else {}
    record |= {"question": "speed and memory of linear attention", "machine": machine(("mlx", "mlx-lm", "numpy"))}
    if options.only != "training":
        record["rule"] = {}
        for name in HEADS:
            for length in lengths:
                found = measure_rule(name, length, options.repeat, options.backend)
                record["rule"].setdefault(name, {})[str(length)] = found
                save_json(options.out, record)
        show_rule(record["rule"])
    if options.only != "rule":
        workload = make_hybrid(options.work, options.data)
        ours = {"lora-targets": ",".join(TARGETS), "mlx-path": workload.folder / "mlx_model"}
        conditions = Conditions(
            backend=options.backend, num_epochs=2, timeout_s=options.timeout, targets=TARGETS, ours_options=flags(ours)
        )

        def save(part: Result) -> None:
            record["training"] = part
            save_json(options.out, record)

        measure_training(workload, conditions, options.repeat, save)
        show_training(record["training"])
    print(f"\n-> {options.out}")


def measure_rule(name: str, length: int, repeat: int, backend: str) -> Result:
    """Forward and backward of the rule alone, in chunks and by mlx_lm's loop."""
    import mlx.core as mx
    from mlx_lm.models.gated_delta import gated_delta_ops

    from mlxmath.models.gated_delta import gated_delta

    mx.set_default_device(mx.cpu if backend == "cpu" else mx.gpu)
    keys, heads, channels = HEADS[name]
    q, k, v, d_output = (
        mx.random.normal((1, length, count, WIDTH), key=mx.random.key(i))
        for i, count in enumerate((keys, keys, heads, heads))
    )
    decay = mx.sigmoid(3 + mx.random.normal((1, length, heads, *([WIDTH] if channels else [])), key=mx.random.key(4)))
    beta = mx.sigmoid(mx.random.normal((1, length, heads), key=mx.random.key(5)))
    inputs = [mx.fast.rms_norm(q, None, 1e-6) / WIDTH, mx.fast.rms_norm(k, None, 1e-6) / WIDTH**0.5, v, decay, beta]
    mx.eval(inputs, d_output)

    def step(rule: Callable[..., Any]) -> Callable[[], list[mx.array]]:
        gradients = mx.grad(lambda *arrays: (rule(*arrays)[0] * d_output).sum(), argnums=range(5))
        return lambda: list(gradients(*inputs))

    sides = {"chunks": step(gated_delta), "loop": step(gated_delta_ops)}
    found: Result = {side: {"seconds": float("inf")} for side in sides}
    gradients = {}
    for _ in range(repeat):
        for side, run in sides.items():
            mx.synchronize()
            before = mx.get_active_memory()
            mx.reset_peak_memory()
            start = time.perf_counter()
            gradients[side] = run()
            mx.eval(gradients[side])
            mx.synchronize()
            result = found[side]
            result["seconds"] = min(result["seconds"], time.perf_counter() - start)
            result["peak_bytes"] = mx.get_peak_memory() - before
    errors = [
        (mx.abs(a - b).max() / mx.abs(b).max()).item()
        for a, b in zip(gradients["chunks"], gradients["loop"], strict=True)
    ]
    found |= {
        "speed_ratio": found["loop"]["seconds"] / found["chunks"]["seconds"],
        "memory_ratio": found["chunks"]["peak_bytes"] / found["loop"]["peak_bytes"],
        "largest_difference_of_gradients": max(errors),
    }
    print(f"{name}, {length} tokens: {found}", flush=True)
    return found


def make_hybrid(work: Path, data: Path) -> Workload:
    """The small Qwen 3.5 with the rows and the tokenizer of another model."""
    base = make_workload(SHAPES["tiny"], work, data, dtype="float32", num_rows=NUM_ROWS, template=TEMPLATE)
    folder = base.folder / "qwen3_5"
    folder.mkdir(exist_ok=True)
    write_model("hybrid", base.model, folder / "model")
    result = replace(base, folder=folder, stored_bytes=(folder / "model" / "model.safetensors").stat().st_size)
    for ours, theirs in ((result.dataset, base.dataset), (result.first_batch, base.first_batch)):
        shutil.copy(theirs, ours)
    return result


def measure_training(workload: Workload, conditions: Conditions, repeat: int, save: Callable[[Result], None]) -> None:
    """Every entry, in turns; the fastest run counts. `save` gets what there is after each run."""
    part: Result = {"rows": len(workload.rows), "tokens": workload.num_tokens, "weights_bytes": workload.weights_bytes}
    best: dict[str, Result] = {}
    for _ in range(repeat):
        for entry in entries(["ours", "mlx_lm"], [1], [EFFECTIVE_BATCH]):
            result = {"name": entry.name, **measure(entry, workload, conditions)}
            print(f"  {entry.name}: {result.get('tokens_per_s') or result}", flush=True)
            if result.get("tokens_per_s", 0) >= best.get(entry.name, {}).get("tokens_per_s", 0):
                best[entry.name] = result
            runs = list(best.values())
            differing = loss_disagreements(runs, TOLERANCE["float32"])
            save(part | {"runs": runs, "ratios": ratios(runs), "loss_disagreements": differing})


def show_rule(results: Result) -> None:
    """Print the table."""
    rows = [
        [
            f"{name}, {int(length):,} tokens",
            *(f"{1e3 * found[side]['seconds']:,.0f} ms" for side in ("chunks", "loop")),
            f"{found['speed_ratio']:.1f}",
            *(gigabytes(found[side]["peak_bytes"]) for side in ("chunks", "loop")),
            f"{found['memory_ratio']:.3f}",
        ]
        for name, by_length in results.items()
        for length, found in by_length.items()
    ]
    columns = ("", "chunks", "loop", "times as fast", "peak of chunks", "of the loop", "share")
    show_table("the rule alone, forward and backward", columns, rows)


def show_training(part: Result) -> None:
    """Print the table."""
    rows = [
        [run["name"], f"{run['tokens_per_s']:,.0f}", gigabytes(run["above_weights_bytes"])]
        if "tokens_per_s" in run
        else [run["name"], "failed", ""]
        for run in part["runs"]
    ]
    show_table("a small Qwen 3.5", ("", "tokens/s", "above weights"), rows)
    for ratio in part["ratios"]:
        print(f"{ratio['tokens_per_s']:.2f}x {ratio['peer']}, {ratio['setting']}")


if __name__ == "__main__":
    main()
