"""How many completions a second does GRPO draw and learn from, and in how much memory? Against mlx-lm-lora and Unsloth.

    python benchmarks/bench_grpo.py [--shape small|0.5b|all] [--contestants ours,mlx_lm_lora,unsloth]
                                    [--peer-python PATH] [--unsloth-python PATH] [--batches 1,4,8]

All draw 8 completions of the same GSM8K prompts on the same model folder (random weights, so a text ends by chance
only, once in as many tokens as the vocabulary has; the mean length is recorded), at temperature 1 from the whole
distribution, score them by the same function, and train rank-8 LoRA on q and v with AdamW in float32 without a KL term.
Ours and Unsloth take all prompts in an optimizer step; the second one is timed. Ours runs with its defaults, and with
the settings for little memory that `LITTLE` names. mlx-lm-lora takes `--batches` prompts
an iteration and decodes and scores as many rows at once (1 is its default); what it compiles is compiled before. All
have the same BLAS. "above weights" is peak device memory less the weights.

mlx-lm-lora needs an environment of its own, made once; Unsloth's is that of bench_train.py:

    python3 -m venv peer && peer/bin/pip install 'mlx[cpu]' mlx-lm mlx-lm-lora
"""

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import REPOSITORY, command_line, flags, gigabytes, machine, save_json, show_table
from benchmarks.processes import run_process
from benchmarks.runs import ALPHA, LEARNING_RATE, RANK, SEED, TARGETS, TEMPLATE, run_worker
from benchmarks.shapes import SHAPES
from benchmarks.workload import Workload, make_workload

GROUP_SIZE, NUM_STEPS = 8, 2
DEFAULTS = {"tiny": (4, 16), "small": (4, 128), "0.5b": (4, 32)}
"""Prompts in an optimizer step, and tokens of a completion, by shape."""
LITTLE = "--grad-checkpoint 1 --max-batch-tokens 128 --concurrency 12"
"""Options of ours for little memory."""
SHOWN = {"ours": "mlxmath", "mlx_lm_lora": "mlx-lm-lora", "unsloth": "Unsloth MLX"}
Result = dict[str, Any]
_RATIOS = ("completions_per_s", "above_weights_bytes", "peak_device_bytes")
_NUMBERS = (("completions_per_s", 3), ("mean_length", 1), ("load_average", 1))


