"""Command lines of random documented options, in a folder where a run was made and odd things lie about.

What a command needs to do little stands at the end of its line, where it counts more than what was drawn.
"""

import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import click

from benchmarks.common import REPOSITORY
from benchmarks.fuzzing.children import Job, Outcome, Watch, judged
from benchmarks.fuzzing.formats import put_original
from benchmarks.fuzzing.invoking import COMMAND_LIMIT_S, MAY, WrongEndError, check, invoke
from benchmarks.fuzzing.mutations import NUMBERS, TEXTS
from benchmarks.fuzzing.runs import write_evaluation
from benchmarks.fuzzing.trained import run_folder
from mlxmath.cli import COMMANDS

_DATA = ("--num-examples", "6", "--max-seq-len", "64")
_TRAIN = (*_DATA, "--max-steps", "1", "--batch-size", "2", "--grad-accumulation-steps", "1")
_BEFORE = {
    "train": ("--model", "demo", "--dataset", "demo", "--overwrite"),
    "dpo": ("--model", "demo", "--dataset", "pairs.jsonl", "--overwrite"),
    "reward-model": ("--model", "demo", "--dataset", "pairs.jsonl", "--overwrite"),
    "grpo": ("--model", "demo", "--dataset", "demo", "--overwrite"),
    "prepare": ("--model", "demo", "--dataset", "demo"),
    "convert": ("--model", "demo", "--mlx-path", "converted"),
    "plan": ("--model", "demo"),
    "distill": ("--teacher", "mlx_model", "--dataset", "demo", "--output-path", "distilled"),
    "evaluate": ("--benchmark", "demo"),
    "pipeline": ("--teacher", "mlx_model"),
    "export": ("--to", "mlx", "--export-path", "exported"),
}
_AFTER = {
    "train": _TRAIN, "dpo": _TRAIN, "reward-model": _TRAIN, "prepare": _DATA,
    "grpo": ("--num-examples", "4", "--max-steps", "1", "--num-generations", "2", "--max-completion-length", "4",
             "--num-iterations", "1"),
    "export": ("--check-problems", "2", "--check-tokens", "4"),
    "distill": ("--num-examples", "2", "--max-tokens", "4", "--samples", "1"),
    "evaluate": ("--limit", "2", "--max-tokens", "4", "--samples", "1"),
    "infer": ("--max-new-tokens", "2"), "chat": ("--max-new-tokens", "2"),
}  # fmt: skip
_TIMED = {"serve": 2.0, "studio": 2.0, "chat": 20.0}
"""Seconds after which Ctrl-C comes."""
_PATHS = (
    "adapters", "mlx_model", "cache", "a file", "loop", "nothing/here", "ü b", "", ".",
    "rows.jsonl", "pairs.jsonl", "r.toml", "evaluation", "~", "x" * 300, "a\nb", "demo", "-", "hosts.json",
)  # fmt: skip
_HARMLESS = tuple(text for text in TEXTS if not text.startswith(("/", "~")) and ".." not in text)
"""Values may be taken for places to write to, and these commands really write: nothing leads out of the folder."""
_WORDS = (
    "demo", "none", "auto", "plain", "chat", "cpu", "all", "q_proj", "q_proj,v_proj", "1", "0", "adam", "cosine", "4",
    "8", "auto:4.5", "nosuch/model", "gsm8k", "correctness", "correctness=2", "model:adapters", "debug", "ollama:x",
    "http://127.0.0.1:1/v1", "HOME", "16GB", "*", "level>3", "train", "lora.rank=4", "data.sources=[]", "a=b=c",
)  # fmt: skip


_STAGES = """
[distill]
recipe = "demo"
data.num_examples = 2
distillation.samples = 1
distillation.max_tokens = 4
[train]
recipe = "demo"
data.max_seq_len = 64
training.max_steps = 1
[grpo]
recipe = "demo-grpo"
data.num_examples = 4
training.max_steps = 1
grpo.num_generations = 2
grpo.max_completion_length = 4
[evaluate]
recipe = "demo"
evaluation.benchmark = ["demo"]
evaluation.limit = 2
evaluation.max_tokens = 4
"""
"""A pipeline that does little: without a file, the bundled one would take minutes."""


