"""How much faster are matrix products on a CPU with the BLAS that mlxmath loads than with the one that MLX brings?

    python benchmarks/bench_blas.py

A square float32 product of 1,024 rows on Linux, each way in a process of its own: the best of several.
Writes benchmarks/results/blas.json.
"""

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import REPOSITORY, command_line, machine, save_json

ROWS = 1024
MEASURE = f"""
import sys, time
name = None
if sys.argv[1] == "loaded":
    from mlxmath.runtime.blas import preload
    name = preload()
import mlx.core as mx
mx.set_default_device(mx.cpu)
x = mx.random.normal(({ROWS}, {ROWS}))
mx.eval(x @ x)
best, end = float("inf"), time.perf_counter() + 4
while time.perf_counter() < end:
    begin = time.perf_counter()
    mx.eval(x @ x)
    best = min(best, time.perf_counter() - begin)
print(name, {2 * ROWS**3} / best)
"""


def main() -> None:
    """Measure and write the results."""
    parser = command_line(__doc__, "blas.json")
    options = parser.parse_args()
    record = {"question": __doc__.splitlines()[0], "machine": machine(("mlx",)), "rows": ROWS}
    for way in ("loaded", "brought"):
        command = [sys.executable, "-c", MEASURE, way]
        environment = {"PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        name, flops_per_s = done.stdout.split()
        record[way] = {"library": name, "flops_per_s": float(flops_per_s)}
        print(f"{way}: {name}, {float(flops_per_s) / 1e9:.0f} GFLOP/s")
    record["times"] = record["loaded"]["flops_per_s"] / record["brought"]["flops_per_s"]
    save_json(options.out, record)


if __name__ == "__main__":
    main()
