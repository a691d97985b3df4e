"""How much faster is DPO where a pair's prompt is computed once, and in how much memory?

    python benchmarks/bench_dpo.py [--shape small] [--multiples 1,3] [--repeat 2]

Whole runs of `mlxmath dpo` (rank-8 LoRA on q and v of a model with random weights, float32, its defaults else) on the
same pairs, in turns with prompts computed once and for both completions. Each pair is trained on once, so that the
reference's log-probabilities count too. Completions have 256 tokens on average, from 192 to 320; prompts as many as
that times each of `--multiples`. What is compared: the median of a step, the peak of MLX's allocator (beside the
plan's), and the gradients of the first step.
"""

import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.common import command_line, gigabytes, machine, save_json, show_table
from benchmarks.runs import ALPHA, LEARNING_RATE, RANK, SEED, TARGETS, TEMPLATE, record_of
from benchmarks.shapes import SHAPES
from benchmarks.workload import Workload, make_workload

COMPLETION, SPREAD, PAIRS, STEPS = 256, 0.25, 2, 2
"""Tokens of a completion and by how much of them lengths differ; pairs a step; steps of a run."""
TOLERANCE = 1e-5
"""Of gradients, relative to the largest of an array."""
Result = dict[str, Any]


def main() -> None:
    """Run, print a table, write the JSON."""
    parser = command_line(__doc__, "dpo.json", "data", "work", "backend")
    parser.add_argument("--shape", default="small", help=f"one of {', '.join(SHAPES)} (default: small)")
    parser.add_argument("--multiples", default="1,3", help="tokens of a prompt, in completions (default: 1,3)")
    parser.add_argument("--repeat", type=int, default=2, help="runs of either kind (default: 2)")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    workload = make_workload(shape, options.work, options.data, dtype="float32", num_rows=1, template=TEMPLATE)
    record: Result = {
        "question": __doc__.splitlines()[0], "machine": machine(("mlx", "mlx-lm", "numpy")), "shape": shape.title,
        "pairs_a_step": PAIRS, "cases": [],
    }  # fmt: skip
    for multiple in map(int, options.multiples.split(",")):
        pairs = pairs_of(workload, options.data, multiple)
        runs: dict[bool, list[Result]] = {True: [], False: []}
        for _ in range(options.repeat):
            for shares, found in runs.items():
                found.append(run(workload, pairs, options.backend, shares=shares))
        record["cases"].append({"multiple": multiple, **compared(runs)})
        save_json(options.out, record)
    show_table(
        f"dpo, {shape.title}",
        ("prompt / completion", "prompts", "pairs/s", "tokens/s", "peak", "planned", "speed-up", "gradients differ by"),
        [
            [f"{case['multiple']}" if shares == "once" else "", shares, f"{found['pairs_per_s']:.2f}",
             f"{found['tokens_per_s']:,.0f}", gigabytes(found["peak_bytes"]), gigabytes(found["planned_bytes"]),
             f"{case['speedup']:.2f}" if shares == "once" else "",
             f"{case['gradient_error']:.1e}" if shares == "once" else ""]
            for case in record["cases"] for shares, found in case["prompts"].items()
        ],
    )  # fmt: skip
    wrong = [case["multiple"] for case in record["cases"] if not case["gradient_error"] <= TOLERANCE]
    print(f"-> {options.out}")
    if wrong:
        sys.exit(f"gradients differ: {wrong}")


def pairs_of(workload: Workload, data: Path, multiple: int) -> list[dict[str, str]]:
    """Parts of the data's text, of about as many tokens as they are to have."""
    from mlxmath.data.codec import load_tokenizer

    tokenizer = load_tokenizer(workload.model)
    ids = tokenizer.encode(data.read_text(encoding="utf-8")[:1_000_000], add_special_tokens=False)
    random = np.random.default_rng(SEED)

    def text(mean: int) -> str:
        length = int(mean * random.uniform(1 - SPREAD, 1 + SPREAD))
        start = int(random.integers(len(ids) - length))
        return str(tokenizer.decode(ids[start : start + length]))

    return [
        {"prompt": text(multiple * COMPLETION), "chosen": text(COMPLETION), "rejected": text(COMPLETION)}
        for _ in range(PAIRS * STEPS)
    ]


