"""Does a model that reads two members' answers solve more than the better one? On the demo, with open answers.

    python benchmarks/bench_synthesize.py [--work FOLDER] [--rows 1200] [--problems 200]

The solutions of the bundled problems without their line `#### N`: what a member answers is text, of which nothing is
marked to be counted as a vote. Two members are fine-tuned for a short time on different halves of some problems; a
third adapter, which begins as the first member, learns to write the solution from a problem and both members' texts
(`evaluation/synthesis.py`), on problems that neither has seen; then all answer the unseen problems (`evaluate --vote
synthesize`). As it has learned from more problems than a member, a fourth one learns from the same, without the texts:
what reading brings is the difference from that. Steps whose results are in FOLDER are not made again. Writes
benchmarks/results/synthesize.json; some ten minutes on two cores.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import mlxmath
from benchmarks import common
from mlxmath.evaluation.paired import paired
from mlxmath.evaluation.samples import fingerprints_of, read_samples, read_settings
from mlxmath.evaluation.synthesis import requests
from mlxmath.runtime.sealed import unsealed_json

DEMO = common.REPOSITORY / "mlxmath" / "demo" / "problems"
MEMBERS = ("first", "second")
LONGEST = 120
"""Tokens of an answer."""
KEPT = ("base", "other", "difference", "low", "high", "p_value", "fixed", "broken", "total")


def main() -> None:
    """Train, ask, compare, write."""
    parser = common.command_line(__doc__, "synthesize.json", "work")
    parser.add_argument("--rows", type=int, default=1200, help="problems that the third adapter learns from")
    parser.add_argument("--problems", type=int, default=200, help="unseen problems that all are compared on")
    parser.add_argument("--steps", type=int, default=280, help="optimizer steps of each member")
    options = parser.parse_args()
    work = options.work / "synthesize"
    work.mkdir(parents=True, exist_ok=True)
    train, test = opened("train"), opened("test")
    model, own = work / "mlx_model", (len(train) - options.rows) // 2
    for number, member in enumerate(MEMBERS):
        rows = write(work / f"{member}.jsonl", train[number * own : (number + 1) * own])
        fit(work, member, rows, max_steps=options.steps, seed=number)
    unseen = write(work / "unseen.jsonl", train[2 * own :])
    read = write(work / "read.jsonl", reading(ask(work, unseen, "members"), train[2 * own :]))
    fit(work, "reader", read, max_seq_len=512, num_epochs=2, init_adapter=str(work / MEMBERS[0]))
    fit(work, "alone", unseen, max_seq_len=512, num_epochs=2, init_adapter=str(work / MEMBERS[0]))
    asked = write(work / "asked.jsonl", test[: options.problems])
    reader = {"vote": "synthesize", "vote_model": f"{model}:{work / 'reader'}"}
    found = unsealed_json(ask(work, asked, "compared", **reader) / "results.json", None)
    ask(work, asked, "alone", adapters=[work / "alone"])
    comparison = {name: found["votes"][-1][name] for name in KEPT}
    alone, read_by = right(work / "evaluations/alone", "tuned"), right(work / "evaluations/compared", "ensemble")
    reading_brings = paired([alone[i] for i in read_by], list(read_by.values()))
    record = {
        "what": __doc__.splitlines()[0],
        "members": {name: one["accuracy"] for name, one in found["contestants"].items()},
        "best": max(one["accuracy"]["value"] for one in found["contestants"].values()),
        "ensemble": found["ensemble"]["accuracy"], "comparison": comparison,
        "alone": sum(alone.values()) / len(alone), "against_alone": reading_brings, "rows": options.rows,
        "machine": common.machine(("mlx", "mlx-lm", "mlxmath")),
    }  # fmt: skip
    common.save_json(options.out, record)
    for name, one in (*record["members"].items(), ("ensemble", record["ensemble"])):
        print(f"{name}: {one['value']:.1%} ({one['low']:.1%} to {one['high']:.1%})")
    for name, one in (("best member", comparison), ("learning alone", reading_brings)):
        print(f"against {name}: {one['difference']:+.1%} ({one['low']:+.1%} to {one['high']:+.1%})")


def opened(name: str) -> list[dict[str, Any]]:
    """The bundled problems, whose solutions mark no answer."""
    rows = [json.loads(line) for line in (DEMO / f"{name}.jsonl").read_text().splitlines()]
    return [row | {"solution": row["solution"].partition("\n####")[0]} for row in rows]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """As a file of rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def fit(work: Path, name: str, rows: Path, **settings: Any) -> None:
    """An adapter, with the demo's recipe but for these settings."""
    if mlxmath_status(work / name) in ("finished", "early_stopped"):
        return
    given = {
        "mlx_path": str(work / "mlx_model"), "cache_dir": str(work / "cache"), "dataset": str(rows),
        "adapter_path": str(work / name), "resume": True, "decontaminate": "none", "save_every": 20,
    }  # fmt: skip
    mlxmath.sft(recipe="demo", verbose=True, **{**given, **settings})


def mlxmath_status(folder: Path) -> Any:
    """How the run in a folder ended; None without one."""
    path = folder / "run.json"
    return unsealed_json(path, None).get("status") if path.exists() else None


def ask(work: Path, problems: Path, name: str, **settings: Any) -> Path:
    """Both members' answers, and what is made of them: the folder of an evaluation."""
    given = {"adapters": [work / member for member in MEMBERS], "results_path": str(work / "evaluations")}
    found = mlxmath.evaluate(
        str(problems), model=work / "mlx_model", compare=False, resume=True, verbose=True, max_tokens=LONGEST,
        run_name=name, **{**given, **settings},
    )  # fmt: skip
    return found.folder


def right(folder: Path, label: str) -> dict[str, bool]:
    """Whether each problem was answered rightly, by its id."""
    samples, _ = read_samples(folder, fingerprints_of(read_settings(folder)))
    return {sample.id: sample.correct for sample in samples if sample.contestant == label}


def reading(folder: Path, problems: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a problem with both members' texts, and its solution."""
    texts = requests(read_samples(folder, fingerprints_of(read_settings(folder)))[0], MEMBERS)
    by_number = {int(i.rpartition("/")[2]): text for i, text in texts.items()}
    return [
        {"problem": by_number[number], "solution": row["solution"], "answer": row["answer"]}
        for number, row in enumerate(problems)
        if number in by_number
    ]


if __name__ == "__main__":
    main()
