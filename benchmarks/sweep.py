"""Does successive halving find the best of a grid of 8 runs of the bundled model, in how much of its time?

    python benchmarks/sweep.py [--steps 750] [--work FOLDER]

Runs `mlxmath sweep` twice over ranks and learning rates, once to the end of all runs and once with halving, and keeps
the time of each, what each calls the best, and what the grid says of the one that halving found. The model and the
tokenized problems are made before. What halving found counts as the best if the grid does not show it to be worse: the
95 % interval of its difference over the held-out problems includes 0. On a quiet machine; some 20 minutes on 2 cores.
"""

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import common
from benchmarks.processes import run_command

SWEEP = """
[train]
recipe = "demo"
training.max_steps = {steps}
training.eval_every = {every}
training.save_every = {every}
training.warmup_steps = {warmup}
training.validation_split = 200

[vary]
lora.rank = [4, 16]
training.learning_rate = [1e-4, 5e-4, 2e-3, 8e-3]
"""
RUNGS = 4
LIMIT_S = 7200


def main() -> None:
    """Run both and write the results."""
    parser = common.command_line(__doc__, "sweep.json", "work")
    parser.add_argument("--steps", type=int, default=750, help="of a whole run (default: 750, the recipe's)")
    options = parser.parse_args()
    folder = options.work / "sweep"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    every = max(1, options.steps // 2 ** (RUNGS - 1))
    text = SWEEP.format(steps=options.steps, every=every, warmup=options.steps // 16)
    (folder / "grid.toml").write_text(text)
    (folder / "halving.toml").write_text(text + f"\n[halving]\nrungs = {RUNGS}\n")
    first = ("--recipe", "demo", "--set", "training.validation_split=200", "--max-steps", "1", "--adapter-path", "warm")
    run_command(folder, "train", *first, timeout_s=LIMIT_S)
    found = {name: measured(folder, name) for name in ("grid", "halving")}
    of_grid = {one["label"]: one for one in found["grid"]["configurations"]}
    best, chosen = (found[name]["best"] for name in ("grid", "halving"))
    record = {
        "what": __doc__.splitlines()[0], "machine": common.machine(("mlx", "mlx-lm", "mlxmath")),
        "steps": options.steps, **found, "share_of_time": found["halving"]["seconds"] / found["grid"]["seconds"],
        "same_best": best == chosen, "lost": of_grid[chosen]["held_out"] - of_grid[best]["held_out"],
        "difference": of_grid[chosen]["difference"],
    }  # fmt: skip
    common.save_json(options.out, record)
    for name in ("grid", "halving"):
        print(f"{name}: {found[name]['seconds']:.0f} s, {found[name]['steps']:,} steps, best {found[name]['best']}")
    print(
        f"halving took {record['share_of_time']:.0%} of the grid's time; its best loses {record['lost']:.4f} nats there"
    )


def measured(folder: Path, name: str) -> dict[str, Any]:
    """A sweep to its end, and how long it took."""
    start = time.monotonic()
    run_command(folder, "sweep", f"{name}.toml", "--folder", name, timeout_s=LIMIT_S)
    seconds = time.monotonic() - start
    results = json.loads((folder / name / "sweep.json").read_text())
    configurations = [
        {key: one[key] for key in ("number", "label", "steps", "held_out", "difference")}
        | {"seconds": one["runs"][0]["cost"]["seconds"]}
        for one in results["configurations"]
    ]
    best = next(one["label"] for one in configurations if one["number"] == results["best"])
    steps = sum(one["steps"] for one in configurations)
    return {"seconds": seconds, "steps": steps, "best": best, "configurations": configurations}


if __name__ == "__main__":
    main()
