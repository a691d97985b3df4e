"""How fast is LoRA training, and in how much memory? Against mlx_lm.lora, torch + peft and others on MLX.

    python benchmarks/bench_train.py [--shape small|0.5b|all] [--contestants ours,mlx_lm,torch,…] [--repeat N] [--quick]
        [--peer-python unsloth=PATH] [--peer-python train_perf=PATH] [--peer-python mlx_lm_lora=PATH]

All train the same rows of GSM8K on the same model folder (random weights): rank-8 LoRA on q and v, loss on completions
only, effective batch 8, AdamW, float32. Each run is a fresh process; those on MLX have the same BLAS, torch the one it
comes with, on which it is much faster. tokens/s counts the same real tokens (prompt, completion, end-of-text; no
padding) for all, over every epoch after the first. "above weights" is peak device memory less the weights (for torch:
highest resident set less that at the start of training). "of ceiling" is the fraction of what this machine's matrix
products alone, by MLX, measured at the start in the model's shapes, would allow: 4 FLOP a frozen weight and token, the
head on target tokens only. The loss of the first batch must agree between all.

Three need Python environments of their own, made once (`--peer-python unsloth=unsloth/bin/python` …):

    python3 -m venv unsloth && unsloth/bin/pip install torch==2.13.0
    unsloth/bin/pip install 'mlx[cpu]' mlx-lm 'mlx-vlm<=0.7.9' 'transformers<=5.17' 'datasets<5' peft 'trl<=1.15' \\
        accelerate msgspec tyro cut_cross_entropy hf_transfer psutil torchao einops
    unsloth/bin/pip install --no-deps unsloth_zoo==2026.10.9
    python3 -m venv perf && perf/bin/pip install 'mlx-train-perf[mlx-lm]==0.9.1' 'mlx[cpu]==0.32.0' psutil
    python3 -m venv lora && lora/bin/pip install mlx-lm-lora==5.10.2 'mlx[cpu]' psutil
"""

import argparse
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import command_line, gigabytes, machine, save_json
from benchmarks.contestants import APART, NAMES, default_ours_batches, entries
from benchmarks.runs import TEMPLATE, Conditions
from benchmarks.shapes import SHAPES
from benchmarks.training import Result, measure_shape, show
from benchmarks.workload import make_workload

PACKAGES = ("mlx", "mlx-lm", "torch", "transformers", "peft", "numpy")


def main() -> None:
    """Run, print tables, write the JSON."""
    options = parse()
    batches = [2] if options.quick else [int(size) for size in options.batches.split(",")]
    ours_batches = [int(size) for size in options.ours_batches.split(",")] if options.ours_batches else None
    conditions = Conditions(
        backend=options.backend,
        num_epochs=options.epochs,
        timeout_s=options.timeout,
        peer_pythons=dict(pair.split("=", 1) for pair in options.peer_python),
        ours_options=shlex.split(options.ours_options),
    )
    names = options.contestants.split(",")
    if unknown := set(names) - set(NAMES):
        sys.exit(f"--contestants: {', '.join(sorted(unknown))} is unknown; there are {', '.join(NAMES)}")
    torch_blas = ["own", "preloaded"] if options.torch_blas == "both" else [options.torch_blas]
    record: Result = {
        "question": "tokens/s and memory of LoRA training",
        "machine": machine(PACKAGES),
        "data": str(options.data),
        "repeat": options.repeat,
        "epochs": f"{options.epochs}, the first not timed",
        "shapes": {},
    }
    disagreements = []
    for name in ["small", "0.5b"] if options.shape == "all" else [options.shape]:
        shape = SHAPES[name]
        num_rows = options.rows or (shape.quick_rows if options.quick else shape.rows)
        workload = make_workload(
            shape, options.work, options.data, dtype="float32", num_rows=num_rows, template=TEMPLATE
        )
        print(f"\n{shape.title}: {len(workload.rows)} rows, {workload.num_tokens:,} tokens, "
              f"{workload.num_targets:,} targets, weights {gigabytes(workload.weights_bytes)}", flush=True)  # fmt: skip
        chosen = entries(names, batches, ours_batches or default_ours_batches(batches), torch_blas)

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
    parser = command_line(__doc__, "train.json", "data", "work", "backend", timeout_s=1800)
    parser.add_argument("--shape", default="all", help="small, 0.5b or all (default)")
    parser.add_argument("--contestants", default=",".join(NAMES), help=f"some of {','.join(NAMES)} (default: all)")
    parser.add_argument(
        "--peer-python", action="append", default=[], metavar="NAME=PATH",
        help=f"Python of the environment of a contestant: {', '.join(APART)}",
    )  # fmt: skip
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
    options = parser.parse_args()
    if options.epochs < 2:
        parser.error("--epochs: the first epoch is not timed, so there must be at least 2")
    if unknown := {pair.split("=", 1)[0] for pair in options.peer_python if "=" in pair} - set(APART):
        parser.error(f"--peer-python: {', '.join(sorted(unknown))} is unknown; there are {', '.join(APART)}")
    if not all("=" in pair for pair in options.peer_python):
        parser.error("--peer-python: expected NAME=PATH, such as unsloth=unsloth/bin/python")
    if options.shape != "all" and options.shape not in SHAPES:
        parser.error(f"--shape: {options.shape} is unknown; there are {', '.join(SHAPES)} and all")
    return options


if __name__ == "__main__":
    main()
