"""Does `demo-grpo` raise the share of exact answers to 200 unseen problems, and a constant reward not?

    python benchmarks/bench_demo_grpo.py

Trains the start as the recipe says, improves it (`grpo --recipe demo-grpo`), once with a reward that is always 1, and
twice for a few steps, which must give the same adapters, and asks all the same problems, the base at the prompt that
suits it best. Shares of right answers have Wilson's 95 % intervals, differences Newcombe's paired ones. Writes
benchmarks/results/demo_grpo.json.
"""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import common
from benchmarks.processes import run_command, run_process

LIMIT_S = 1500
START_STEPS = "300"
FEW_STEPS = "6"
BASE, START, IMPROVED, CONTROL = "base", "adapters", "adapters-grpo", "adapters-control"
REPEATED = ("adapters-once", "adapters-again")


def main() -> None:
    """Measure and write the results."""
    parser = common.command_line(__doc__, "demo_grpo.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "control.py").write_text("def one(samples):\n    return [1.0 for _ in samples]\n")
        seconds = {
            "start": command(folder, "train", "--recipe", "demo", "--max-steps", START_STEPS),
            "grpo": command(folder, "grpo", "--recipe", "demo-grpo"),
            "control": learn_nothing(folder),
        }
        for adapter in REPEATED:
            command(folder, "grpo", "--recipe", "demo-grpo", "--max-steps", FEW_STEPS, "--adapter-path", adapter)
        right = ask(folder, (START, IMPROVED, CONTROL))
        first, second = ((folder / adapter / "adapters.safetensors").read_bytes() for adapter in REPEATED)
    results = {
        f"{after} against {before}": compare(right[before], right[after])
        for before, after in ((START, IMPROVED), (BASE, IMPROVED), (START, CONTROL))
    }
    shares = {name: share(found) for name, found in right.items()}
    record = {"what": __doc__.splitlines()[0], "seconds": seconds, "shares": shares, "results": results}
    record[f"the same adapters when {FEW_STEPS} steps are repeated"] = first == second
    common.save_json(options.out, record | {"machine": common.machine(("mlx", "mlx-lm", "mlxmath"))})
    ends = ("low", "high")
    rows = [[name, *(f"{found[key]:.3f}" for key in ("share", *ends))] for name, found in shares.items()]
    common.show_table("right answers", ["model", "share", "from", "to"], rows)
    rows = [[names, *(f"{found[key]:.3f}" for key in ("difference", *ends)), str(found["fixed"]), str(found["broken"])]
            for names, found in results.items()]  # fmt: skip
    common.show_table("demo-grpo", ["compared", "difference", "from", "to", "fixed", "broken"], rows)


def command(folder: Path, *arguments: str) -> float:
    """Seconds of a command of mlxmath."""
    return round(run_command(folder, *arguments, timeout_s=LIMIT_S), 1)


def learn_nothing(folder: Path) -> float:
    """Seconds of the run whose rewards are all the same: it says that there is nothing to learn, and saves."""
    arguments = ("--recipe", "demo-grpo", "--reward", "control:one", "--num-examples", "64", "--adapter-path", CONTROL)
    process = run_process(
        [sys.executable, "-m", "mlxmath", "grpo", *arguments],
        timeout_s=LIMIT_S, folder=folder, environment={"PYTHONPATH": str(common.REPOSITORY)},
    )  # fmt: skip
    if process.returncode != 1 or "nothing to learn" not in process.output:
        sys.exit(f"the control should find nothing to learn: {process.failure or 'it ended well'}")
    return round(process.seconds, 1)


def ask(folder: Path, adapters: tuple[str, ...]) -> dict[str, list[bool]]:
    """Which problems the base and each adapter answer right."""
    from mlxmath.demo.__main__ import BASE_TEMPLATE

    named = [part for adapter in adapters for part in ("--adapter-path", adapter)]
    command(folder, "evaluate", "--compare", *named, "--template-for", f"{BASE}={BASE_TEMPLATE}", "--run-name", "asked")
    lines = (folder / "evaluation_results" / "asked" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    samples = sorted((json.loads(line) for line in lines), key=lambda sample: sample["id"])
    return {
        label: [sample["correct"] for sample in samples if sample["contestant"] == label] for label in (BASE, *adapters)
    }


def share(right: list[bool]) -> dict[str, float]:
    """The share of right answers, with its 95 % interval."""
    from mlxmath.evaluation.stats import wilson_interval

    interval = wilson_interval(sum(right), len(right))
    return {"share": interval.estimate, "low": interval.low, "high": interval.high}


def compare(before: list[bool], after: list[bool]) -> dict[str, float]:
    """The difference of the shares of right answers, with its paired 95 % interval, and how many answers changed."""
    from mlxmath.evaluation.stats import mcnemar_exact, paired_interval

    interval, changed = paired_interval(before, after), mcnemar_exact(before, after)
    return {
        "difference": interval.estimate, "low": interval.low, "high": interval.high,
        "fixed": changed.num_fixed, "broken": changed.num_broken, "p value": changed.p_value,
    }  # fmt: skip


if __name__ == "__main__":
    main()