def prepare(folder: Path) -> None:
    """What all command lines find in their folder."""
    for name in ("mlx_model", "cache", "adapters"):
        put_original(run_folder() / name, folder / name)
    rows = [{"question": f"{n} + 1?", "solution": f"#### {n + 1}"} for n in range(6)]
    pairs = [{"prompt": f"{n} + 1?", "chosen": f"{n + 1}", "rejected": "no"} for n in range(6)]
    for name, content in (("rows", rows), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    (folder / "stages.toml").write_text(_STAGES)
    (folder / "r.toml").write_text("[lora]\nrank = 4\n")
    (folder / "hosts.json").write_text(json.dumps([{"ssh": "localhost", "ips": ["127.0.0.1"]}] * 2))
    (folder / "a file").write_text("x")
    (folder / "ü b").mkdir()
    (folder / "evaluation").mkdir()
    write_evaluation(folder / "evaluation")


def _add_loop(folder: Path) -> None:
    (folder / "loop").symlink_to("loop")


def _value(random: Random, parameter: click.Parameter) -> str:
    """A value of an option: of its kind, at its limits, or of another kind."""
    kind = parameter.type
    if random.random() < 0.15:
        return str(random.choice((*_HARMLESS, *NUMBERS))).replace("\0", "?")
    if isinstance(kind, click.Choice):
        return str(random.choice([*kind.choices, "none of them"]))
    if isinstance(kind, click.types.IntParamType):
        return str(random.choice((0, 1, 2, 3, 5, 64, -1, 1000, *(n for n in NUMBERS if isinstance(n, int)))))
    if isinstance(kind, click.types.FloatParamType):
        return str(random.choice((0.0, 0.1, 0.5, 1.0, 1e-5, 2.0, -1.0, "nan", "inf", 1e308, 1e-308, 10**400)))
    if isinstance(kind, click.Path) or random.random() < 0.5:
        return random.choice(_PATHS)
    return random.choice((*_WORDS, *map(str, filter(None, [parameter.default]))))


def line_of(seed: int) -> list[str]:
    """The command line of a seed; without --verbose, which asks for a traceback."""
    random = Random(f"command line {seed}")
    name = list(COMMANDS)[seed % len(COMMANDS)]
    command: Any = importlib.import_module(f"mlxmath.commands.{name.replace('-', '_')}").main
    return [name, *_arguments(random, name, command)]


def _arguments(random: Random, name: str, command: click.Command) -> Iterator[str]:
    if isinstance(command, click.Group):
        inner = random.choice([*command.commands, ""])
        if inner:
            yield inner
            yield from _arguments(random, inner, command.commands[inner])
        return
    chosen: list[str] = []
    options = [one for one in command.params if isinstance(one, click.Option) and one.name != "verbose"]
    for option in random.sample(options, min(len(options), random.choice((0, 1, 1, 2, 2, 3, 5, 8)))):
        spelling = random.choice(option.opts)
        if option.is_flag:
            chosen.append(spelling)
        else:
            chosen += random.choice(([spelling, _value(random, option)], [f"{spelling}={_value(random, option)}"]))
    arguments = [
        _value(random, one)
        for one in command.params
        if isinstance(one, click.Argument) and (one.required or random.random() < 0.5)
    ]
    if random.random() < 0.03:
        chosen.append(random.choice(("--no-such-option", "--", "-x", "extra", "--help", "--verb")))
    if name == "pipeline":
        arguments = arguments or ["stages.toml"]
    before = _BEFORE.get(name, ()) if random.random() < 0.8 else ()
    yield from (*before, *chosen, *_AFTER.get(name, ()))
    if arguments:
        yield from arguments


def try_line(original: Path, job: Job, folder: Path, watch: Watch) -> Outcome:
    """Run a command line as click does, in this process."""
    name, *arguments = line_of(job.seed)
    put_original(original, folder)
    _add_loop(folder)
    watch.may = MAY
    codes: list[int] = []
    found = judged(lambda: codes.append(invoke(name, arguments, _TIMED.get(name, 0))), watch, 0, COMMAND_LIMIT_S)
    if any(codes) and found.verdict == "accepted":
        found = found._replace(verdict="refused")
    return found._replace(detail=f"{shlex.join([name, *arguments])[:2000]}\n{found.detail}")


def in_process(original: Path, job: Job, folder: Path, limit_s: float = 300.0) -> Outcome:
    """Run a command line in a process of its own."""
    arguments = line_of(job.seed)
    put_original(original, folder)
    _add_loop(folder)
    encoded = [each.encode("utf-8", "surrogatepass") for each in arguments]  # some are no text
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a signal that is ignored here would be ignored there
    process = subprocess.Popen(
        [sys.executable, "-m", "mlxmath", *encoded], cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        output = process.communicate(timeout=5 * _TIMED[arguments[0]] if arguments[0] in _TIMED else limit_s)[0]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        try:
            output = process.communicate(timeout=60)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            return Outcome("failed", "does not end", shlex.join(arguments))
    text = output.decode("utf-8", "replace")
    try:
        check(process.returncode, text)
    except WrongEndError as error:
        return Outcome("failed", str(error), f"{shlex.join(arguments)}\n{text[-1500:]}")
    return Outcome("accepted" if process.returncode == 0 else "refused", str(process.returncode))
