"""Processes of `mlxmath` that may meet a fault: new ones, or children of one that has imported everything already.

    python benchmarks/zygote.py

reads JSON lines from standard input and is started by `Zygote`. It imports mlxmath, MLX and what they use, evaluates
nothing, and forks a child for each command: 1.4 s of a core for a short training, of 5.5 s in a new process.
"""

import contextlib
import ctypes
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
_POLL_S = 0.005


def environment(library: Path) -> dict[str, str]:
    """Of all processes: this checkout, no network, no torch (which only takes time), one thread for matrix products."""
    path = os.pathsep.join([str(REPOSITORY / "tests" / "without_torch"), str(REPOSITORY)])
    one_thread = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    own = {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "LD_PRELOAD": str(library)}
    return os.environ | one_thread | own


class Fresh:
    """Starts each command in a new process."""

    name = "process"

    def __init__(self, library: Path) -> None:
        self._environment = environment(library)
        self._started: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, folder: Path, arguments: Sequence[str], fault: Mapping[str, str], log: Path) -> int:
        """The id of a process that runs `mlxmath ARGUMENTS` in `folder` and writes what it says to `log`."""
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "mlxmath", *arguments], cwd=folder, env=self._environment | fault, stdout=file,
                stderr=file, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_heed_interrupts,
            )  # fmt: skip
        self._started[process.pid] = process
        return process.pid

    def wait(self, pid: int, timeout_s: float) -> int | None:
        """As `waited`."""
        status = waited(pid, timeout_s)
        if status is not None and not os.WIFSTOPPED(status):
            self._started.pop(pid).returncode = 0  # it is gone; nobody else must wait for it
        return status

    def close(self) -> None:
        """Nothing is left."""


class Zygote:
    """Starts each command in a child of a process that has imported everything."""

    name = "zygote"

    def __init__(self, library: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=environment(library), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip

    def start(self, folder: Path, arguments: Sequence[str], fault: Mapping[str, str], log: Path) -> int:
        """See `Fresh.start`."""
        return self._ask(folder=str(folder), arguments=[*arguments], fault=dict(fault), log=str(log))

    def wait(self, pid: int, timeout_s: float) -> int | None:
        """As `waited`."""
        return self._ask(pid=pid, timeout_s=timeout_s)

    def _ask(self, **request: Any) -> Any:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        if not (reply := self._process.stdout.readline()):
            raise RuntimeError(f"the process that starts others has ended ({self._process.wait()})")
        return json.loads(reply)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def waited(pid: int, timeout_s: float) -> int | None:
    """The status with which a child ended or stopped, as `os.waitpid` gives it; None after the time limit."""
    end = time.monotonic() + timeout_s
    while True:
        found, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
        if found:
            return status
        if time.monotonic() > end:
            return None
        time.sleep(_POLL_S)


def _heed_interrupts() -> None:
    """Let SIGINT interrupt, which it does not in what a shell has started in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def kill_session(pid: int) -> None:
    """Kill a process that was started here, and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


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


def _serve() -> dict[str, Any]:
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
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
    raise SystemExit


def _become(request: dict[str, Any]) -> None:
    """Be a new process of a command: its own session, folder, streams, signals; then its fault."""
    os.setsid()
    _heed_interrupts()
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
    _import_everything()
    _become(_serve())
    from mlxmath.cli import main as command

    command(prog_name="mlxmath")


if __name__ == "__main__":
    main()
