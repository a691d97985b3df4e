"""Does anything grow in a long run: memory, open files, threads?

    python benchmarks/soak.py [--only train] [--scale 0.01]

Trains the bundled model for 5,000 steps, improves it by GRPO for 500, and has it answer 6,000 questions, by functions
that the commands call, validation, checkpoints and curves included, in this process. MLX's active memory and cache, the
process's resident memory, its open files and its threads are measured after each step (of an evaluation: after each
100 questions). Their medians in the last quarter are compared with the first quarter after a warm-up of a tenth.
Accepted: active memory, open files and threads do not grow, resident memory grows by less than 2 %.
"""

import contextlib
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import command_line, machine, save_json, show_table
from mlxmath import api, grade
from mlxmath.runtime.console import duration, size

COUNTS = {"train": 5000, "grpo": 500, "evaluate": 6000}
"""Steps; of an evaluation, questions."""
AT_ONCE = 100
"""Questions of an evaluation, after which memory is at rest."""
MAX_GROWTH_PERCENT = {"active_bytes": 0.0, "rss_bytes": 2.0, "files": 0.0, "threads": 0.0}
_POINTS = 100
_TRAINING: dict[str, Any] = {
    "model": "demo", "dataset": "demo", "num_examples": 200, "num_epochs": 1_000_000, "batch_size": 2,
    "grad_accumulation_steps": 2, "save_every": 100, "eval_every": 100, "validation_split": 0.1, "backend": "cpu",
    "max_training_time_hours": 1000.0,
}  # fmt: skip

Found = dict[int, dict[str, int]]
"""What was measured, by step."""


def measure() -> dict[str, int]:
    """This process now, after Python's own garbage is gone."""
    import mlx.core as mx

    gc.collect()
    process = psutil.Process()
    return {
        "active_bytes": mx.get_active_memory(), "cache_bytes": mx.get_cache_memory(),
        "rss_bytes": process.memory_info().rss, "files": process.num_fds(), "threads": process.num_threads(),
    }  # fmt: skip


def measured_at(found: Found, total: int) -> Callable[[dict[str, Any]], None]:
    """Takes a run's events, and measures at some of its steps."""
    every = max(1, total // _POINTS)

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] % every == 0:
            found[event["step"]] = measure()

    return on_event


def train(count: int) -> Found:
    """Fine-tuning."""
    found: Found = {}
    api.sft(callback=measured_at(found, count), max_steps=count, max_seq_len=128, **_TRAINING)
    return found


def grpo(count: int) -> Found:
    """Reinforcement learning, of a model that is right now and then: else few rollouts are steps."""
    found: Found = {}
    grade(r"\boxed{(x+1)^2}", "x^2+2x+1")  # the process that compares formulas is started when first needed
    api.sft(max_steps=300, max_seq_len=128, adapter_path="start", **_TRAINING)
    api.grpo(
        callback=measured_at(found, count), max_steps=count, num_generations=4, max_completion_length=48,
        init_adapter="start", **_TRAINING,
    )  # fmt: skip
    return found


def evaluate(count: int) -> Found:
    """Questions, some at a time."""
    folder = api.convert("demo")
    found: Found = {}
    for done in range(AT_ONCE, max(count, 4 * AT_ONCE) + 1, AT_ONCE):
        api.evaluate("demo", model=folder, adapters=(), overwrite=True, limit=AT_ONCE, max_tokens=64, backend="cpu")
        found[done] = measure()
    return found


RUNS: dict[str, Callable[[int], Found]] = {"train": train, "grpo": grpo, "evaluate": evaluate}


def growth(found: Found) -> dict[str, float]:
    """Percent by which the median of the last quarter is above that of the first quarter after the warm-up."""
    steps = sorted(found)
    steady = steps[len(steps) // 10 + 1 :] or steps
    quarter = max(1, len(steady) // 4)
    first, last = (
        {name: median(found[step][name] for step in part) for name in found[steps[0]]}
        for part in (steady[:quarter], steady[-quarter:])
    )
    return {name: 100 * (last[name] / max(1, first[name]) - 1) for name in MAX_GROWTH_PERCENT}


@contextlib.contextmanager
def _elsewhere() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        yield


def main() -> None:
    """Measure, print a table each, write the JSON, and exit with 1 if anything grew."""
    parser = command_line(__doc__, "soak.json")
    parser.add_argument(
        "--only",
        action="append",
        choices=list(RUNS),
        help="one of the runs, beside what the JSON holds; may be repeated",
    )
    parser.add_argument("--scale", type=float, default=1.0, help="times the number of steps (default: 1)")
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.only and options.out.exists() else {}
    grown = []
    for name in options.only or RUNS:
        count = max(20, round(COUNTS[name] * options.scale))
        started = time.perf_counter()
        with _elsewhere():
            found = RUNS[name](count)
        seconds, by = time.perf_counter() - started, growth(found)
        steps = sorted(found)
        rows = [
            [f"{step:,}", *(size(found[step][each]) for each in ("active_bytes", "cache_bytes", "rss_bytes")),
             *(str(found[step][each]) for each in ("files", "threads"))]
            for step in steps[:: max(1, len(steps) // 10)]
        ]  # fmt: skip
        show_table(f"{name}, {duration(seconds)}", ["step", "active", "cache", "resident", "files", "threads"], rows)
        print(", ".join(f"{each.removesuffix('_bytes')} {value:+.2f} %" for each, value in by.items()))
        grown += [f"{name}: {each}" for each, most in MAX_GROWTH_PERCENT.items() if by[each] > most]
        results[name] = {"steps": found, "growth_percent": by, "seconds": round(seconds, 1)}
        save_json(options.out, {**results, "machine": machine(("mlx", "mlx-lm", "numpy"))})
    if grown:
        raise SystemExit(f"grew: {', '.join(grown)}")


if __name__ == "__main__":
    main()
