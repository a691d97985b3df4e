"""Loads the fastest BLAS of this machine before MLX.

The Linux wheel of `mlx[cpu]` is linked to the reference BLAS (4 GFLOP/s in float32 on two cores). A BLAS whose symbols
are already global when `mlx.core` is first imported takes its place (OpenBLAS: 345 GFLOP/s on the same cores). So this
must run before any import of mlx; the parts of mlxmath that import mlx call `preload()` in their `__init__`.
"""

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlxmath.errors import MlxmathError
from mlxmath.runtime import sgemm
from mlxmath.runtime.blas_trials import VARIABLE, Blas, libraries, trials
from mlxmath.runtime.sealed import unsealed_json
from mlxmath.runtime.symbols import make_global

INSTALL_HINT = (
    "`pip install scipy-openblas32` or `apt-get install libopenblas0-pthread` (Debian, Ubuntu) makes this CPU faster"
)
CLEARLY = 1.03
"""Times as fast as an earlier one, for a later one to be taken; trials repeat to about one percent."""
_WORTH_SAYING = 1.1
"""Times slower than need be, for a user's choice to be remarked on."""
_USED_BY_MLX = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")
_again: dict[str, Any] | None = None
"""The `identity` of what the resumed run used."""
_is_late = False
"""Whether MLX was there before a library that it could have used."""


def take_again(run_file: Path, rank: int = 0) -> None:
    """Let `preload` load what a run used before that is resumed, if it is still here."""
    global _again
    with contextlib.suppress(MlxmathError, KeyError, TypeError, IndexError):
        _again = unsealed_json(run_file, None)["blas"][rank]


@functools.cache
def preload() -> Blas | None:
    """Load the fastest BLAS into the process, once.

    Returns:
        What is loaded, or None where there is none, none is needed (macOS), or it is too late: mlx is there already.
    """
    global _is_late
    if not sys.platform.startswith("linux"):
        return None
    loaded = ctypes.CDLL(None)
    if hasattr(loaded, "cblas_sgemm"):
        return Blas(os.environ.get("LD_PRELOAD") or "loaded before mlxmath", None, sgemm.kernels(loaded), 0.0)
    _is_late = "mlx.core" in sys.modules and bool(libraries())
    left = () if _is_late else trials()
    while left:
        chosen = choose(left, VARIABLE in os.environ, _again)
        try:
            return _loaded(chosen)
        except OSError:
            left = tuple(one for one in left if one.library != chosen.library)
    return None


def choose(found: Sequence[Blas], is_set: bool, again: dict[str, Any] | None = None) -> Blas:
    """The first that is about as fast as any; what was used before, if it is among them.

    Args:
        found: what there is, at least one.
        is_set: the user has named OpenBLAS's kernels, so that it is OpenBLAS with these.
        again: `Blas.identity` of what was used before.
    """
    allowed = (is_set and [one for one in found if one.kernels and not one.asked]) or found
    best = max(one.flops_per_s for one in allowed)
    as_before = (one for one in allowed if one.identity == again)
    return next(as_before, None) or next(one for one in allowed if CLEARLY * one.flops_per_s >= best)


def _loaded(chosen: Blas) -> Blas:
    """Put it in MLX's way, with its kernels; the environment is afterwards what it was.

    Raises:
        OSError: it cannot be loaded.
    """
    before = os.environ.get(VARIABLE)
    os.environ |= {VARIABLE: chosen.asked} if chosen.asked else {}
    try:
        library = ctypes.CDLL(chosen.library)
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before
    if prefix := sgemm.prefix(library):
        functions = {name: getattr(library, prefix + name) for name in _USED_BY_MLX}
        make_global({name: ctypes.cast(function, ctypes.c_void_p).value or 0 for name, function in functions.items()})
    else:
        ctypes.CDLL(chosen.library, mode=ctypes.RTLD_GLOBAL)
    return replace(chosen, kernels=sgemm.kernels(library))  # others, if something has loaded it before


def blas_is_missing() -> bool:
    """Whether MLX's matrix products on this CPU go to the reference BLAS."""
    return sys.platform.startswith("linux") and preload() is None


def advice() -> str | None:
    """What would make matrix products on this CPU faster; None: nothing that is known."""
    used = preload()
    if blas_is_missing():
        if _is_late:
            return (
                "mlx was imported before mlxmath could load a fast BLAS for it, so matrix products are slow: call "
                "`mlxmath.runtime.blas.preload()` before anything imports mlx"
            )
        if there := libraries():
            return f"{', '.join(there)} cannot be loaded for MLX, so matrix products are slow: {INSTALL_HINT}"
        return f"no fast BLAS found for MLX, so matrix products go through NumPy or are slow: {INSTALL_HINT}"
    if used is None or VARIABLE not in os.environ or not used.flops_per_s:
        return None
    best = choose(trials(), is_set=False)
    times = best.flops_per_s / used.flops_per_s
    if times < _WORTH_SAYING:
        return None
    value = os.environ[VARIABLE]
    return f"{VARIABLE}={value} is set: without it matrix products would be {times:.1f} times as fast, by {best}"


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
    limited: AbstractContextManager[Any] = _thread_pools().limit(limits=count, user_api="blas")
    return limited


@functools.cache
def _thread_pools() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
