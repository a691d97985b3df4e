"""Formats that users write or fetch: datasets, templates, recipes, formulas, hosts files."""

import contextlib
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.fuzzing.formats import Format
from benchmarks.fuzzing.mutations import (
    TEXTS,
    damaged_bytes,
    damaged_file_of_text,
    damaged_json,
    damaged_lines,
    damaged_text,
    damaged_value,
)
from benchmarks.fuzzing.trained import CHAT, put_tokenizer
from mlxmath.commands.pipeline import DEMO as PIPELINE
from mlxmath.commands.pipeline import configure, read_stages
from mlxmath.config.load import recipe_path, settings_from
from mlxmath.config.schema import DataConfig
from mlxmath.data.prepare import prepare_rows
from mlxmath.data.problem import Problem
from mlxmath.data.rows import open_file
from mlxmath.data.sources import problems_of
from mlxmath.data.templates import get_template
from mlxmath.data.tokenize import Form
from mlxmath.data.variations.tracing import Untraceable
from mlxmath.data.variations.vary import KINDS, vary
from mlxmath.distillation.questions import load_questions, load_solutions
from mlxmath.evaluation.few_shot import examples
from mlxmath.evaluation.prompts import Retriever
from mlxmath.runtime.cluster import read_hosts
from mlxmath.sweeps.file import read_sweep
from mlxmath.sweeps.plan import plan_of
from mlxmath.weights.hub import DEMO_FOLDER

_PROBLEMS = [
    {"question": f"What is {n} + 3?", "solution": f"{n} + 3 = {n + 3}\n#### {n + 3}", "answer": str(n + 3), "level": n,
     "id": f"p{n}", "subject": "sums", "options": None}
    for n in range(6)
]  # fmt: skip
_CALL = {"id": "c", "type": "function", "function": {"name": "calc", "arguments": '{"e": "3+5"}'}}
_TURNS = [
    {"messages": [
        {"role": "system", "content": "Be short."}, {"role": "user", "content": f"What is {n} + 3?"},
        {"role": "assistant", "content": f"It is {n + 3}.", "reasoning_content": "easy", "weight": 1},
        {"role": "user", "content": [{"type": "text", "text": "Sure?"}]}, {"role": "assistant", "content": "Yes."},
     ], "tools": None, "id": n}
    for n in range(4)
] + [{"messages": [{"role": "user", "content": "3+5?"}, {"role": "assistant", "content": None, "tool_calls": [_CALL]},
                   {"role": "tool", "content": "8", "tool_call_id": "c"}, {"role": "assistant", "content": "8"}],
      "tools": [{"type": "function", "function": {"name": "calc", "parameters": {}}}], "id": 9}]  # fmt: skip
_PAIRS = [{"prompt": f"What is {n} + 3?", "chosen": f"It is {n + 3}.", "rejected": "No."} for n in range(4)]
_LABELLED = [{"prompt": f"What is {n} + 3?", "completion": f"It is {n + 3}.", "label": n % 2 == 0} for n in range(4)]
_CHOICES = [{"question": "2 + 2?", "options": ["3", "4"], "answer": "B"}, {"problem": "x", "choices": {"A": 1, "B": 2}}]
_SOLVED = [{name: value for name, value in _PROBLEMS[0].items() if name != "subject"}]
"""Not the columns of a benchmark whose rows have other choices."""
_CSV = b'question,solution,answer\n2+2?,"4, so\n#### 4",4\n3+3?,six 6 #### 6,6\n'
_FORMULAS = [
    {"name": "sum", "formula": "a + b", "topic": "sums", "keywords": "add plus"},
    {"name": "x", "formula": "y"},
]


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _with_model(folder: Path) -> None:
    put_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(CHAT)


def _file(name: str, data: bytes | Callable[[Path], object]) -> Callable[[Path], None]:
    """A dataset beside a tokenizer."""

    def write(folder: Path) -> None:
        _with_model(folder)
        if callable(data):
            data(folder / name)
        else:
            (folder / name).write_bytes(data)

    return write


def _prepare(name: str, *, form: Form = "solutions", questions: bool = True, **settings: Any) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        config = DataConfig(
            dataset=str(folder / name), cache_dir=str(folder / "cache"), max_seq_len=128,
            **({"template": "plain"} | settings),
        )  # fmt: skip
        prepare_rows(config, folder, form=form)
        if questions and form == "solutions":
            load_questions(config)

    return read


