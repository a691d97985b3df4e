"""What does the bundled model come to on 200 unseen problems, fine-tuned (`demo`) and by both stages (`pipeline`)?

    python benchmarks/bench_demo.py [--only demo,pipeline] [--work FOLDER]

Runs `python -m mlxmath.demo` and `mlxmath pipeline` as they are, and keeps of their results.json what the documents
show. FOLDER is kept: an evaluation that is there is not made again, and a pipeline goes on where it was interrupted.
Each part adds to benchmarks/results/demo.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import common
from benchmarks.processes import run_command

PARTS = {"demo": "evaluation_results/*/results.json", "pipeline": "two-stage/evaluation/results.json"}
"""Commands, and where their evaluation lies."""
LIMIT_S = 3600
KEPT = ("accuracy", "by", "faithfulness", "doubt", "measured", "equations", "tokens", "cut_off")


def main() -> None:
    """Run the parts and write the results."""
    parser = common.command_line(__doc__, "demo.json", "work")
    parser.add_argument("--only", default=",".join(PARTS), help="some of demo,pipeline (default: both)")
    options = parser.parse_args()
    record: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    record["what"] = __doc__.splitlines()[0]
    for part in options.only.split(","):
        folder = options.work / part
        folder.mkdir(parents=True, exist_ok=True)
        if not (found := [*folder.glob(PARTS[part])]):
            run_command(folder, "mlxmath.demo" if part == "demo" else part, timeout_s=LIMIT_S)
            found = [*folder.glob(PARTS[part])]
        record[part] = figures(found[0]) | {"machine": common.machine(("mlx", "mlx-lm", "mlxmath"))}
        if part == "pipeline":
            record[part]["solutions"] = len((folder / "two-stage/distilled/solutions.jsonl").read_text().splitlines())
        common.save_json(options.out, record)
        for name, model in record[part]["contestants"].items():
            accuracy = model["accuracy"]
            print(f"{part}: {name} {accuracy['value']:.1%} ({accuracy['low']:.1%} to {accuracy['high']:.1%})")


def figures(path: Path) -> dict[str, Any]:
    """What is kept of an evaluation's results.json."""
    results = json.loads(path.read_text(encoding="utf-8"))
    contestants = {
        name: {key: model[key] for key in KEPT if key in model} for name, model in results["contestants"].items()
    }
    comparisons = [
        {key: value for key, value in one.items() if not key.endswith("_ids")} for one in results["comparisons"]
    ]
    return {"num_problems": results["num_problems"], "contestants": contestants, "comparisons": comparisons}


if __name__ == "__main__":
    main()
