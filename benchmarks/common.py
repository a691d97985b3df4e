"""What the benchmarks share: the command line, the data, where a figure was measured, tables, JSON.

Importing this loads the BLAS that mlxmath would, before anything loads MLX.
"""

import argparse
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from mlxmath.runtime.blas import preload

preload()

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
GSM8K = REPOSITORY.parent / "shared" / "data" / "gsm8k" / "train.jsonl"
DEMO_ROWS = REPOSITORY / "mlxmath" / "demo" / "problems" / "train.jsonl"

PROBLEMS = GSM8K if GSM8K.exists() else DEMO_ROWS
WORK = Path(tempfile.gettempdir()) / "mlxmath-benchmarks"

_SHARED: dict[str, dict[str, Any]] = {
    "data": {"type": Path, "default": PROBLEMS, "help": "problems and solutions (default: GSM8K, else the bundled)"},
    "work": {"type": Path, "default": WORK, "help": "folder for models, kept (default: in the temporary folder)"},
    "backend": {"default": "cpu", "choices": ("cpu", "cuda", "metal"), "help": "device (default: cpu)"},
}
"""Options that several benchmarks have."""


def command_line(
    description: str | None, result: str, *shared: str, timeout_s: float | None = None
) -> argparse.ArgumentParser:
    """A parser with `--out` and some of `_SHARED`. From now on SIGTERM ends the process with all that it started.

    Args:
        description: the script's docstring.
        result: name of its JSON in benchmarks/results.
        shared: names of options.
        timeout_s: default of `--timeout`, where there is such a thing.
    """
    exit_on_sigterm()
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in shared:
        parser.add_argument(f"--{name}", **_SHARED[name])
    if timeout_s is not None:
        text = f"seconds a run may take (default: {timeout_s:g})"
        parser.add_argument("--timeout", type=float, default=timeout_s, help=text)
    parser.add_argument("--out", type=Path, default=RESULTS / result, help=f"JSON (default: {RESULTS / result})")
    return parser


def flags(options: Mapping[str, Any]) -> list[str]:
    """`{"a-b": 1}` as `--a-b 1`."""
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """Where and with what something was measured: machine, versions of `packages` and this one, commit."""
    return {
        "platform": platform.platform(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "commit": commit(),
    }


def version(package: str) -> str | None:
    """The version of an installed package, None if it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of this checkout, with `+` behind it if tracked files differ; None outside a checkout."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    result = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return result.stdout.strip()


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def exit_on_sigterm() -> None:
    """Turn SIGTERM into an exit that cleans up, so that no started process is left behind."""

    def leave(*_: object) -> None:
        print("ended by SIGTERM", file=sys.stderr, flush=True)
        sys.exit(143)

    signal.signal(signal.SIGTERM, leave)


def save_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, in one step, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    Path(name).chmod(0o644)
    Path(name).replace(path)


def ring_hostfile(folder: Path, size: int) -> Path:
    """A file with free ports of this machine for `size` ranks, as MLX_HOSTFILE names it."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(size)]
    path = folder / "hosts.json"
    path.write_text(json.dumps([[f"127.0.0.1:{probe.getsockname()[1]}"] for probe in probes]))
    for probe in probes:
        probe.close()
    return path


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is text, the others are numbers. Plain where `rich` is not installed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        print(f"\n{title}")
        for row in (columns, *rows):
            cells = [f"{c:{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))]
            print("  ".join(cells))
        return
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print()
    console.print(table)


def gigabytes(num_bytes: float | None) -> str:
    """`1234567890` as `1.23 GB`; a dash for None."""
    return "-" if num_bytes is None else f"{num_bytes / 1e9:.2f} GB"