def _table(form: str) -> Callable[[Random, bytes], bytes]:
    """A table with other values or types, or other bytes."""

    def damage(random: Random, data: bytes) -> bytes:
        if random.random() < 0.6:
            return damaged_bytes(random, data)
        rows = _PROBLEMS if random.random() < 0.5 else _TURNS
        try:
            changed = damaged_value(random, json.loads(json.dumps(rows)))
            table = pa.Table.from_pylist([row for row in changed if isinstance(row, dict)] or [{"x": 1}])
            sink = pa.BufferOutputStream()
            if form == "parquet":
                pq.write_table(table, sink)
            else:
                with pa.ipc.new_file(sink, table.schema) as file:
                    file.write_table(table)
            return bytes(sink.getvalue())
        except (pa.ArrowException, OverflowError, TypeError, UnicodeError):  # Arrow has no such values
            return damaged_bytes(random, data)

    return damage


def _write_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(_PROBLEMS), path)


def _write_arrow(path: Path) -> None:
    table = pa.Table.from_pylist(_PROBLEMS)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)


def _gz(random: Random, data: bytes) -> bytes:
    if random.random() < 0.5:
        return damaged_bytes(random, data)
    return gzip.compress(damaged_lines(random, gzip.decompress(data)))


_TEMPLATE = b"""description = "mine"
prompt = "Problem: {question}\\nSolution:\\n"
completion = "{solution}"
stop = ["\\n\\n", "Problem:"]
chat = false
"""


def _read_template(folder: Path) -> None:
    template = get_template("", str(folder / "t.toml"))
    template.prompt("2 + 2?")
    template.chat_template(bos=True)
    if not template.spec.chat:
        template.render(Problem("1", "2 + 2?", solution="4\n#### 4"))


def _read_recipe(folder: Path) -> None:
    found = settings_from(config=folder / "r.toml")
    found.lines(("data", "training", "lora"))
    found.as_toml(("data", "training", "lora"), {})


def _read_stages(folder: Path) -> None:
    stages = read_stages(folder / "p.toml")
    configure(stages, folder / "two", {"runtime.backend": "cpu"}, overwrite=False)


_SETS = ("lora.rank=8", "training.learning_rate=1e-4", 'data.dataset="x"', "lora.targets=['q_proj']",
         "grpo.reward_weights={correctness=1.0}", "runtime.backend=cpu", "data.sources=[]")  # fmt: skip


def _set(random: Random, _: bytes) -> bytes:
    name, _, value = random.choice(_SETS).partition("=")
    ways = (
        f"{name}={random.choice(TEXTS)}", f"{random.choice(TEXTS)}={value}", f"{name}={value}{random.choice(TEXTS)}",
        f"{name}={'[' * 5000}", f"{name}={'9' * 5000}", name, f"{name}=1\nx=2", f"{name}={{a = {{a = 1}}}}",
        f"{name}=1979-05-27T07:32:00Z", f"{name}=nan", f"{name}=-inf", f"{name}=true",
    )  # fmt: skip
    return random.choice(ways).encode("utf-8", "surrogatepass")


def _read_set(folder: Path) -> None:
    text = (folder / "set").read_bytes().decode("utf-8", "surrogateescape")
    settings_from(set=[text])


def _read_formulas(folder: Path) -> None:
    Retriever.load(str(folder / "formulas.jsonl"), 2).add("plus add")


_SWEEP = b"""search = "random"
runs = 3
seeds = [0, 1]

[train]
recipe = "debug"
training.max_steps = 8
training.validation_split = 4

[vary]
lora.rank = {low = 2, high = 8}
training.learning_rate = [1e-4, 2e-3]

[[variant]]
name = "wide"
lora.targets = ["q_proj"]

[halving]
factor = 2
"""


def _read_sweep(folder: Path) -> None:
    plan_of(read_sweep(folder / "s.toml"), folder / "sweep")


_TOLD = [
    {"question": "Tom has 3 boxes with 12 pens in each. He gives 5 to Ann. How many has he?", "answer": "31",
     "solution": "Tom has 3*12=<<3*12=36>>36 pens.\nThen 36-5=<<36-5=31>>31.\n#### 31"},
    {"question": "Ann pays $2.50 for a pen, a third of her money. How much had she?", "answer": "7.5",
     "solution": "She had 2.5 * 3 = <<2.5*3=7.5>>7.5 dollars.\n#### 7.5"},
]  # fmt: skip


def _told(random: Random, data: bytes) -> bytes:
    rows = [json.loads(line) for line in data.splitlines()]
    for _ in range(random.choice((1, 2, 3))):
        row = random.choice(rows)
        name = random.choice(sorted(row))
        row[name] = damaged_text(random, row[name])
    return _lines(rows)


