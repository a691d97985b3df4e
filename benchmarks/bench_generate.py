"""How fast are problems answered, many at a time? Against an earlier build and `mlx_lm.generate.batch_generate`.

    python benchmarks/bench_generate.py [--shape 135m|small|0.5b|all] [--old CHECKOUT] [--problems 100] [--tokens 64]
                                        [--rounds 1] [--quick]

All answer the same GSM8K problems greedily on the same model folder (random weights, so nearly all answers are as long
as they may be) in float32, as many at a time as `evaluate` takes by itself on a CPU, each in a process of its own, in
turns. Tokens/s are those of new tokens, with the prompts read in the same time. Answers are compared up to the first
difference, where the logits of the two tokens must be within 1e-3: a tie. `--quick` takes a few problems and tokens.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import REPOSITORY, command_line, machine, save_json, show_table
from benchmarks.runs import TEMPLATE, run_worker
from benchmarks.shapes import SHAPES
from benchmarks.workload import Workload, make_workload

TIE = 1e-3
MEASURED = ("small", "135m", "0.5b")
QUICK = {"small": (24, 24), "135m": (16, 16), "0.5b": (8, 8)}
"""Problems and tokens of each."""
SHOWN = {"ours": "mlxmath", "old": "mlxmath, earlier", "mlx_lm": "mlx_lm.batch_generate"}
Result = dict[str, Any]


def main() -> None:
    """Run, print tables, write the JSON."""
    options = parse()
    record: Result = {
        "question": "new tokens/s of batches of answers, prompts read",
        "machine": machine(("mlx", "mlx-lm", "mlxmath", "numpy")),
        "shapes": {},
    }
    for name in MEASURED if options.shape == "all" else [options.shape]:
        problems, tokens = QUICK.get(name, (8, 8)) if options.quick else (options.problems, options.tokens)
        workload = make_workload(
            SHAPES[name], options.work, options.data, dtype="float32", num_rows=problems, template=TEMPLATE
        )
        record["shapes"][name] = part = measured(workload, tokens, options)
        save_json(options.out, record)
        show_table(
            f"{part['shape']}: {problems} problems of {part['prompt_tokens'] / problems:.0f} tokens, {tokens} new ones",
            ("", "tokens/s", "s", "peak RSS, GB"),
            [
                [
                    SHOWN[who],
                    f"{found['tokens_per_s']:.1f}",
                    f"{found['seconds']:.1f}",
                    f"{found['peak_rss_bytes'] / 1e9:.2f}",
                ]
                for who, found in part["contestants"].items()
            ],
        )
        print("  ".join(f"{name} {value:.2f}x" for name, value in part["times"].items()), part["answers"], flush=True)
    print(f"\n-> {options.out}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__, "generate.json", "data", "work", "backend", timeout_s=1200)
    parser.add_argument("--shape", default="all", choices=("all", *SHAPES))
    parser.add_argument("--old", type=Path, help="checkout of an earlier build, to be measured beside this one")
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer at most")
    parser.add_argument("--concurrency", type=int, default=128, help="answers at a time")
    parser.add_argument("--old-concurrency", type=int, default=64, help="those of the earlier build")
    parser.add_argument("--rounds", type=int, default=1, help="of all contestants (default: 1)")
    parser.add_argument("--quick", action="store_true", help="few problems and tokens")
    return parser.parse_args()


def measured(workload: Workload, tokens: int, options: argparse.Namespace) -> Result:
    """All contestants on one model, in turns."""
    prompts = [row.tokens[: row.num_prompt] for row in workload.rows]
    job = {
        "model": str(workload.model), "backend": options.backend, "prompts": prompts, "max_tokens": tokens,
        "concurrency": options.concurrency, "keeps_answers": True,
    }  # fmt: skip
    runs: dict[str, list[Result]] = {"ours": [], **({"old": []} if options.old else {}), "mlx_lm": []}
    for _ in range(options.rounds):
        for who, found in runs.items():
            asked = job | {"who": "mlx_lm_batch" if who == "mlx_lm" else "evaluation"}
            if who == "old":
                asked["concurrency"] = options.old_concurrency
            with tempfile.TemporaryDirectory() as folder:
                checkout = options.old if who == "old" else REPOSITORY
                result = run_worker("generation", asked, Path(folder), options.timeout, checkout=checkout)
            if "failed" in result:
                sys.exit(f"{SHOWN[who]}: {result['failed']}")
            found.append(result)
            print(f"  {SHOWN[who]}: {result['tokens_per_s']:.1f} tokens/s, {result['seconds']:.1f} s", flush=True)
    answers = {who: found[0].pop("answers", None) for who, found in runs.items()}
    contestants = {
        who: {
            name: median(run[name] for run in found) for name in ("tokens_per_s", "seconds", "peak_rss_bytes")
        } | {"seconds_of_runs": [run["seconds"] for run in found], "blas": found[0]["blas"]}
        for who, found in runs.items()
    }  # fmt: skip
    ours = contestants["ours"]["tokens_per_s"]
    return {
        "shape": workload.shape.title,
        "new_tokens": tokens,
        "prompt_tokens": sum(map(len, prompts)),
        "concurrency": options.concurrency,
        "contestants": contestants,
        "times": {SHOWN[who]: ours / found["tokens_per_s"] for who, found in contestants.items() if who != "ours"},
        "answers": compared(workload.model, prompts, answers["ours"], answers["mlx_lm"]),
    }


def compared(folder: Path, prompts: list[list[int]], ours: list[list[int]], theirs: list[list[int]]) -> Result:
    """How many answers are the same, or differ first where two tokens are equally likely, or otherwise."""
    import mlx.core as mx
    from mlx_lm import load

    mx.set_default_device(mx.cpu)
    model, tokenizer, *_ = load(str(folder))
    end = tokenizer.eos_token_id
    counts = {"identical": 0, "ties": 0, "unexplained": 0}
    for prompt, *both in zip(prompts, ours, theirs, strict=True):
        one, other = ([*answer, end] for answer in both)
        place = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
        if place is None:
            counts["identical"] += 1
            continue
        logits = model(mx.array([prompt + one[:place]]))[0, -1]
        gap = abs(float(logits[one[place]] - logits[other[place]]))
        counts["ties" if gap < TIE else "unexplained"] += 1
    return counts


if __name__ == "__main__":
    main()
