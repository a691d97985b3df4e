"""Is the bundled model right more often on large numbers with the calculator, and does grpo learn to call it?

    python benchmarks/bench_tools.py

The bundled model has never seen the signs of a call: they share one row of its embeddings, which adapters leave as it
is, so that drawing cannot tell them apart. Here they get rows of their own, random ones of the usual length.

Problems like the bundled ones, with numbers of three and four digits, and solutions that call the calculator. The model
is trained on them (`train --tools calculator`) and asked unseen ones with and without it, paired. Then it is trained on
a mixture in which one solution in four calls it and the others state the result at once, and improved by exact answers
alone (`grpo --tools calculator`): how many of its answers call it, and are right, before and after. Shares have
Wilson's 95 % intervals, differences Newcombe's paired ones. Writes benchmarks/results/tools.json.
"""

import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import common
from benchmarks.bench_demo_grpo import compare, share
from benchmarks.processes import run_command
from tools.make_demo.story import PEOPLE, THINGS, upper

LIMIT_S = 3000
TOOL = "calculator"
BASE, EMBEDDINGS, SIGNS = "base", "model.embed_tokens.weight", "<>="
MIXED_EVERY = 4
"""One solution in so many calls, where grpo begins."""
TEST, TRAIN, MIXED = "test.jsonl", "train.jsonl", "mixed.jsonl"


def problem(rng: random.Random, *, calls: bool) -> dict[str, str]:
    """A row: a product, and then perhaps a sum or a difference."""
    who, things = rng.choice(PEOPLE), rng.choice(THINGS)
    a, b = rng.randint(1000, 9999), rng.randint(100, 999)
    steps = [(f"{who.name} has", a, "*", b, a * b)]
    asked = f"{who.name} has {a} boxes with {b} {things} in each."
    kind, more = rng.choice(("product", "more", "fewer")), rng.randint(1000, 9999)
    if kind == "more":
        asked += f" {upper(who.he)} buys {more} more {things}."
        steps.append((f"Then {who.he} has", a * b, "+", more, a * b + more))
    elif kind == "fewer":
        asked += f" {upper(who.he)} sells {more} {things}."
        steps.append((f"Then {who.he} has", a * b, "-", more, a * b - more))
    lines = [
        f"{said} <<{x} {sign} {y}={z}>>{z} {things}." if calls else f"{said} {x} {sign} {y} = {z} {things}."
        for said, x, sign, y, z in steps
    ]
    answer = str(steps[-1][-1])
    question = f"{asked} How many {things} does {who.name} have?"
    return {"problem": question, "solution": "\n".join([*lines, f"#### {answer}"]), "answer": answer, "kind": kind}


def problems(seed: int, count: int, every: int = 1) -> Iterator[dict[str, str]]:
    """Rows, of which one in `every` calls."""
    rng = random.Random(seed)
    for number in range(count):
        yield problem(rng, calls=number % every == 0)


def write(path: Path, seed: int, count: int, every: int = 1) -> None:
    """A file of problems."""
    rows = problems(seed, count, every)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_base(folder: Path) -> None:
    """The bundled model as a folder of its own, with a row of its embeddings for each sign of a call."""
    import mlx.core as mx
    import numpy as np

    from mlxmath.data.codec import load_tokenizer

    command(folder, "convert", "--model", "demo", "--mlx-path", "plain")
    tokenizer = load_tokenizer(folder / "plain")
    (folder / BASE).mkdir()
    for path in (common.REPOSITORY / "mlxmath" / "demo" / "model").glob("*.json"):
        if "index" not in path.name:
            shutil.copy(path, folder / BASE)
    arrays = mx.load(str(folder / "plain" / "model.safetensors"))
    rows = np.array(arrays[EMBEDDINGS].astype(mx.float32))
    rng, usual = np.random.default_rng(0), np.median(np.linalg.norm(rows, axis=1))
    for sign in SIGNS:
        row = rng.normal(size=rows.shape[1])
        rows[tokenizer.convert_tokens_to_ids(sign)] = row * usual / np.linalg.norm(row)
    arrays[EMBEDDINGS] = mx.array(rows).astype(arrays[EMBEDDINGS].dtype)
    mx.save_safetensors(str(folder / BASE / "model.safetensors"), arrays, {"format": "pt"})


