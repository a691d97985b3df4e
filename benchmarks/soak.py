"""Does memory grow in a long run?

    python benchmarks/soak.py [--steps 2000] [--options '--validation-split 0.1 --eval-every 100']

Trains the bundled model with the real command, all of its hooks included, in this process, and measures MLX's active
memory and cache and the process's resident memory after an early step and after the last. Accepted: no growth in active
memory, a cache within its limit, and resident memory that grows by less than 5 %.
"""

import argparse
import gc
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

from mlxmath.backends.blas import preload  # noqa: E402

preload()

import click  # noqa: E402
import mlx.core as mx  # noqa: E402

from mlxmath.console import duration, size  # noqa: E402
from mlxmath.files import atomic_json  # noqa: E402
from mlxmath.train import main as train  # noqa: E402
from mlxmath.training.events import ProgressBar  # noqa: E402
from mlxmath.training.fit import StepReport  # noqa: E402

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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--early", type=int, default=200, help="step that growth is counted from")
    parser.add_argument("--options", default="--validation-split 0.1 --eval-every 100", help="more for `train`")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results" / "soak.json")
    options = parser.parse_args()
    result = soak(options.steps, options.early, shlex.split(options.options))
    steps = result["steps"]
    first, last = steps[options.early], steps[max(steps)]
    growth = {name: 100 * (last[name] / first[name] - 1) for name in first}
    click.echo(f"{'step':>6} {'active':>10} {'cache':>10} {'RSS':>10}")
    for step in sorted(steps):
        click.echo(f"{step:6}" + "".join(f" {size(value):>10}" for value in steps[step].values()))
    shown = ", ".join(f"{name.removesuffix('_bytes')} {value:+.1f} %" for name, value in growth.items())
    click.echo(f"from step {options.early} to {max(steps)}, in {duration(result['seconds'])}: {shown}")
    result |= {
        "growth_percent": growth,
        "machine": {
            "platform": platform.platform(),
            "device": str(mx.default_device()),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("mlx", "mlx-lm", "numpy")},
        },
        "commit": subprocess.run(
            ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
    }
    atomic_json(options.out, json.loads(json.dumps(result)))
    click.echo(f"-> {options.out}")
    grown = [name for name, limit in MAX_GROWTH.items() if growth[name] > limit]
    if grown:
        raise SystemExit(f"grew: {', '.join(grown)}")


if __name__ == "__main__":
    main()
