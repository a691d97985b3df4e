"""What keeps MLX from an NVIDIA GPU, in words that say what to install.

MLX's wheels for Linux (`mlx-cpu`, `mlx-cuda-12`, `mlx-cuda-13`) all hold the file `mlx/lib/libmlx.so`: that of
the wheel that was installed last is the one that runs.
"""

import ctypes
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

BUILDS = {"mlx-cuda-13": 13, "mlx-cuda-12": 12}
"""MLX's CUDA wheels, and the CUDA version that each is made for."""
_LEAST_DRIVER = {13: "580", 12: "550"}
LEAST_CAPABILITY = (7, 5)
"""Compute capability of the oldest GPUs (Turing) that MLX has code for."""
_DRIVER_FILE = Path("/proc/driver/nvidia/version")


def installed_builds() -> tuple[str, ...]:
    """MLX's wheels for Linux that are installed."""
    return tuple(name for name in (*BUILDS, "mlx-cpu") if [*metadata.distributions(name=name)])


def driver_release() -> str | None:
    """The loaded kernel driver's release ("580.65.06"); None if there is none."""
    try:
        found = re.search(r"(\d+\.\d+(?:\.\d+)?)", _DRIVER_FILE.read_text())
    except OSError:
        return None
    return found[1] if found else None


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA version that the driver's library serves; None if there is no such library."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return None
    return number.value // 1000, number.value % 1000 // 10


def why_not_loaded(error: str, builds: Sequence[str], release: str | None) -> str:
    """Why `import mlx.core` failed with `error`.

    Args:
        error: the ImportError's text.
        builds: see `installed_builds`.
        release: see `driver_release`.
    """
    version = _version_of(builds)
    missing = re.search(r"(lib[\w+.-]+\.so[\w.]*): cannot open shared object", error)
    if missing is None:
        return f"MLX does not load ({error}); install it again with {_install(version)}."
    library = missing[1]
    if library.startswith("libcuda.so"):
        driver = f"NVIDIA driver {release} is loaded, but" if release else "there is no NVIDIA driver here:"
        return (
            f"{driver} {library} is missing. Install a driver >= {_LEAST_DRIVER[version]} (in a container: start it "
            "with `--gpus all`). For a machine without an NVIDIA GPU: `pip uninstall -y mlx-cuda-12 mlx-cuda-13` and "
            "`pip install --force-reinstall 'mlxmath[cpu]'`."
        )
    if library.startswith("libmlx"):
        return (
            f"MLX is installed without the part that computes ({library} is missing); add it with {_install(version)}."
        )
    return f"{library}, which MLX's CUDA build needs, is missing; install NVIDIA's libraries with {_install(version)}."


def why_no_cuda_build(builds: Sequence[str], release: str | None) -> str:
    """Why the MLX that was loaded has no CUDA in it."""
    if any(name in BUILDS for name in builds):
        names = " ".join(sorted(builds))
        return (
            f"MLX's CPU build lies over its CUDA build (both are installed: {names}). `pip uninstall -y {names}`, then "
            f"{_install(_version_of(builds))}."
        )
    driver = f"driver {release} is there" if release else "no NVIDIA driver is loaded here, which it needs too"
    return f"MLX's CPU-only build is installed. {_install(_version_for(release))} brings the one for CUDA ({driver})."


def why_no_device(builds: Sequence[str], serves: tuple[int, int] | None, visible: str | None) -> str:
    """Why MLX's CUDA build finds no GPU.

    Args:
        builds: see `installed_builds`.
        serves: see `driver_cuda`.
        visible: CUDA_VISIBLE_DEVICES.
    """
    version = _version_of(builds)
    if serves is not None and serves[0] < version:
        older = f", or {_install(serves[0])}" if serves[0] in BUILDS.values() else ""
        return (
            f"the NVIDIA driver is too old: it serves CUDA {serves[0]}.{serves[1]}, and this MLX is made for CUDA "
            f"{version}. Install a driver >= {_LEAST_DRIVER[version]}{older}."
        )
    if visible is not None:
        return f"no GPU is visible with CUDA_VISIBLE_DEVICES={visible!r}; unset it or name a GPU of `nvidia-smi -L`."
    return "the NVIDIA driver reports no GPU; see what `nvidia-smi` says (in a container: start it with `--gpus all`)."


def why_no_operation(error: str, builds: Sequence[str], release: str | None) -> str:
    """Why a first operation on the GPU fails with `error`, or MLX cannot compile its kernels."""
    first = error.strip().splitlines()[0]
    if "CUDA_HOME" in first:
        return (
            f"MLX compiles kernels with CUDA's headers and does not find them. {_install(_version_of(builds))} brings "
            "them (nvidia-cuda-runtime); where they are elsewhere, set CUDA_HOME to the folder whose include/ holds "
            "cuda_fp16.h."
        )
    return (
        f"a first operation on the GPU fails: {first}. Driver {release}; installed: {', '.join(builds)}. Install a "
        f"current driver, or NVIDIA's libraries again: {_install(_version_of(builds[:1]))}."
    )


def why_too_old(name: str, capability: tuple[int, int]) -> str | None:
    """Why the GPU itself does not do; None if it does."""
    if capability >= LEAST_CAPABILITY:
        return None
    found, least = (".".join(map(str, pair)) for pair in (capability, LEAST_CAPABILITY))
    return f"{name} has compute capability {found}; MLX needs {least} or newer. Use --backend cpu."


def _version_of(builds: Sequence[str]) -> int:
    return next((version for name, version in BUILDS.items() if name in builds), 13)


def _version_for(release: str | None) -> int:
    """The CUDA version to install for a driver."""
    return 12 if release and int(release.split(".")[0]) < int(_LEAST_DRIVER[13]) else 13


def _install(version: int) -> str:
    return f"`pip install --force-reinstall 'mlxmath[cuda{version}]'`"