def main() -> None:
    """Measure and write the results."""
    parser = common.command_line(__doc__, "tools.json")
    parser.add_argument("--steps", type=int, default=1200, help="of the training (default: 1200)")
    parser.add_argument("--grpo-steps", type=int, default=60, help="of grpo (default: 60)")
    parser.add_argument("--problems", type=int, default=200, help="unseen problems (default: 200)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, seconds = Path(name), {}
        make_base(folder)
        write(folder / TEST, 1, options.problems)
        write(folder / TRAIN, 2, 4000)
        write(folder / MIXED, 3, 4000, MIXED_EVERY)
        for adapter, data in (("tuned", TRAIN), ("start", MIXED)):
            seconds[adapter] = train(folder, adapter, data, options.steps)
        seconds["grpo"] = improve(folder, options.grpo_steps)
        asked = ask(folder, "compared", "--compare", "--adapter-path", "tuned")
        learned = ask(folder, "learned", "--adapter-path", "start", "--adapter-path", "improved")
    with_it = f"tuned + {TOOL}"
    record: dict[str, Any] = {
        "what": __doc__.splitlines()[0],
        "settings": {"steps": options.steps, "grpo steps": options.grpo_steps, "problems": options.problems},
        "seconds": seconds,
        "with and without": {label: share(right) for label, (right, _) in asked.items()},
        "difference": compare(asked["tuned"][0], asked[with_it][0]),
        "grpo": {
            label: {"right": share(right), "answers that call": share(called)}
            for label, (right, called) in learned.items()
        },
        "difference by grpo": compare(learned["start"][0], learned["improved"][0]),
    }
    common.save_json(options.out, record | {"machine": common.machine(("mlx", "mlx-lm", "mlxmath"))})
    rows = [[label, f"{found['share']:.3f}"] for label, found in record["with and without"].items()]
    common.show_table("right answers", ["model", "share"], rows)
    rows = [[label, f"{found['right']['share']:.3f}", f"{found['answers that call']['share']:.3f}"]
            for label, found in record["grpo"].items()]  # fmt: skip
    common.show_table("grpo", ["model", "right", "answers that call"], rows)


def command(folder: Path, *arguments: str) -> float:
    """Seconds of a command of mlxmath."""
    return round(run_command(folder, *arguments, timeout_s=LIMIT_S), 1)


def train(folder: Path, adapter: str, data: str, steps: int) -> float:
    """Seconds of a training on rows with calls."""
    return command(
        folder, "train", "--recipe", "demo", "--model", BASE, "--dataset", data, "--tools", TOOL, "--adapter-path",
        adapter, "--max-steps", str(steps), "--decontaminate", "none",
    )  # fmt: skip


def improve(folder: Path, steps: int) -> float:
    """Seconds of grpo from the adapter that seldom calls."""
    return command(
        folder, "grpo", "--recipe", "demo-grpo", "--model", BASE, "--dataset", TRAIN, "--tools", TOOL,
        "--init-adapter", "start", "--adapter-path", "improved", "--max-steps", str(steps), "--max-seq-len", "320",
        "--max-completion-length", "128", "--decontaminate", "none",
    )  # fmt: skip


def ask(folder: Path, name: str, *arguments: str) -> dict[str, tuple[list[bool], list[bool]]]:
    """Which problems each contestant answers right, and which of its answers call."""
    command(folder, "evaluate", "--benchmark", TEST, "--tools", TOOL, "--max-tokens", "160", "--run-name", name,
            *arguments)  # fmt: skip
    lines = (folder / "evaluation_results" / name / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    samples = sorted((json.loads(line) for line in lines), key=lambda sample: sample["id"])
    found: dict[str, tuple[list[bool], list[bool]]] = {}
    for sample in samples:
        right, called = found.setdefault(sample["contestant"], ([], []))
        right.append(sample["correct"])
        called.append("<<" in sample["response"])
    return found


if __name__ == "__main__":
    main()