def _vary(folder: Path) -> None:
    for problem in problems_of(open_file(folder / "rows.jsonl", option="--benchmark"), None):
        for kind in KINDS:
            with contextlib.suppress(Untraceable):
                vary(problem, kind, 0)


_HOSTS = {
    "backend": "ring", "envs": ["A=1"],
    "hosts": [{"ssh": "localhost", "ips": ["127.0.0.1"]}, {"ssh": "other", "ips": ["10.0.0.2"], "rdma": [None, "x"]}],
}  # fmt: skip


def _rank_only(folder: Path) -> None:
    load_solutions(folder / "rows.jsonl", DataConfig())


def _table_format(name: str, write: Callable[[Path], None]) -> Format:
    file = f"rows.{name}"
    return Format(f"dataset: {name}", _file(file, write), {file: _table(name)}, _prepare(file))


FORMATS = (
    Format("dataset: JSON lines", _file("rows.jsonl", _lines(_PROBLEMS)), {"rows.jsonl": damaged_lines},
           _prepare("rows.jsonl"), ("prepare", "--model", ".", "--dataset", "./rows.jsonl"), 2.0),
    Format("dataset: conversations", _file("rows.jsonl", _lines(_TURNS)), {"rows.jsonl": damaged_lines},
           _prepare("rows.jsonl", questions=False, template="chat"), (), 1.5),
    Format("dataset: pairs", _file("rows.jsonl", _lines(_PAIRS)), {"rows.jsonl": damaged_lines},
           _prepare("rows.jsonl", form="pairs")),
    Format("dataset: labels", _file("rows.jsonl", _lines(_LABELLED)), {"rows.jsonl": damaged_lines},
           _prepare("rows.jsonl", form="completions")),
    Format("dataset: options", _file("rows.jsonl", _lines(_SOLVED + _CHOICES)), {"rows.jsonl": damaged_lines},
           _prepare("rows.jsonl")),
    Format("dataset: JSON", _file("rows.json", json.dumps(_PROBLEMS).encode()), {"rows.json": damaged_json},
           _prepare("rows.json")),
    Format("dataset: CSV", _file("rows.csv", _CSV), {"rows.csv": damaged_file_of_text}, _prepare("rows.csv")),
    Format("dataset: compressed", _file("rows.jsonl.gz", gzip.compress(_lines(_PROBLEMS))), {"rows.jsonl.gz": _gz},
           _prepare("rows.jsonl.gz")),
    _table_format("parquet", _write_parquet),
    _table_format("arrow", _write_arrow),
    Format("solutions to rank", _file("rows.jsonl", _lines(_PROBLEMS)), {"rows.jsonl": damaged_lines}, _rank_only),
    Format("prompt template", lambda f: (f / "t.toml").write_bytes(_TEMPLATE), {"t.toml": damaged_file_of_text},
           _read_template),
    Format("recipe", lambda f: shutil.copy(recipe_path("debug"), f / "r.toml"), {"r.toml": damaged_file_of_text},
           _read_recipe, ("plan", "--model", str(DEMO_FOLDER), "--config", "r.toml"), 1.5),
    Format("pipeline", lambda f: shutil.copy(PIPELINE, f / "p.toml"), {"p.toml": damaged_file_of_text}, _read_stages),
    Format("--set", lambda f: (f / "set").write_text(_SETS[0]), {"set": _set}, _read_set, carried=True),
    Format("formulas", lambda f: (f / "formulas.jsonl").write_bytes(_lines(_FORMULAS)),
           {"formulas.jsonl": damaged_lines}, _read_formulas),
    Format("sweep", lambda f: (f / "s.toml").write_bytes(_SWEEP), {"s.toml": damaged_file_of_text}, _read_sweep,
           ("sweep", "s.toml", "--dry-run")),
    Format("worked examples", lambda f: (f / "rows.jsonl").write_bytes(_lines(_PROBLEMS)),
           {"rows.jsonl": damaged_lines}, lambda f: examples(str(f / "rows.jsonl"), {})),
    Format("problems to vary", lambda f: (f / "rows.jsonl").write_bytes(_lines(_TOLD)), {"rows.jsonl": _told}, _vary,
           share=2.0, carried=True),
    Format("hosts file", lambda f: (f / "hosts.json").write_text(json.dumps(_HOSTS)), {"hosts.json": damaged_json},
           lambda f: read_hosts(f / "hosts.json")),
)  # fmt: skip
