"""Loads a fast BLAS before MLX.

The Linux wheel of `mlx[cpu]` is linked to the reference BLAS (4 GFLOP/s in float32 on two cores). A BLAS whose symbols
are already global when `mlx.core` is first imported takes its place (OpenBLAS: 345 GFLOP/s on the same cores). So this
must run before any import of mlx; the parts of mlxmath that import mlx call `preload()` in their `__init__`.
"""

import ctypes
import ctypes.util
import functools
import os
import sys
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import Any

INSTALL_HINT = (
    "`apt-get install libopenblas0-pthread` (Debian, Ubuntu) or `pip install mkl` makes this CPU several times faster"
)
_SYSTEM = ("libopenblas.so.0", "libopenblasp.so.0", "libmkl_rt.so.2", "libmkl_rt.so.3", "libmkl_rt.so")


@functools.cache
def preload() -> str | None:
    """Load OpenBLAS or MKL into the process, once.

    Returns:
        The library's name, or None where there is none or none is needed (macOS, MLX's CUDA build for its GPU work).
    """
    if not sys.platform.startswith("linux"):
        return None
    for name in (*_SYSTEM, *_from_wheels()):
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return Path(name).name
    return None


def blas_is_missing() -> bool:
    """Whether MLX's matrix products on this CPU go to the reference BLAS."""
    return sys.platform.startswith("linux") and preload() is None


def num_usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def can_limit_threads() -> bool:
    """Whether `limit_threads` works here: for OpenBLAS and MKL, not for Apple's Accelerate."""
    return preload() is not None


def limit_threads(count: int) -> AbstractContextManager[Any]:
    """Let matrix products of this process run on at most `count` threads, from now to the context's end.

    With one they run on the thread that asks for them, so that several threads can ask at once.
    """
    limited: AbstractContextManager[Any] = _libraries().limit(limits=count, user_api="blas")
    return limited


@functools.cache
def _libraries() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _from_wheels() -> list[str]:
    """Paths of an MKL that came as a Python package."""
    try:
        files = metadata.files("mkl") or []
    except metadata.PackageNotFoundError:
        return []
    return [str(file.locate()) for file in files if file.name.startswith("libmkl_rt.so")]
