"""What only Macs need: kept awake, Metal's patience with long work, an MLX that is new enough."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata

LEAST_MLX = (0, 32, 4)
"""The first whose attention has a backward pass on Metal without memory for all pairs of tokens."""


@contextmanager
def kept_awake() -> Iterator[None]:
    """While it lasts, a Mac that has `caffeinate` does not sleep, though its display may."""
    process = None
    if sys.platform == "darwin":
        # a session of its own: Ctrl-C is for the run, which saves; and it ends with the run, however that ends
        command = ["caffeinate", "-i", "-s", "-w", str(os.getpid())]
        with suppress(OSError):
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
    try:
        yield
    finally:
        if process is not None:
            process.terminate()
            process.wait()


def be_patient() -> None:
    """Before Metal is used: macOS is not to end the GPU's work because it keeps the display waiting.

    Otherwise training beside a display in use can end at any step (ml-explore/mlx issue 3267). What the user has set
    counts more.
    """
    os.environ.setdefault("AGX_RELAX_CDM_CTXSTORE_TIMEOUT", "1")


def old_mlx() -> str | None:
    """What a Mac's MLX lacks, and what to do; None if it is new enough."""
    found = metadata.version("mlx")
    numbers = tuple(int(part) for part in found.split("+")[0].split(".")[:3] if part.isdigit())
    if sys.platform != "darwin" or numbers >= LEAST_MLX:
        return None
    least = ".".join(map(str, LEAST_MLX))
    return f"mlx {found} takes memory for all pairs of tokens in attention's backward pass: pip install 'mlx>={least}'"


def without_gpu() -> str | None:
    """Why MLX computes nothing on a Mac that gives it no GPU, and what to do; None if there is one, or this is no Mac.

    MLX's build for Macs says that it has Metal in any case, and holds all memory through it, the CPU's too.
    """
    import mlx.core as mx

    if not mx.metal.is_available() or mx.device_count(mx.gpu):
        return None
    return (
        "macOS gives MLX no GPU, without which it computes nothing, not even on the CPU; so it is in virtual machines, "
        "sandboxes and some sessions without a screen. Run mlxmath in a terminal of the Mac itself."
    )
