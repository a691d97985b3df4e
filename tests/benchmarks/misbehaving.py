"""Readers that do what none may, tried as the fuzzing tries readers: what became of each, as JSON."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.fuzzing.children import Job, Outcome, Watch, judged, tried
from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.console import say


def _raises(error: BaseException) -> Callable[[], object]:
    def read() -> None:
        raise error

    return read


def _loops() -> None:
    while True:
        pass


def _catches_all() -> None:
    while True:
        try:
            sum(range(10_000))
        except Exception:
            continue


class _EndlessError(MlxmathError):
    def __init__(self) -> None:
        super().__init__("9" * 10_000)

    def __str__(self) -> str:
        return "9" * 10_000


READERS: dict[str, Callable[[], object]] = {
    "reads": lambda: None,
    "refuses": _raises(InputError("m.bin: expected a zip, found text.")),
    "raises": _raises(ValueError("x")),
    "says defect": lambda: say("ValueError (this is a defect in mlxmath)"),
    "steers": lambda: print("error: m.bin: \x1b[2J", file=sys.stderr),
    "never ends": _raises(_EndlessError()),
    "loops": _loops,
    "catches": _catches_all,
    "runs code": lambda: Path("canary").write_text(""),
    "starts": lambda: subprocess.run(["true"], check=True),
    "writes": lambda: Path("/tmp/fuzz-not-here").open("w").close(),
    "takes memory": lambda: bytes(b"x" * (300 << 20)) + b"y",
    "takes addresses": lambda: bytearray(8 << 30),
    "dies": lambda: os.kill(os.getpid(), 9),
    "leaves": lambda: os._exit(3),
}


def _attempt(job: Job, _: Path, watch: Watch) -> Outcome:
    return judged(READERS[job.subject], watch, 0, 0.5 if job.subject in ("loops", "catches") else 20.0)


if __name__ == "__main__":
    found = {job.subject: outcome for job, outcome in tried([Job(name, 0) for name in READERS], _attempt)}
    json.dump({name: [outcome.verdict, outcome.kind] for name, outcome in found.items()}, sys.stdout)
