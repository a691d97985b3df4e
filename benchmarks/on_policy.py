"""What does a student learn most from in the same time: a teacher's say on its answers, rewards, a teacher's texts?

    python benchmarks/on_policy.py [--seconds 120] [--work FOLDER]

A student of the bundled model, trained briefly, is improved for so many seconds each by on-policy distillation (`gkd`)
from the fully tuned adapter, once with the dataset's own solutions to three quarters of the problems, by `grpo`, and by
`train` on what that teacher wrote to the same problems and the grader
found right; writing them is not counted. All answer the same 200 unseen problems. Shares of right answers have Wilson's
95 % intervals, differences Newcombe's paired ones. Teacher, student and texts are kept in FOLDER. Writes
benchmarks/results/on_policy.json.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import common
from benchmarks.bench_demo_grpo import BASE, ask, command, compare, share

TEACHER, START, TEXTS = "teacher", "start", "texts"
ON_POLICY, MIXED = "on-policy distillation", "the same on a quarter of the problems"
REWARDED, OFF_POLICY = "grpo", "sft on the teacher's texts"
MANY = "100000"
"""Steps that no run gets to: each ends by its deadline."""


def main() -> None:
    """Measure and write the results."""
    parser = common.command_line(__doc__, "on_policy.json", "work")
    parser.add_argument("--seconds", type=float, default=120.0, help="of training, each (default: 120)")
    parser.add_argument("--start-steps", default="225", help="of the student (default: 225)")
    parser.add_argument("--teacher-steps", help="of the teacher (default: the recipe's)")
    parser.add_argument("--seed", default="0", help="of these runs (default: 0)")
    options = parser.parse_args()
    folder: Path = options.work / "on-policy"
    folder.mkdir(parents=True, exist_ok=True)
    seconds = prepare(folder, options.start_steps, options.teacher_steps)
    time = ("--max-training-time-hours", str(options.seconds / 3600), "--seed", options.seed, "--overwrite")
    warmup = ("--warmup-steps", "5")  # the recipe's own are for a run of 750 steps
    followed = ("gkd", "--recipe", "demo", "--teacher", f"mlx_model:{TEACHER}", "--max-completion-length", "64",
                "--batch-size", "32", "--learning-rate", "4e-3", "--num-epochs", MANY, *warmup)  # fmt: skip
    runs = {
        ON_POLICY: followed,
        MIXED: (*followed, "--lmbda", "0.25", "--beta", "0.5"),
        REWARDED: ("grpo", "--recipe", "demo-grpo", "--max-steps", MANY),
        OFF_POLICY: ("train", "--recipe", "demo", "--dataset", f"{TEXTS}/solutions.jsonl", "--num-epochs", MANY,
                     *warmup),
    }  # fmt: skip
    names = dict(zip(runs, ("adapters-gkd", "adapters-mixed", "adapters-grpo", "adapters-sft"), strict=True))
    for name, arguments in runs.items():
        seconds[name] = command(folder, *arguments, "--init-adapter", START, "--adapter-path", names[name], *time)
    adapters = (START, TEACHER, *names.values())
    right = ask(folder, adapters)
    right = {BASE: right[BASE], START: right[START], TEACHER: right[TEACHER]} | {n: right[a] for n, a in names.items()}
    pairs = [(name, START) for name in names]
    pairs += [(after, before) for after in (ON_POLICY, MIXED) for before in (REWARDED, OFF_POLICY)]
    results = {f"{after} against {before}": compare(right[before], right[after]) for after, before in pairs}
    shares = {name: share(found) for name, found in right.items()}
    record = {"what": __doc__.splitlines()[0], "training seconds": options.seconds, "seconds": seconds,
              "settings": {name: list(arguments) for name, arguments in runs.items()}, "shares": shares,
              "results": results}  # fmt: skip
    common.save_json(options.out, record | {"machine": common.machine(("mlx", "mlx-lm", "mlxmath"))})
    ends = ("low", "high")
    rows = [[name, *(f"{found[key]:.3f}" for key in ("share", *ends))] for name, found in shares.items()]
    common.show_table("right answers", ["model", "share", "from", "to"], rows)
    rows = [[names, *(f"{found[key]:+.3f}" for key in ("difference", *ends)), str(found["fixed"]), str(found["broken"])]
            for names, found in results.items()]  # fmt: skip
    common.show_table("differences", ["compared", "difference", "from", "to", "fixed", "broken"], rows)
    if not 0.2 <= shares[START]["share"] <= 0.4:
        print(f"the student starts at {shares[START]['share']:.1%}, not at 20 to 40 %: see --start-steps")


def prepare(folder: Path, start_steps: str, teacher_steps: str | None) -> dict[str, float]:
    """Teacher, student and the teacher's texts, as far as they are not there; seconds of each that was made."""
    limit = () if teacher_steps is None else ("--max-steps", teacher_steps)
    made = {
        TEACHER: ("train", "--recipe", "demo", *limit, "--adapter-path", TEACHER),
        START: ("train", "--recipe", "demo", "--max-steps", start_steps, "--adapter-path", START),
        TEXTS: ("distill", "--dataset", "demo", "--teacher", f"mlx_model:{TEACHER}", "--samples", "1", "--temperature",
                "0", "--instruction", "", "--max-tokens", "96", "--output-path", TEXTS),
    }  # fmt: skip
    return {
        name: command(folder, *arguments, "--overwrite")
        for name, arguments in made.items()
        if not is_whole(folder / name)
    }


def is_whole(folder: Path) -> bool:
    """Whether a training, or a teacher's writing, has come to its end."""
    if (folder / "solutions.jsonl").exists():
        return True
    record = folder / "run.json"
    return record.exists() and json.loads(record.read_text(encoding="utf-8"))["status"] == "finished"


if __name__ == "__main__":
    main()
