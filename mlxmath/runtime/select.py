"""Chooses the backend of a run and says why."""

from mlxmath.config.schema import RuntimeConfig
from mlxmath.runtime.backend import Backend, DeviceInfo
from mlxmath.runtime.console import say, warn
from mlxmath.runtime.cpu import CpuBackend
from mlxmath.runtime.cuda import CudaBackend
from mlxmath.runtime.metal import MetalBackend

BACKENDS: dict[str, type[Backend]] = {"metal": MetalBackend, "cuda": CudaBackend, "cpu": CpuBackend}
"""In the order in which `auto` tries them."""


def choose(name: str) -> tuple[Backend, str]:
    """The backend called `name`, or for "auto" the first one available, and the reason."""
    if name != "auto":
        return BACKENDS[name](), "asked for"
    for candidate in (MetalBackend(), CudaBackend()):
        if candidate.unavailable() is None:
            return candidate, "auto: the fastest device here"
    return CpuBackend(), "auto: neither Metal nor CUDA here"


def open_backend(config: RuntimeConfig, seed: int, num_sharing: int = 1) -> tuple[Backend, DeviceInfo]:
    """Open the backend that `config` asks for and print device, type and the reasons for both.

    Args:
        config: which one, and its memory.
        seed: of the random state.
        num_sharing: processes of this run on this machine.
    """
    backend, reason = choose(config.backend)
    limit = None if config.memory_limit_gb is None else int(config.memory_limit_gb * 1e9)
    info = backend.open(seed, limit, num_sharing)
    say(f"backend {info.backend} ({reason}): {info.device}, computing in {info.compute_dtype} ({info.dtype_reason})")
    for note in info.notes:
        warn(note)
    return backend, info
