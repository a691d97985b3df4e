"""How fast is LoRA training, and in how much memory? Against mlx_lm.lora, torch + peft and Unsloth's MLX trainer.

    python benchmarks/bench_train.py [--shape small|0.5b|all] [--contestants ours,mlx_lm,torch,unsloth]
                                     [--peer-python PATH] [--repeat N] [--quick]

All train the same rows of GSM8K on the same model folder (random weights): rank-8 LoRA on q and v, loss on completions
only, effective batch 8, AdamW, float32. Each run is a fresh process; those on MLX have the same BLAS, torch the one it
comes with, on which it is much faster. tokens/s counts the same real tokens (prompt, completion, end-of-text; no
padding) for all, over every epoch after the first. "above weights" is peak device memory less the weights (for torch:
highest resident set less that at the start of training). "of ceiling" is the fraction of what this machine's matrix
products alone, by MLX, measured at the start in the model's shapes, would allow: 4 FLOP a frozen weight and token, the
head on target tokens only. The loss of the first batch must agree between all.

Unsloth needs a Python environment of its own, made once:

    python3 -m venv unsloth && unsloth/bin/pip install torch==2.13.0
    unsloth/bin/pip install 'mlx[cpu]' mlx-lm 'mlx-vlm<=0.7.9' 'transformers<=5.17' 'datasets<5' peft 'trl<=1.15' \\
        accelerate msgspec tyro cut_cross_entropy hf_transfer psutil torchao einops
    unsloth/bin/pip install --no-deps unsloth_zoo==2026.10.9
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

from mlxmath.backends.blas import preload  # noqa: E402

preload()

from benchmarks import contestants  # noqa: E402
from benchmarks.common import (  # noqa: E402
    DEMO_ROWS,
    GSM8K,
    RESULTS,
    exit_on_sigterm,
    gigabytes,
    machine,
    save_json,
    show_table,
)
from benchmarks.contestants import NAMES, SHOWN, Conditions, Entry, measure, run_worker  # noqa: E402
from benchmarks.workload import EFFECTIVE_BATCH, SHAPES, Workload, make_workload  # noqa: E402

PACKAGES = ("mlx", "mlx-lm", "torch", "transformers", "peft", "numpy")
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}
CEILING_TOKENS = {"cpu": 512, "metal": 2_048, "cuda": 8_192}
"""Rows of the products that make the ceiling: enough that more are no faster."""
MIN_RUN_S = 10.0

Result = dict[str, Any]


def main() -> None:
    """Run, print tables, write the JSON."""
    options = parse()
    exit_on_sigterm()
    work = options.work or Path(tempfile.gettempdir()) / "mlxmath-benchmarks"
    data = options.data or (GSM8K if GSM8K.exists() else DEMO_ROWS)
    batches = [2] if options.quick else [int(size) for size in options.batches.split(",")]
    ours_batches = [int(size) for size in options.ours_batches.split(",")] if options.ours_batches else None
    conditions = Conditions(
        backend=options.backend,
        num_epochs=options.epochs,
        timeout_s=options.timeout,
        peer_python=options.peer_python,
        ours_options=contestants.split_options(options.ours_options),
    )
    names = options.contestants.split(",")
    if unknown := set(names) - set(NAMES):
        sys.exit(f"--contestants: {', '.join(sorted(unknown))} is unknown; there are {', '.join(NAMES)}")
    torch_blas = ["own", "preloaded"] if options.torch_blas == "both" else [options.torch_blas]
    record: Result = {
        "question": "tokens/s and memory of LoRA training",
        "machine": machine(PACKAGES),
        "data": str(data),
        "repeat": options.repeat,
        "epochs": f"{options.epochs}, the first not timed",
        "shapes": {},
    }
    disagreements = []
    for name in ["small", "0.5b"] if options.shape == "all" else [options.shape]:
        shape = SHAPES[name]
        num_rows = options.rows or (shape.quick_rows if options.quick else shape.rows)
        workload = make_workload(shape, work, data, dtype="float32", num_rows=num_rows, template=contestants.TEMPLATE)
        print(f"\n{shape.title}: {len(workload.rows)} rows, {workload.num_tokens:,} tokens, "
              f"{workload.num_targets:,} targets, weights {gigabytes(workload.weights_bytes)}", flush=True)  # fmt: skip
        chosen = contestants.entries(
            names, batches, ours_batches or contestants.default_ours_batches(batches), torch_blas
        )

        def save(part: Result, name: str = name) -> None:
            record["shapes"][name] = part
            save_json(options.out, record)

        part = measure_shape(workload, chosen, conditions, repeat=options.repeat, save=save)
        show(workload, part)
        disagreements += part["loss_disagreements"]
    print(f"\n-> {options.out}")
    if disagreements:
        sys.exit("the loss of the first batch does not agree:\n  " + "\n  ".join(disagreements))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="all", help="small, 0.5b or all (default)")
    parser.add_argument("--contestants", default=",".join(NAMES), help=f"some of {','.join(NAMES)} (default: all)")
    parser.add_argument("--peer-python", type=Path, help="Python of an environment with unsloth_zoo")
    parser.add_argument("--batches", default="1,2,4", help="micro-batch sizes to try (default: 1,2,4)")
    parser.add_argument("--ours-batches", help="the same for mlxmath (default: its own planning, where it has one)")
    parser.add_argument("--ours-options", default="", help="further options for mlxmath train, in one string")
    parser.add_argument(
        "--torch-blas",
        default="own",
        choices=("own", "preloaded", "both"),
        help="torch on the BLAS it comes with (default), on the one that the others share, or each",
    )
    parser.add_argument("--epochs", type=int, default=2, help="passes over the rows, the first not timed (default: 2)")
    parser.add_argument("--rows", type=int, help="rows to train on (default: the shape's)")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each, in turn; the fastest counts (default: 1)")
    parser.add_argument("--quick", action="store_true", help="few rows, one batch size")
    parser.add_argument("--backend", default="cpu", choices=("cpu", "cuda", "metal"))
    parser.add_argument("--timeout", type=float, default=1800, help="seconds a run may take (default: 1800)")
    parser.add_argument("--data", type=Path, help="problems and solutions (default: GSM8K, else the bundled problems)")
    parser.add_argument("--work", type=Path, help="folder for models, kept (default: in the temporary folder)")
    parser.add_argument("--out", type=Path, default=RESULTS / "train.json")
    options = parser.parse_args()
    if options.epochs < 2:
        parser.error("--epochs: the first epoch is not timed, so there must be at least 2")
    if options.shape != "all" and options.shape not in SHAPES:
        parser.error(f"--shape: {options.shape} is unknown; there are {', '.join(SHAPES)} and all")
    return options


def measure_shape(
    workload: Workload,
    chosen: Sequence[Entry],
    conditions: Conditions,
    *,
    repeat: int = 1,
    save: Callable[[Result], None] = lambda _: None,
    ceiling_s: float = 2.0,
    known_ceiling: Result | None = None,
    time_left_s: Callable[[], float] = lambda: float("inf"),
) -> Result:
    """Measure the ceiling and every entry.

    Args:
        workload: model and rows.
        chosen: who runs.
        conditions: how.
        repeat: runs of each entry, in turn; the fastest counts.
        save: gets what there is after each run.
        ceiling_s: time for the products of the ceiling.
        known_ceiling: the ceiling, if it was measured before.
        time_left_s: asked before each run; one that has less than `MIN_RUN_S` is skipped.
    """
    part: Result = {
        "shape": workload.shape.title,
        "rows": len(workload.rows),
        "tokens": workload.num_tokens,
        "targets": workload.num_targets,
        "weights_bytes": workload.weights_bytes,
        "mflops_per_token": round(workload.flops_per_token / 1e6, 2),
        "ceiling": dict(known_ceiling or ceiling(workload, _within(conditions, time_left_s()), ceiling_s)),
        "runs": [],
        "loss_disagreements": [],
        "ratios": [],
    }
    flops = part["ceiling"].get("flops_per_s")
    if flops:
        part["ceiling"]["tokens_per_s"] = round(flops / workload.flops_per_token, 1)
        print(f"matrix products alone: {flops / 1e9:,.0f} GFLOP/s, at most "
              f"{part['ceiling']['tokens_per_s']:,.0f} tokens/s", flush=True)  # fmt: skip
    else:
        print(f"matrix products alone: {part['ceiling']}", flush=True)
    best: dict[str, Result] = {}
    for _ in range(repeat):
        for entry in chosen:
            if "skipped" in best.get(entry.name, {}):
                continue
            if (left_s := time_left_s()) < MIN_RUN_S:
                result: Result = {"contestant": entry.contestant, "setting": entry.label, "skipped": "no time left"}
            else:
                result = measure(entry, workload, _within(conditions, left_s))
            rate = result.get("tokens_per_s")
            if rate and flops:
                result["of_ceiling"] = rate * workload.flops_per_token / flops
            print(f"  {entry.name}: {_outcome(result)}", flush=True)
            known = best.get(entry.name)
            rates = [*(known or {}).get("all_tokens_per_s", []), *([round(rate, 1)] if rate else [])]
            if known is None or (rate or 0) > known.get("tokens_per_s", 0):
                best[entry.name] = {"name": entry.name, **result}
            best[entry.name]["all_tokens_per_s"] = rates
            part["runs"] = list(best.values())
            part["loss_disagreements"] = loss_disagreements(part["runs"], TOLERANCE[workload.dtype])
            part["ratios"] = ratios(part["runs"])
            save(part)
    return part


def _within(conditions: Conditions, left_s: float) -> Conditions:
    return replace(conditions, timeout_s=max(MIN_RUN_S, min(conditions.timeout_s, left_s)))


def ceiling(workload: Workload, conditions: Conditions, seconds: float) -> Result:
    """What the matrix products of this model reach on this machine, measured in a fresh process."""
    shape = workload.shape
    linears = [[shape.layers, *size] for size in shape.block_linears().values()] + [[1, shape.vocab, shape.hidden]]
    job = {
        "linears": linears,
        "tokens": CEILING_TOKENS[conditions.backend],
        "dtype": workload.dtype,
        "backend": conditions.backend,
        "seconds": seconds / len(linears) / 2,
    }
    with tempfile.TemporaryDirectory() as folder:
        return run_worker("matmul", job, Path(folder), conditions.timeout_s)


def loss_disagreements(runs: Sequence[Result], tolerance: float) -> list[str]:
    """Pairs of contestants whose loss on the first batch differs by more than `tolerance` nats a target."""
    losses = [(run["name"], run["first_batch_loss"]) for run in runs if "first_batch_loss" in run]
    if not losses:
        return []
    name, loss = losses[0]
    return [
        f"{other} has {value:.6f}, {name} has {loss:.6f}"
        for other, value in losses[1:]
        if not abs(value - loss) <= tolerance
    ]


def ratios(runs: Sequence[Result]) -> list[Result]:
    """Ours, at its fastest, against each peer at its default and at its fastest."""
    good = [run for run in runs if "tokens_per_s" in run]
    ours = max((r for r in good if r["contestant"] == "ours"), key=lambda r: r["tokens_per_s"], default=None)
    if ours is None:
        return []
    found = []
    for contestant in NAMES[1:]:
        theirs = [run for run in good if run["contestant"] == contestant]
        if not theirs:
            continue
        fastest = max(theirs, key=lambda run: run["tokens_per_s"])
        defaults = [run for run in theirs if run["setting"] == "batch 4" and contestant == "mlx_lm"]
        defaults += [run for run in theirs if run["setting"].startswith("default")]
        compared = [("default", run) for run in defaults if run is not fastest]
        compared.append(("default and fastest" if fastest in defaults else "fastest", fastest))
        for kind, run in compared:
            found.append(
                {
                    "peer": SHOWN[contestant],
                    "setting": f"{kind}: {run['setting'].removeprefix('default ').strip('()')}",
                    "tokens_per_s": ours["tokens_per_s"] / run["tokens_per_s"],
                    "peak_device_bytes": _ratio(ours, run, "peak_device_bytes"),
                    "above_weights_bytes": _ratio(ours, run, "above_weights_bytes"),
                    "peak_rss_bytes": _ratio(ours, run, "peak_rss_bytes"),
                }
            )
    return found


def _ratio(ours: Result, theirs: Result, name: str) -> float | None:
    a, b = ours.get(name), theirs.get(name)
    return a / b if a and b else None


def _outcome(run: Result) -> str:
    for kind in ("skipped", "failed"):
        if kind in run:
            return f"{kind}: {run[kind]}"
    notes = "".join(f"; {note}" for note in run["notes"])
    return (
        f"{run['tokens_per_s']:,.1f} tokens/s, peak {gigabytes(run['peak_device_bytes'])}, "
        f"first batch's loss {_loss(run)}{notes}"
    )


def _loss(run: Result) -> str:
    return f"{run['first_batch_loss']:.5f}" if "first_batch_loss" in run else "-"


def show(workload: Workload, part: Result) -> None:
    """Print the tables of a shape."""
    rows = []
    for run in part["runs"]:
        if "tokens_per_s" not in run:
            rows.append([run["name"], "skipped" if "skipped" in run else "failed", *[""] * 5])
            continue
        share = run.get("of_ceiling")
        rows.append(
            [
                run["name"],
                f"{run['tokens_per_s']:,.1f}",
                f"{share:.0%}" if share else "-",
                gigabytes(run["peak_device_bytes"]),
                gigabytes(run.get("above_weights_bytes")),
                gigabytes(run["peak_rss_bytes"]),
                _loss(run),
            ]
        )
    columns = ("", "tokens/s", "of ceiling", "peak device", "above weights", "peak RSS", "first loss")
    show_table(workload.shape.title, columns, rows)
    if part["ratios"]:
        cells = [
            [f"{r['peer']}, {r['setting']}", *(f"{v:.2f}" if (v := r[name]) else "-" for name in _RATIO_COLUMNS)]
            for r in part["ratios"]
        ]
        show_table("mlxmath at its fastest / peer", ("", *_RATIO_COLUMNS.values()), cells)
    agreeing = not part["loss_disagreements"] and sum("first_batch_loss" in run for run in part["runs"]) > 1
    if agreeing:
        print(f"the loss of the first {EFFECTIVE_BATCH} rows agrees to {TOLERANCE[workload.dtype]:g} between all")


_RATIO_COLUMNS = {
    "tokens_per_s": "tokens/s",
    "peak_device_bytes": "peak device",
    "above_weights_bytes": "above weights",
    "peak_rss_bytes": "peak RSS",
}


if __name__ == "__main__":
    main()
