"""A process that has imported all that mlxmath uses, and forks a child for each command that it is told.

`Zygote` in `benchmarks/starting.py` starts it and says what it saves. Nothing is evaluated before a fork, so that no
thread of MLX is lost in it.
"""

import ctypes
import importlib
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]


def _import_everything() -> None:
    """All that commands import, and what is slow the first time. MLX computes nothing, so that no thread is there."""
    from mlxmath.cli import COMMANDS

    for name in COMMANDS:
        importlib.import_module(f"mlxmath.commands.{name.replace('-', '_')}")
    for name in (
        "mlxmath.api", "mlxmath.training.sft", "mlxmath.training.dpo", "mlxmath.training.reward_model",
        "mlxmath.training.grpo.train", "mlxmath.evaluation.runner", "mlxmath.distillation.distill",
        "mlxmath.exporting.export", "mlxmath.exporting.peft", "mlxmath.exporting.mlx", "mlxmath.exporting.hf",
        "mlxmath.exporting.gguf", "mlx_lm.models.llama", "mlx_lm.models.qwen2", "mlx_lm.tokenizer_utils",
        "safetensors.numpy", "threadpoolctl", "tomli_w", "PIL.PngImagePlugin",
    ):  # fmt: skip
        importlib.import_module(name)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from transformers import AutoTokenizer

    figure = Figure()
    FigureCanvasAgg(figure)
    figure.subplots().set_title("fonts")
    figure.savefig(io.BytesIO(), format="png")
    AutoTokenizer.from_pretrained(REPOSITORY / "mlxmath" / "demo" / "model")


def _serve(waited: Callable[[int, float], int | None]) -> dict[str, Any]:
    """Answer requests. Returns only in a child, with what it is to run."""
    requests, replies = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    for line in requests:
        request = json.loads(line)
        if "pid" in request:
            reply = waited(request["pid"], request["timeout_s"])
        elif (reply := os.fork()) == 0:
            requests.close()
            os.close(replies.fileno())
            return request
        try:
            replies.write(json.dumps(reply) + "\n")
            replies.flush()
        except BrokenPipeError:  # whoever asked has been ended
            os._exit(1)
    raise SystemExit


def _become(request: dict[str, Any]) -> None:
    """Be a new process of a command: its own session, folder, streams; then its fault."""
    os.setsid()
    os.chdir(request["folder"])
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for ours, theirs in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(ours, theirs)
    os.close(log)
    os.close(nothing)
    sys.argv = ["mlxmath", *request["arguments"]]
    os.environ |= request["fault"]
    if request["fault"]:
        ctypes.CDLL(os.environ["LD_PRELOAD"]).fault_arm()
    for name in request["fault"]:
        del os.environ[name]


def main() -> None:
    """Import, then serve; in a child, run the command."""
    from mlxmath.runtime.blas import preload

    preload()
    from benchmarks.starting import heed_interrupts, waited

    _import_everything()
    _become(_serve(waited))
    heed_interrupts()
    from mlxmath.cli import main as command

    command(prog_name="mlxmath")


if __name__ == "__main__":
    main()
