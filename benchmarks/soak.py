"""Does memory grow in a long run?

    python benchmarks/soak.py [--steps 2000] [--options '--validation-split 0.1 --eval-every 100']

Trains the bundled model with the real command, all of its hooks included, in this process, and measures MLX's active
memory and cache and the process's resident memory after an early step and after the last. Accepted: no growth in active
memory, a cache within its limit, and resident memory that grows by less than 5 %.
"""

import gc
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import REPOSITORY, command_line, machine, save_json
from mlxmath.commands.train import main as train
from mlxmath.runtime.console import duration, size
from mlxmath.training.events import StepReport
from mlxmath.training.logging import ProgressBar

MAX_GROWTH = {"active_bytes": 0.1, "rss_bytes": 5.0}
"""Percent."""


def rss_bytes() -> int:
    """Resident memory of this process now."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    asked = subprocess.run(["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, text=True, check=True)
    return int(asked.stdout) * 1024


def measure() -> dict[str, int]:
    """Memory in bytes, after Python's own garbage is gone."""
    import mlx.core as mx

    gc.collect()
    return {"active_bytes": mx.get_active_memory(), "cache_bytes": mx.get_cache_memory(), "rss_bytes": rss_bytes()}


def soak(steps: int, early: int, options: list[str]) -> dict[str, Any]:
    """Train for `steps` and return what was measured, by step."""
    found: dict[int, dict[str, int]] = {}
    every = max(1, steps // 20)
    show = ProgressBar.on_step

    def on_step(bar: ProgressBar, report: StepReport) -> None:
        show(bar, report)
        step = report.position.step
        if step == early or step % every == 0:
            found[step] = measure()

    arguments = [
        "--debug", "--num-examples", "200", "--max-seq-len", "128", "--batch-size", "2",
        "--grad-accumulation-steps", "2", "--num-epochs", "1000000", "--max-steps", str(steps), "--save-every", "100",
        *options,
    ]  # fmt: skip
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        with mock.patch.object(ProgressBar, "on_step", on_step):
            train.main(arguments, standalone_mode=False)
        os.chdir(REPOSITORY)
    return {"steps": found, "seconds": time.perf_counter() - started, "arguments": arguments}


def main() -> None:
    """Measure, print a table, write the JSON, and exit with 1 if memory grew."""
    parser = command_line(__doc__, "soak.json")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--early", type=int, default=200, help="step that growth is counted from")
    parser.add_argument("--options", default="--validation-split 0.1 --eval-every 100", help="more for `train`")
    options = parser.parse_args()
    result = soak(options.steps, options.early, shlex.split(options.options))
    steps = result["steps"]
    first, last = steps[options.early], steps[max(steps)]
    growth = {name: 100 * (last[name] / first[name] - 1) for name in first}
    print(f"{'step':>6} {'active':>10} {'cache':>10} {'RSS':>10}")
    for step in sorted(steps):
        print(f"{step:6}" + "".join(f" {size(value):>10}" for value in steps[step].values()))
    shown = ", ".join(f"{name.removesuffix('_bytes')} {value:+.1f} %" for name, value in growth.items())
    print(f"from step {options.early} to {max(steps)}, in {duration(result['seconds'])}: {shown}")
    save_json(options.out, result | {"growth_percent": growth, "machine": machine(("mlx", "mlx-lm", "numpy"))})
    print(f"-> {options.out}")
    grown = [name for name, limit in MAX_GROWTH.items() if growth[name] > limit]
    if grown:
        raise SystemExit(f"grew: {', '.join(grown)}")


if __name__ == "__main__":
    main()
