"""The commands that the campaign disturbs: their settings, tiny, and what lies in their folder before."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import REPOSITORY

MODELS = ("demo", "other")
"""The bundled one, and a Qwen2 of random weights with a tokenizer of its own."""
_PIPELINE = """
[distill]
data.dataset = "sums.jsonl"
data.decontaminate = []
distillation.samples = 1
distillation.concurrency = 2

[train]
recipe = "debug"
model.model = "base"
data.max_seq_len = 128
lora.targets = ["q_proj", "v_proj"]
training.max_steps = 2
training.save_every = 1

[grpo]
model.model = "base"
model.dtype = "float32"
data.dataset = "problems.jsonl"
data.decontaminate = []
data.num_examples = 2
lora.targets = ["q_proj", "v_proj"]
training.batch_size = 4
training.grad_accumulation_steps = 1
training.max_steps = 1
grpo.max_completion_length = 6
grpo.num_generations = 2
grpo.concurrency = 4
grpo.reward_weights = { "rewards:letters" = 1.0 }

[evaluate]
evaluation.benchmark = ["problems.jsonl"]
evaluation.limit = 2
evaluation.max_tokens = 4
"""

_REWARD = """def letters(samples):
    return [sum(map(ord, sample.completion)) % 7 / 7 for sample in samples]
