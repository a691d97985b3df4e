"""Starts the ranks of a run on this machine, as `mlx.launch` does; MLX's ring over free ports; a model for them."""

import json
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from benchmarks.common import ring_hostfile
from tests.helpers import ENVIRONMENT, REPOSITORY, command

DEMO = REPOSITORY / "mlxmath" / "demo" / "model"
_HIDDEN, _INNER = 32, 64


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def start_ranks(folder: Path, size: int, *arguments: str) -> list["subprocess.Popen[str]"]:
    """Start a command as `size` ranks (1: without a launcher's variables); output goes to rank-N.log."""
    hosts = ring_hostfile(folder, size)
    found = []
    for rank in range(size):
        own = {} if size == 1 else {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)}
        with (folder / f"rank-{rank}.log").open("w") as log:
            found.append(
                subprocess.Popen(
                    command(*arguments), cwd=folder, env=ENVIRONMENT | own, stdout=log, stderr=log, text=True
                )
            )
    return found


def run_jobs(folder: Path, size: int, jobs: Sequence[dict[str, Any]], timeout_s: float = 240) -> None:
    """Run jobs of `tests.runtime.worker` on `size` ranks."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    processes = start_ranks(folder, size, "tests.runtime.worker", "jobs.json")
    try:
        codes = [process.wait(timeout_s) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * size, "\n".join((folder / f"rank-{rank}.log").read_text() for rank in range(size))


def outcome(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    """What a job left: its exit code and output."""
    found: dict[str, Any] = json.loads((folder / f"{name}.{rank}.json").read_text())
    return found


def write_tiny_model(folder: Path) -> Path:
    """One block and a few thousand parameters, random, with the bundled model's tokenizer, in Hugging Face form."""
    folder.mkdir()
    for path in DEMO.glob("*token*"):
        shutil.copy(path, folder)
    config = json.loads((DEMO / "config.json").read_text()) | {
        "hidden_size": _HIDDEN, "intermediate_size": _INNER, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 16,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    chance = np.random.default_rng(0)
    block = "model.layers.0."
    shapes = {
        "model.embed_tokens": (config["vocab_size"], _HIDDEN),
        **{f"{block}self_attn.{name}_proj": (_HIDDEN, _HIDDEN) for name in "qkvo"},
        **{f"{block}mlp.{name}_proj": (_INNER, _HIDDEN) for name in ("gate", "up")},
        f"{block}mlp.down_proj": (_HIDDEN, _INNER),
    }
    arrays = {f"{name}.weight": 0.2 * chance.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    for name in ("model.norm", f"{block}input_layernorm", f"{block}post_attention_layernorm"):
        arrays[f"{name}.weight"] = np.ones(_HIDDEN, np.float32)
    save_file(arrays, folder / "model.safetensors", {"format": "pt"})
    return folder
