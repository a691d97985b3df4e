"""A fault at a process's n-th file-system operation: `faults.c` built, told, and read."""

import errno
import os
import shlex
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
KINDS = ("open", "write", "fsync", "rename", "unlink", "link", "mkdir", "rmdir", "truncate")
"""Of operations: `open` is one that may write; `write` is any that moves bytes into a file."""
NEED_SPACE = ("open", "write", "link", "mkdir")
"""The kinds that a full disk refuses. Half of the first write still fits."""


def build(folder: Path) -> Path:
    """Compile the library into `folder`."""
    library = folder / "faults.so"
    compiler = shlex.split(os.environ.get("CC", "cc"))
    subprocess.run([*compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return library


@dataclass(frozen=True)
class Fault:
    """What happens, and at which operation (from 1 on; 0: never, the operations are only counted)."""

    act: str = "count"
    """`before`, `in` or `after`: the process is killed; `error` or `signal`: it gets `number`."""
    at: int = 0
    number: str = ""
    """ENOSPC, EROFS, EIO, or SIGTERM, SIGINT, SIGSTOP."""

    def environment(self, folder: Path, log: Path) -> dict[str, str]:
        """What the library reads: the fault, the folder whose operations count, the log that they are written to."""
        found = {"FAULT_FOLDER": str(folder), "FAULT_LOG": str(log), "FAULT_ACT": self.act, "FAULT_AT": str(self.at)}
        if self.number:
            value = getattr(signal if self.act == "signal" else errno, self.number)
            found["FAULT_NUMBER"] = str(int(value))
        if self.number in ("ENOSPC", "EROFS"):  # a disk stays full
            found["FAULT_LASTING"] = "1"
        return found


def operations(log: Path) -> list[tuple[str, str]]:
    """Kind and path of what a process did, in order."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [(kind, path) for kind, _, path in (line.partition(" ") for line in lines)]
