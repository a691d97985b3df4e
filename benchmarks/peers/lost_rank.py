"""One rank of `kill_ranks.py`: trains the bundled model, and the rank that is to be lost sends itself a signal.

    python benchmarks/peers/lost_rank.py JOB

JOB is JSON: {"lost": rank or null, "phase": where it is lost, "signal": its name, "held_s": seconds, "arguments": of
train}. For "held_s" the ranks that are not lost keep every Python thread from running when they get there.
"""

import ctypes
import functools
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

PHASES = {
    "importing": None,
    "forming": ("mlxmath.runtime.ranks", "_group"),
    "converting": ("mlxmath.training.setup", "ensure_model"),
    "preparing": ("mlxmath.data.load", "prepare_rows"),
    "loading": ("mlxmath.training.setup", "load_model"),
}
"""Where in a run, and the function at whose call the rank is lost."""


def main() -> None:
    """Train, up to the phase."""
    job = json.loads(sys.argv[1])
    rank = int(os.environ["MLX_RANK"])

    def arrive() -> None:
        if rank != job["lost"]:
            hold(job["held_s"])
            return
        time.sleep(1)  # the others get there too, or wait
        Path("lost-at").write_text(str(time.time()))
        os.kill(os.getpid(), getattr(signal, job["signal"]))

    place = PHASES[job["phase"]]
    if place is None:
        arrive()
    else:
        module = importlib.import_module(place[0])
        setattr(module, place[1], arriving(getattr(module, place[1]), arrive))
    from mlxmath.commands.train import main as train

    train(job["arguments"], prog_name="mlxmath train")


def arriving(function: Callable[..., Any], arrive: Callable[[], None]) -> Callable[..., Any]:
    """`function`, with something before it."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        arrive()
        return function(*args, **kwargs)

    return wrapped


def hold(seconds: float) -> None:
    """Let no Python thread run for a while."""
    if seconds:
        ctypes.PyDLL(None).usleep(int(seconds * 1e6))


if __name__ == "__main__":
    main()