def run(workload: Workload, pairs: list[dict[str, str]], backend: str, *, shares: bool) -> Result:
    """A run over the pairs: seconds and tokens of each step, memory, the first step's gradients."""
    import mlxmath

    with tempfile.TemporaryDirectory() as folder, watched(shares=shares) as gradients:
        result = mlxmath.dpo(
            pairs, model=str(workload.model), mlx_path=str(workload.model), adapter_path=f"{folder}/run",
            cache_dir=f"{folder}/cache", template=TEMPLATE, lora_rank=RANK, lora_alpha=ALPHA, lora_targets=TARGETS,
            learning_rate=LEARNING_RATE, batch_size=PAIRS, grad_accumulation_steps=1, num_epochs=1,
            deduplicate="off", decontaminate="none", max_seq_len=4096, seed=SEED, backend=backend,
        )  # fmt: skip
        if not result.is_complete:
            sys.exit(f"a run ended by {result.ending}")
        record = record_of(result.folder)
    return {
        "steps": [{name: step[name] for name in ("seconds", "tokens", "targets", "loss")} for step in record["steps"]],
        "peak_bytes": record["peak_bytes"],
        "planned_bytes": record["planned_bytes"],
        "gradients": gradients,
    }


@contextmanager
def watched(*, shares: bool) -> Iterator[dict[str, np.ndarray]]:
    """Runs inside have prompts computed once or not; what is given fills with their first step's gradients."""
    from mlx.utils import tree_flatten

    from mlxmath.training import trainer
    from mlxmath.training.accumulate import Workers

    first: dict[str, np.ndarray] = {}
    apply = trainer.apply_gradients

    def noted(model: Any, optimizer: Any, sums: Any, *rest: Any) -> float:
        if not first:
            first.update({name: np.array(array) for name, array in tree_flatten(sums.grad_sum)})
        return apply(model, optimizer, sums, *rest)

    with patch.object(trainer, "apply_gradients", noted):
        if shares:
            yield first
        else:
            with patch.object(Workers, "cannot_share", "this is the other side of a benchmark"):
                yield first


def compared(runs: dict[bool, list[Result]]) -> Result:
    """The medians of either side, and how they compare."""
    sides: dict[str, Result] = {}
    firsts = {shares: found[0].pop("gradients") for shares, found in runs.items()}
    for shares, name in ((True, "once"), (False, "for both completions")):
        steps = [step for each in runs[shares] for step in each["steps"]]
        seconds = statistics.median(step["seconds"] for step in steps)
        sides[name] = {
            "seconds_a_step": round(seconds, 3),
            "pairs_per_s": round(PAIRS / seconds, 3),
            "tokens_per_s": round(statistics.mean(step["tokens"] for step in steps) / seconds, 1),
            "peak_bytes": max(each["peak_bytes"] for each in runs[shares]),
            "planned_bytes": runs[shares][0]["planned_bytes"],
            "steps": [[step["seconds"] for step in each["steps"]] for each in runs[shares]],
            "losses": [step["loss"] for step in runs[shares][0]["steps"]],
        }
    errors = [
        np.abs(firsts[True][name] - array).max() / np.abs(array).max() for name, array in firsts[False].items()
        if array.any()
    ]  # fmt: skip
    speedup = sides["for both completions"]["seconds_a_step"] / sides["once"]["seconds_a_step"]
    return {"speedup": round(speedup, 3), "gradient_error": float(max(errors)), "prompts": sides}


if __name__ == "__main__":
    main()
