"""What is done to files, and options that nobody should give: for `test_hostile_inputs.py`."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.weights.gguf_models import llama_gguf
from tests.weights.handmade import state_dict, tensor, zip_file

Damage = Callable[[Path], Any]
"""Does something to a folder with `mlx_model` (config.json, tokenizer, weights), `adapters` and `source`."""
DEEP = "[" * 100_000
DIGITS = "9" * 400
MANY_DIGITS = "9" * 5_000
MEGABYTE = "x" * 1_000_000
ADAPTER = "adapters/adapter_config.json"
WEIGHTS = "adapters/adapters.safetensors"
INFER = ("infer", "--no-adapter", "--prompt", "1+1", "--max-new-tokens", "1")
TUNED = ("infer", "--prompt", "1+1", "--max-new-tokens", "1")
CONVERT = ("convert", "--model", "source", "--mlx-path", "new")
PLAN = ("plan", "--model", "source", "--mlx-path", "new")
TRAIN = ("train", "--debug", "--adapter-path", "new")
DISTILL = ("distill", "--teacher-url", "http://127.0.0.1:9/v1", "--teacher-model", "m", "--dataset", "rows.jsonl")


class Case(NamedTuple):
    """What is wrong with what, what is asked, how it ends, and what its line names."""

    label: str
    damage: Damage
    command: tuple[str, ...]
    code: int
    named: str


def nothing(_: Path) -> None:
    """The files are as they should be."""


def put(name: str, content: str | bytes) -> Damage:
    """A file with that content."""
    data = content if isinstance(content, bytes) else content.encode()

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(data)

    return damage


def changed(name: str, **values: Any) -> Damage:
    """A JSON file with other values; a name with dots lies in a table."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        for path, value in values.items():
            *tables, key = path.split("__")
            table = content
            for each in tables:
                table = table[each]
            table[key] = value
        put(name, json.dumps(content))(folder)

    return damage


def adapted(change: Callable[[dict[str, np.ndarray]], Any]) -> Damage:
    """The adapter's weights with something changed."""

    def damage(folder: Path) -> None:
        arrays = {name: array.copy() for name, array in load_file(folder / WEIGHTS).items()}
        change(arrays)
        (folder / WEIGHTS).unlink()
        save_file(arrays, folder / WEIGHTS)

    return damage


def holding(value: float) -> Damage:
    """One number of the adapter's is that."""
    return adapted(lambda arrays: arrays[min(arrays)].reshape(-1).__setitem__(0, value))


def header(content: str) -> bytes:
    """A safetensors file of a header and four bytes."""
    return len(content).to_bytes(8, "little") + content.encode() + b"1234"


def of_peft(**values: Any) -> Damage:
    """An adapter in PEFT's form with such an adapter_config.json."""

    def damage(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        put(ADAPTER, json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 16} | values))(folder)
        put("adapters/adapter_model.safetensors", header("{}")[:10])(folder)

    return damage


def repeated(folder: Path) -> None:
    """A .bin whose tensor repeats one number."""
    entries = {"0.weight": tensor("0", "float32", 1, (1 << 28, 1), (0, 0))}
    put("source/pytorch_model.bin", zip_file(state_dict(entries), {"0": bytes(4)}))(folder)


def flipped(folder: Path) -> None:
    """A bit of a .bin's first storage is another."""
    path = folder / "source/pytorch_model.bin"
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if "/data/" in name)
    data = bytearray(path.read_bytes())
    data[data.index(name.encode()) + len(name) + 8] ^= 1
    path.write_bytes(data)


def overlapping(folder: Path) -> None:
    """Two tensors of a safetensors file on one place, many times its size."""
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    put("source/model.safetensors", header("{" + ",".join(f'"w{i}":{entry}' for i in range(3)) + "}"))(folder)


def gguf(change: Callable[[bytes], bytes]) -> Damage:
    """A GGUF file that is another."""

    def damage(folder: Path) -> None:
        path = llama_gguf(folder / "m.gguf")
        path.write_bytes(change(path.read_bytes()))

    return damage


OF_GGUF = ("convert", "--model", "m.gguf", "--mlx-path", "new")
CONFIG = "mlx_model/config.json"
TOKENIZER = "mlx_model/tokenizer.json"
SETTINGS = "mlx_model/tokenizer_config.json"
GOOD = json.dumps({"problem": "1 + 1", "answer": "2"})


def added(number: Any) -> Damage:
    """The tokenizer makes that token of the prompt."""
    token = {"id": number, "content": "1+1", "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": False}  # fmt: skip

    def damage(folder: Path) -> None:
        content = json.loads((folder / TOKENIZER).read_text())
        put(TOKENIZER, json.dumps(content | {"added_tokens": [*content["added_tokens"], token]}))(folder)

    return damage