def main() -> None:
    """Run, print tables, write the JSON."""
    options = parse()
    record: Result = json.loads(options.out.read_text()) if options.add and options.out.exists() else {"shapes": {}}
    record |= {
        "question": "completions/s of GRPO, drawn and learned from, and memory",
        "machine": machine(("mlx", "mlx-lm", "transformers", "numpy")),
        "data": str(options.data),
    }
    for name in ["small", "0.5b"] if options.shape == "all" else [options.shape]:
        prompts, tokens = DEFAULTS.get(name, DEFAULTS["0.5b"])
        prompts, tokens = options.prompts or prompts, options.tokens or tokens
        workload = make_workload(
            SHAPES[name], options.work, options.data, dtype="float32", num_rows=prompts, template=TEMPLATE
        )
        part: Result = {
            "shape": workload.shape.title,
            "prompts": prompts,
            "prompt_tokens": [row.num_prompt for row in workload.rows],
            "group_size": GROUP_SIZE,
            "completion_tokens": tokens,
            "weights_bytes": workload.weights_bytes,
            "runs": record["shapes"].get(name, {}).get("runs", []),
        }
        print(f"\n{workload.shape.title}: {prompts} prompts x {GROUP_SIZE} completions of {tokens} tokens", flush=True)
        for contestant, label, batch_size, setting in entries(options):
            result = measure(contestant, batch_size, setting, workload, tokens, options)
            result = {"contestant": contestant, "setting": label, "load_average": machine(())["load_average"], **result}
            part["runs"] = [r for r in part["runs"] if (r["contestant"], r["setting"]) != (contestant, label)] + [
                result
            ]
            print(f"  {SHOWN[contestant]}, {label}: {_outcome(result)}", flush=True)
            part["ratios"] = ratios(part["runs"])
            record["shapes"][name] = part
            save_json(options.out, record)
        show(part)
    print(f"\n-> {options.out}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__, "grpo.json", "data", "work", "backend", timeout_s=1200)
    parser.add_argument("--shape", default="all", choices=("all", *SHAPES))
    parser.add_argument("--contestants", default=",".join(SHOWN), help=f"some of {','.join(SHOWN)} (default: all)")
    parser.add_argument("--peer-python", type=Path, help="Python of an environment with mlx-lm-lora")
    parser.add_argument("--unsloth-python", type=Path, help="Python of an environment with unsloth_zoo")
    parser.add_argument("--batches", default="1,2,4", help="batch sizes of mlx-lm-lora to try (default: 1,2,4)")
    parser.add_argument("--unsloth-batches", default="1,8", help="those of Unsloth beside its default (default: 1,8)")
    parser.add_argument("--prompts", type=int, help="prompts in an optimizer step (default: the shape's)")
    parser.add_argument("--tokens", type=int, help="tokens of a completion (default: the shape's)")
    parser.add_argument("--iterations", type=int, help="of mlx-lm-lora (default: as many as take all prompts once)")
    parser.add_argument("--ours-options", default="", help="further options for mlxmath grpo, in one string")
    parser.add_argument("--add", action="store_true", help="keep the other runs that the results hold already")
    options = parser.parse_args()
    if unknown := set(options.contestants.split(",")) - set(SHOWN):
        parser.error(f"--contestants: {', '.join(sorted(unknown))} is unknown; there are {', '.join(SHOWN)}")
    return options


def entries(options: argparse.Namespace) -> list[tuple[str, str, int, dict[str, Any]]]:
    """(contestant, label, batch size, its own switches) of each run."""
    names = options.contestants.split(",")
    found: list[tuple[str, str, int, dict[str, Any]]] = []
    if "ours" in names:
        found += [("ours", "default", 0, {}), ("ours", "little memory", 0, {"options": LITTLE})]
    if "mlx_lm_lora" in names:
        sizes = map(int, options.batches.split(","))
        found += [("mlx_lm_lora", f"batch {size}" if size > 1 else "default (batch 1)", size, {}) for size in sizes]
    if "unsloth" in names:
        found.append(("unsloth", "default (batch 2, checkpointing)", 2, {"grad_checkpoint": True}))
        for size in filter(None, options.unsloth_batches.split(",")):
            found.append(("unsloth", f"batch {size}, no checkpointing", int(size), {"grad_checkpoint": False}))
    return found


def measure(
    contestant: str,
    batch_size: int,
    setting: dict[str, Any],
    workload: Workload,
    tokens: int,
    options: argparse.Namespace,
) -> Result:
    """Run one. The result has `completions_per_s` and memory, or `skipped`, or `failed` with the reason."""
    python = {"mlx_lm_lora": options.peer_python, "unsloth": options.unsloth_python}.get(contestant)
    with tempfile.TemporaryDirectory(prefix="mlxmath-bench-") as name:
        if contestant == "ours":
            result = run_ours(workload, tokens, options, Path(name), setting.get("options", ""))
        elif python is None:
            option = "--peer-python" if contestant == "mlx_lm_lora" else "--unsloth-python"
            result = {"skipped": f"no {option} was given"}
        else:
            job = {
                "model": str(workload.model),
                "prompts": [{"tokens": row.tokens[: row.num_prompt]} for row in workload.rows],
                "group_size": GROUP_SIZE,
                "completion_tokens": tokens,
                "batch_size": batch_size,
                "iterations": options.iterations,
                "rank": RANK,
                "alpha": ALPHA,
                "targets": TARGETS,
                "learning_rate": LEARNING_RATE,
                "dtype": workload.dtype,
                "backend": options.backend,
                "seed": SEED,
                "setting": setting,
            }
            script = {"mlx_lm_lora": "grpo_mlx_lm_lora", "unsloth": "grpo_unsloth"}[contestant]
            result = run_worker(script, job, Path(name), options.timeout, python)
    if "seconds" in result:
        result["completions_per_s"] = result["completions"] / result["seconds"]
        result["above_weights_bytes"] = result["peak_device_bytes"] - workload.weights_bytes
    return result


def run_ours(workload: Workload, tokens: int, options: argparse.Namespace, folder: Path, more: str) -> Result:
    """`python -m mlxmath grpo`, as a user would, with `more` options."""
    given = {
        "model": workload.model,
        "mlx-path": workload.model,
        "dataset": workload.dataset,
        "template": TEMPLATE,
        "adapter-path": folder / "run",
        "reward": "benchmarks.peers.grpo_rewards:varied",
        "num-generations": GROUP_SIZE,
        "max-completion-length": tokens,
        "lora-rank": RANK,
        "lora-alpha": ALPHA,
        "lora-targets": ",".join(TARGETS),
        "learning-rate": LEARNING_RATE,
        "batch-size": len(workload.rows) * GROUP_SIZE,
        "grad-accumulation-steps": 1,
        "num-epochs": NUM_STEPS,
        "save-every": 1_000_000,
        "seed": SEED,
        "backend": options.backend,
    }
    command = [sys.executable, "-m", "mlxmath", "grpo", *flags(given)]
    command += [*shlex.split(more), *shlex.split(options.ours_options)]
    finished = run_process(command, timeout_s=options.timeout, folder=REPOSITORY, environment={"HF_HUB_OFFLINE": "1"})
    if finished.failure:
        return {"failed": finished.failure}
    record = json.loads((folder / "run" / "run.json").read_text())
    events = [json.loads(line) for line in (folder / "run" / "events.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    rollouts = [event for event in events if event["event"] == "rollout"]
    return {
        "seconds": steps[-1]["time"] - steps[0]["time"],
        "completions": sum(event["completions"] for event in rollouts[1:]),
        "rollout_s": sum(event["seconds"] for event in rollouts[1:]),
        "update_s": sum(event["seconds"] for event in steps[1:]),
        "mean_length": sum(event["mean_length"] for event in rollouts) / len(rollouts),
        "peak_device_bytes": record["peak_bytes"],
        "peak_rss_bytes": finished.peak_rss_bytes,
        "planned_bytes": record["planned_bytes"],
        "options": more,
        "notes": [f"zero variance: {event['zero_variance']:.0%}" for event in rollouts if event["zero_variance"]],
    }


def ratios(runs: Sequence[Result]) -> list[Result]:
    """Each of ours against each peer at its default and at its fastest."""
    good = [run for run in runs if "completions_per_s" in run]
    found = []
    for contestant in ("mlx_lm_lora", "unsloth"):
        theirs = [run for run in good if run["contestant"] == contestant]
        compared = {run["setting"]: run for run in theirs if run["setting"].startswith("default")}
        if theirs:
            fastest = max(theirs, key=lambda run: run["completions_per_s"])
            compared[f"fastest: {fastest['setting']}"] = fastest
        found += [
            {"ours": ours["setting"], "peer": SHOWN[contestant], "setting": setting}
            | {name: ours[name] / run[name] for name in _RATIOS}
            for setting, run in compared.items()
            for ours in good
            if ours["contestant"] == "ours"
        ]
    return found


def _outcome(run: Result) -> str:
    for kind in ("skipped", "failed"):
        if kind in run:
            return f"{kind}: {run[kind]}"
    split = f" (rollout {run['rollout_s']:.1f} s, update {run['update_s']:.1f} s)" if "rollout_s" in run else ""
    return (
        f"{run['completions_per_s']:.3f} completions/s{split}, {run['completions']} of {run['mean_length']:.1f} "
        f"tokens, above weights {gigabytes(run['above_weights_bytes'])}{_planned(run)}"
        + "".join(f"; {note}" for note in run["notes"])
    )


def _planned(run: Result) -> str:
    planned = run.get("planned_bytes")
    return f", {planned / run['peak_device_bytes']:.2f} of its peak planned" if planned else ""


def show(part: Result) -> None:
    """Print the tables of a shape."""
    rows = []
    for run in part["runs"]:
        if "completions_per_s" in run:
            memory = [gigabytes(run[name]) for name in ("peak_device_bytes", "above_weights_bytes")]
            rate, length, load = (f"{run[n]:.{d}f}" for n, d in _NUMBERS)
            rows.append([f"{SHOWN[run['contestant']]}, {run['setting']}", rate, length, *memory, load])
    columns = ("", "completions/s", "tokens each", "peak device", "above weights", "load")
    show_table(part["shape"], columns, rows)
    cells = [
        [f"{r['ours']} / {r['peer']}, {r['setting']}", *(f"{r[name]:.2f}" for name in _RATIOS)] for r in part["ratios"]
    ]
    show_table("mlxmath / peer", ("", "completions/s", "above weights", "peak device"), cells)


if __name__ == "__main__":
    main()
