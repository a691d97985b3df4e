"""One rank of a test: runs several commands one after the other, so that everything is imported once.

    python -m tests.runtime.worker JOBS

JOBS is a JSON file: a list of {"name", "command", "arguments", "only": {rank: {...}}}. What the entry of a rank under
"only" holds is for that rank alone: "arguments" follow the others, "version" takes the place of mlxmath's, "breaks" is
one of `BREAKS`, and when step "stop_at" is in FOLDER/events.jsonl, the process sends itself SIGTERM. Each job's exit
code and output go to NAME.RANK.json.
"""

import atexit
import contextlib
import errno
import importlib
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from mlxmath.runtime.blas import preload

preload()

from click.testing import CliRunner  # noqa: E402

from mlxmath.runtime import ranks  # noqa: E402


def stop_at(folder: Path, step: int) -> None:
    log = folder / "events.jsonl"
    while not (log.exists() and f'"step": {step},' in log.read_text()):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def loss_is_nan() -> Iterator[None]:
    """In the third window, with this rank's rows."""
    from mlxmath.training import trainer

    real, windows = trainer.accumulate, iter(range(1000))

    def accumulate(workers: Any, window: Any, *, stopped: Any) -> Any:
        sums = real(workers, window, stopped=stopped)
        return replace(sums, loss_sum=math.nan, bad_rows=(window.row_ids[0],)) if next(windows) == 2 else sums

    with mock.patch.object(trainer, "accumulate", accumulate):
        yield


@contextlib.contextmanager
def disk_is_full() -> Iterator[None]:
    """After the first checkpoint."""
    from mlxmath.training import checkpoint

    real, calls = checkpoint.save_checkpoint, iter(range(1000))

    def save(*arguments: Any, **more: Any) -> Any:
        if next(calls) == 0:
            return real(*arguments, **more)
        with mock.patch.object(os, "fsync", side_effect=OSError(errno.ENOSPC, "No space left on device")):
            return real(*arguments, **more)

    with mock.patch.object(checkpoint, "save_checkpoint", save):
        yield


BREAKS = {"loss": loss_is_nan, "disk": disk_is_full}


def main() -> None:
    rank = os.environ.get("MLX_RANK", "0")
    for job in json.loads(Path(sys.argv[1]).read_text()):
        own = job.get("only", {}).get(rank, {})
        module = importlib.import_module(f"mlxmath.commands.{job['command']}")
        if "stop_at" in own:
            threading.Thread(target=stop_at, args=(Path(job["name"]), own["stop_at"]), daemon=True).start()
        arguments = [*job["arguments"], *own.get("arguments", [])]
        broken = BREAKS.get(own.get("breaks", ""), contextlib.nullcontext)
        with broken(), mock.patch.object(ranks, "__version__", own.get("version", ranks.__version__)):
            result = CliRunner().invoke(module.main, arguments)
        atexit.unregister(os._exit)  # which a rank that has lost another one would end with
        found = {"exit_code": result.exit_code, "output": result.output, "stderr": result.stderr}
        Path(f"{job['name']}.{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