"""
"""Differs between any two completions, of whatever a model of random weights writes."""


@dataclass(frozen=True)
class Command:
    """A command line; what it is run again with; what it finds in its folder."""

    name: str
    variant: str
    model: str
    arguments: tuple[str, ...]
    again: tuple[str, ...] = ()
    """What is added to go on."""
    finds: tuple[str, ...] = ()
    """Of what was made before: `mlx_model`, `adapters`."""
    refused: str = ""
    """Where there is no `--resume`: what it says when an earlier run has made everything."""

    num_answers: int = 0
    """What it asks an endpoint for, if it asks one, two at a time."""
    measures: bool = False
    """Whether it validates: a signal makes it do so once more, and tell and keep what it found."""

    @property
    def key(self) -> str:
        return f"{self.name} {self.variant}"


def commands(url: str) -> list[Command]:
    """All of them, on both models. `url` is where a teacher answers."""
    found = []
    for model in MODELS:
        source = ("--model", "demo" if model == "demo" else "base", "--dtype", "float32")
        rows = ("--decontaminate", "none", "--max-seq-len", "256", "--template", "plain")
        loop = ("--batch-size", "4", "--grad-accumulation-steps", "1", "--learning-rate", "2e-3", "--max-steps", "3",
                "--save-every", "1")  # fmt: skip
        trained = {"model": model, "again": ("--resume",), "finds": ("mlx_model",)}
        problems = (*source, *rows, *loop, "--dataset", "problems.jsonl")
        held_out = ("--validation-split", "3")
        pairs = (*source, *rows, *loop, "--dataset", "pairs.jsonl")
        drawn = (
            "--num-generations",
            "2",
            "--max-completion-length",
            "6",
            "--reward",
            "rewards:letters",
            "--concurrency",
            "4",
        )  # unset, the free memory decides, and a checkpoint holds it

        followed = ("--teacher", "mlx_model:adapters", "--adapter-path", "student", "--max-completion-length", "6",
                    "--concurrency", "4")  # fmt: skip
        teacher = ("--dataset", "sums.jsonl", "--decontaminate", "none", "--samples", "2", "--max-tokens", "6",
                   "--keep", "all")  # fmt: skip
        taught = ("distill", *teacher, "--teacher", "mlx_model")
        staged = ("pipeline", "stages.toml", "--teacher-url", url, "--teacher-model", "m")
        answers = ("--benchmark", "problems.jsonl", "--limit", "3", "--max-tokens", "4", "--run-name", "run")
        tuned = {"model": model, "finds": ("mlx_model", "adapters")}
        found += [
            Command("train", model, arguments=("train", *problems, *held_out), measures=True, **trained),
            Command("train", f"{model}, from nothing", model, ("train", *problems), ("--resume",)),
            Command("dpo", model, arguments=("dpo", *pairs), **trained),
            Command("reward-model", model, arguments=("reward-model", *pairs), **trained),
            Command("grpo", model, arguments=("grpo", *problems, *drawn), **trained),
            Command("gkd", model, arguments=("gkd", *problems, *followed), **trained | {"finds": tuned["finds"]}),
            Command("distill", f"{model} teaches", arguments=taught, **trained),
            Command("evaluate", model, arguments=("evaluate", *answers, "--compare"), again=("--resume",), **tuned),
            Command("prepare", model, arguments=("prepare", *source, *rows, "--dataset", "problems.jsonl"), **tuned),
            Command("convert", model, model, ("convert", *source)),
            Command("convert", f"{model}, 4 bits", model, ("convert", *source, "--quantize", "4")),
            Command("pipeline", model, model, staged, num_answers=5),
            *(
                Command("export", f"{model} to {to}", arguments=("export", "--to", to), refused="already", **tuned)
                for to in ("peft", "mlx", "hf", *(("gguf",) if model == "other" else ()))
            ),
        ]  # fmt: skip
    asked = ("--dataset", "sums.jsonl", "--decontaminate", "none", "--samples", "2", "--concurrency", "2")
    endpoint = ("distill", *asked, "--teacher-url", url, "--teacher-model", "m")
    return [*found, Command("distill", "an endpoint teaches", "none", endpoint, ("--resume",), num_answers=10)]


def make_material(folder: Path, run: Path) -> None:
    """Write what commands find: `folder/MODEL` has problems, pairs, the stages' file, a model, it converted, adapters.

    In a process of its own, since models are made with MLX.

    Args:
        folder: it must not be there.
        run: where the commands will run, and this is made: some files name it.
    """
    program = f"from benchmarks.campaign_commands import *; write_material(Path({str(folder)!r}), Path({str(run)!r}))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)


def lay_out(material: Path, command: Command, run: Path) -> None:
    """Make `run` what the command finds, and nothing else."""
    shutil.rmtree(run, ignore_errors=True)
    left_out = {"mlx_model", "adapters"} - set(command.finds)
    shutil.copytree(
        material / command.model, run, ignore=lambda place, _: left_out if Path(place).parent == material else ()
    )


def write_material(folder: Path, place: Path) -> None:
    """See `make_material`."""
    from benchmarks.common import DEMO_ROWS
    from mlxmath.runtime.console import shown
    from tests.recipe_parts import write_model

    lines = DEMO_ROWS.read_text(encoding="utf-8").splitlines()[:10]
    rows = [json.loads(line) for line in lines]
    pairs = [
        {"prompt": r["problem"], "chosen": r["solution"], "rejected": r["solution"].replace(r["answer"], "7") + "7"}
        for r in rows
    ]
    sums = [{"problem": f"What is {i} + {i + 1}?", "answer": str(2 * i + 1)} for i in range(5)]
    folder.mkdir()
    for model in MODELS:
        place.mkdir(parents=True)
        if model == "demo":
            shutil.copytree(REPOSITORY / "mlxmath" / "demo" / "model", place / "base")
        else:
            write_model(place / "base", "r1-distill-qwen-1.5b")
        for name, content in (("problems", rows), ("pairs", pairs), ("sums", sums)):
            (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        (place / "stages.toml").write_text(_PIPELINE)
        (place / "rewards.py").write_text(_REWARD)
        with shown():
            _tune(place, model)
        place.rename(folder / model)
    shutil.copytree(folder / "demo", folder / "none")


def _tune(place: Path, model: str) -> None:
    import contextlib

    from mlxmath.cli import main

    with contextlib.chdir(place):
        arguments = next(c for c in commands("") if c.name == "train" and c.variant == model).arguments
        main([*arguments, "--max-steps", "1"], standalone_mode=False)
        shutil.rmtree("cache")


@contextmanager
def teacher() -> Iterator[Any]:
    """An endpoint on this machine that adds."""
    from tests.distillation.scripted import Request, completion, scripted, solution, sum_of

    def answer(request: Request, body: dict[str, Any], _: int) -> None:
        request.reply(completion(solution(*sum_of(body))))

    with scripted(answer) as server:
        yield server
