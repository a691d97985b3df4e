"""Does `demo-grpo` raise the share of exact answers to 200 unseen problems, and a constant reward not?

    python benchmarks/bench_demo_grpo.py

Trains the start (`train --recipe demo --max-steps 28`), improves it (`grpo --recipe demo-grpo`) twice, and once
with a reward that is always 1, and asks all the same problems. Writes benchmarks/results/demo_grpo.json.
"""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import common
from benchmarks.processes import run_command

LIMIT_S = 1500
START, IMPROVED, AGAIN, CONTROL = "adapters", "adapters-grpo", "adapters-again", "adapters-control"


def main() -> None:
    """Measure and write the results."""
    parser = common.command_line(__doc__, "demo_grpo.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "control.py").write_text("def one(samples):\n    return [1.0 for _ in samples]\n")
        seconds = {
            "start": command(folder, "train", "--recipe", "demo", "--max-steps", "28"),
            "grpo": command(folder, "grpo", "--recipe", "demo-grpo"),
            "again": command(folder, "grpo", "--recipe", "demo-grpo", "--adapter-path", AGAIN),
            "control": command(
                folder, "grpo", "--recipe", "demo-grpo", "--reward", "control:one", "--num-examples", "64",
                "--adapter-path", CONTROL,
            ),
        }  # fmt: skip
        results = {adapter: compare(folder, adapter) for adapter in (IMPROVED, CONTROL)}
        first, second = ((folder / adapter / "adapters.safetensors").read_bytes() for adapter in (IMPROVED, AGAIN))
    record = {"what": __doc__.splitlines()[0], "seconds": seconds, "against the start": results}
    record["the same adapters when repeated"] = first == second
    common.save_json(options.out, record | {"machine": common.machine(("mlx", "mlx-lm", "mlxmath"))})
    rows = [[adapter, *(f"{found[key]:.3f}" for key in ("start", "after", "difference", "low", "high"))]
            for adapter, found in results.items()]  # fmt: skip
    common.show_table("demo-grpo", ["adapter", "start", "after", "difference", "from", "to"], rows)


def command(folder: Path, *arguments: str) -> float:
    """Seconds of a command of mlxmath."""
    return round(run_command(folder, *arguments, timeout_s=LIMIT_S), 1)


def compare(folder: Path, adapter: str) -> dict[str, float]:
    """The shares of right answers of the start and of `adapter`, and the paired interval of their difference."""
    from mlxmath.evaluation.stats import paired_interval

    right: list[list[bool]] = []
    for each in (START, adapter):
        command(folder, "evaluate", "--adapter-path", each, "--run-name", each, "--overwrite")
        lines = (folder / "evaluation_results" / each / "samples.jsonl").read_text(encoding="utf-8").splitlines()
        samples = sorted((json.loads(line) for line in lines), key=lambda sample: sample["id"])
        right.append([sample["correct"] for sample in samples])
    before, after = right
    interval = paired_interval(before, after)
    return {
        "start": sum(before) / len(before), "after": sum(after) / len(after),
        "difference": interval.estimate, "low": interval.low, "high": interval.high,
    }  # fmt: skip


if __name__ == "__main__":
    main()
