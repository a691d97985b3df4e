"""Where a run computes: Metal, CUDA or the CPU. Not a tensor API (MLX is that), but what differs between the three."""

import os
import platform
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import psutil

from mlxmath.errors import InputError
from mlxmath.runtime import blas, mac, nvidia
from mlxmath.runtime.console import say, warn

if TYPE_CHECKING:
    from mlxmath.config.schema import RuntimeConfig


@dataclass(frozen=True)
class DeviceInfo:
    """The device that a run computes on."""

    backend: str
    device: str
    memory_bytes: int
    """Memory that MLX may use there."""
    compute_dtype: str
    """Type of the activations and of unquantized weights in memory."""
    dtype_reason: str
    num_workers: int = 1
    """Micro-batches that it computes faster at once than one after the other."""
    notes: tuple[str, ...] = ()
    """What would make it faster, a line each."""


@dataclass(frozen=True)
class MemoryStats:
    """MLX's allocator, in bytes."""

    active_bytes: int
    peak_bytes: int
    cache_bytes: int


def machine_memory_bytes() -> int:
    """Physical memory of this machine."""
    return int(psutil.virtual_memory().total)


class Backend(ABC):
    """One kind of device. Imports MLX only when it is used, so that listing backends is instant."""

    name: str
    bucket_multiple: int = 16
    """Padded sequence lengths are multiples of this."""
    compiles: bool = True
    """Whether compiled functions are faster there."""
    is_shared: bool = True
    """Whether all processes of a machine compute on the same device."""
    cache_share: float = 1 / 8
    """Of the memory limit, for freed buffers that MLX keeps for the next operations."""
    most_cache_bytes: int = 8 << 30
    """The same in bytes."""

    def __init__(self) -> None:
        self._before = ExitStack()

    @abstractmethod
    def unavailable(self) -> str | None:
        """Why this machine cannot use the backend and what to do about it; None if it can."""

    @abstractmethod
    def describe(self) -> DeviceInfo:
        """The device, with the memory that MLX should be allowed by default."""

    def open(self, seed: int, memory_limit_bytes: int | None = None, num_sharing: int = 1) -> DeviceInfo:
        """Make the device MLX's default, set its limits and seed its random state.

        Args:
            seed: of the random state.
            memory_limit_bytes: most that MLX may hold (None: the device's recommendation).
            num_sharing: processes of this run on the machine, which divide its memory and its cores between them.

        Raises:
            InputError: the backend is not available here.
        """
        if reason := self.unavailable():
            raise InputError(f"--backend {self.name}: {reason}")
        import mlx.core as mx

        put_back = self._before.callback
        put_back(mx.clear_cache)
        put_back(mx.set_default_device, mx.default_device())
        mx.set_default_device(mx.cpu if self.name == "cpu" else mx.gpu)
        info = self.describe()
        if self.is_shared and num_sharing > 1:
            info = replace(
                info,
                memory_bytes=info.memory_bytes // num_sharing,
                num_workers=max(1, info.num_workers // num_sharing),
            )
            if blas.can_limit_threads():
                self._before.enter_context(blas.limit_threads(max(1, blas.num_usable_cores() // num_sharing)))
        limit = memory_limit_bytes or info.memory_bytes
        put_back(mx.set_memory_limit, mx.set_memory_limit(limit))
        put_back(mx.set_cache_limit, mx.set_cache_limit(min(int(limit * self.cache_share), self.most_cache_bytes)))
        if self.name == "metal":
            put_back(mx.set_wired_limit, mx.set_wired_limit(min(limit, info.memory_bytes)))
        mx.random.seed(seed)
        return replace(info, memory_bytes=limit)

    def close(self) -> None:
        """Put MLX's default device and limits, and the threads of the BLAS, back to what they were before `open`."""
        self._before.close()

    def memory(self) -> MemoryStats:
        """The allocator's state now."""
        import mlx.core as mx

        return MemoryStats(mx.get_active_memory(), mx.get_peak_memory(), mx.get_cache_memory())

    def reset_peak(self) -> None:
        """Start a new peak measurement."""
        import mlx.core as mx

        mx.reset_peak_memory()


class MetalBackend(Backend):
    """Apple Silicon's GPU, with unified memory."""

    name = "metal"

    def unavailable(self) -> str | None:
        """See `Backend`."""
        if sys.platform != "darwin" or platform.machine() != "arm64":
            return f"Metal needs macOS on Apple Silicon; this is {platform.system()} on {platform.machine()}."
        mac.be_patient()
        import mlx.core as mx

        if not mx.metal.is_available():
            return "MLX sees no Metal device; install MLX natively for arm64 (a Rosetta Python has none)."
        return mac.without_gpu()

    def describe(self) -> DeviceInfo:
        """See `Backend`."""
        import mlx.core as mx

        info = mx.device_info()
        return DeviceInfo(
            backend=self.name,
            device=str(info.get("device_name", "Apple GPU")),
            memory_bytes=int(info["max_recommended_working_set_size"]),
            compute_dtype="bfloat16",
            dtype_reason="half the memory of float32 with its range; adapters and optimizer stay float32",
            notes=(note,) if (note := mac.old_mlx()) else (),
        )


class CudaBackend(Backend):
    """NVIDIA GPUs through MLX's own CUDA build."""

    name = "cuda"
    is_shared = False  # the launcher gives each process a GPU of its own
    cache_share = 1.0  # nobody else waits for this memory, and what is given back costs the step that asks again
    most_cache_bytes = sys.maxsize
    usable_share = 0.95
    """Of the memory; the rest is for CUDA's own context, cuDNN's workspaces and kernels."""

    def unavailable(self) -> str | None:
        """See `Backend`."""
        if not sys.platform.startswith("linux"):
            return f"MLX's CUDA build is for Linux; this is {sys.platform}."
        blas.preload()
        # MLX ends a process whose shapes and graphs have missed its caches a few hundred times in all, however long it
        # ran. Long runs see that many; a miss merely takes a moment. The user's own values count more.
        os.environ.setdefault("MLX_ENABLE_CACHE_THRASHING_CHECK", "0")
        os.environ.setdefault("MLX_CUDA_SDPA_BACKWARD_CACHE_SIZE", "256")
        builds, release = nvidia.installed_builds(), nvidia.driver_release()
        try:
            import mlx.core as mx
        except ImportError as error:
            return nvidia.why_not_loaded(str(error), builds, release)
        if not mx.cuda.is_available():
            return nvidia.why_no_cuda_build(builds, release)
        if mx.device_count(mx.gpu) == 0:
            return nvidia.why_no_device(builds, nvidia.driver_cuda(), os.environ.get("CUDA_VISIBLE_DEVICES"))
        info = mx.device_info(mx.gpu)
        if reason := nvidia.why_too_old(str(info.get("device_name", "the GPU")), _capability(info)):
            return reason
        try:
            mx.eval(mx.add(mx.ones(2), mx.ones(2), stream=mx.gpu))
            mx.eval(mx.compile(lambda x: mx.exp(x) * x)(mx.ones(2)))
        except (RuntimeError, ValueError) as error:
            return nvidia.why_no_operation(str(error), builds, release)
        return None

    def describe(self) -> DeviceInfo:
        """See `Backend`."""
        import mlx.core as mx

        info = mx.device_info(mx.gpu)
        total = int(info["total_memory"])
        free = int(info.get("free_memory", total))
        capability = _capability(info)
        has_bfloat16 = capability >= (8, 0)
        in_use = f"{(total - free) / 1e9:.1f} of the GPU's {total / 1e9:.1f} GB are in use by other processes"
        return DeviceInfo(
            backend=self.name,
            device=f"{info.get('device_name', 'NVIDIA GPU')} (compute capability {'.'.join(map(str, capability))}, "
            f"driver {nvidia.driver_release() or 'unknown'})",
            memory_bytes=int(min(total * self.usable_share, free)),
            compute_dtype="bfloat16" if has_bfloat16 else "float32",
            dtype_reason=(
                "tensor cores and fused attention need 16 bits; adapters and optimizer stay float32"
                if has_bfloat16
                else "this GPU has no bfloat16, and float16's range loses gradients"
            ),
            notes=(in_use,) if free < 0.8 * total else (),
        )


def _capability(info: dict[str, Any]) -> tuple[int, int]:
    """Compute capability, out of MLX's device information."""
    return int(info["compute_capability_major"]), int(info["compute_capability_minor"])


class CpuBackend(Backend):
    """Any machine's CPU, in float32 (Accelerate on a Mac; OpenBLAS or MKL, where installed, on Linux)."""

    name = "cpu"
    compiles = False
    most_cache_bytes = 512 << 20

    def unavailable(self) -> str | None:
        """See `Backend`; there is always a CPU, if MLX's library for it is installed."""
        blas.preload()
        try:
            import mlx.core  # noqa: F401
        except ImportError as error:
            return f"MLX does not load ({error}); on Linux install it with `pip install 'mlxmath[cpu]'`."
        return mac.without_gpu()

    def describe(self) -> DeviceInfo:
        """See `Backend`."""
        advice = blas.advice()
        return DeviceInfo(
            backend=self.name,
            device=f"{platform.processor() or platform.machine()} ({blas.preload() or 'system BLAS'})",
            memory_bytes=int(machine_memory_bytes() * 0.8),
            compute_dtype="float32",
            dtype_reason="MLX's 16-bit matrix products on a CPU are 40 to 80 times slower",
            num_workers=blas.num_usable_cores() if blas.can_limit_threads() else 1,
            notes=(advice,) if advice else (),
        )


BACKENDS: dict[str, type[Backend]] = {"metal": MetalBackend, "cuda": CudaBackend, "cpu": CpuBackend}
"""In the order in which `auto` tries them."""


def choose(name: str) -> tuple[Backend, str]:
    """The backend called `name`, or for "auto" the first one available (else the last), and the reason."""
    if name != "auto":
        return BACKENDS[name](), "asked for"
    every = [kind() for kind in BACKENDS.values()]
    found = next((backend for backend in every if backend.unavailable() is None), every[-1])
    return found, f"auto: {'neither Metal nor CUDA' if found.name == 'cpu' else 'the fastest device'} here"


def open_backend(config: "RuntimeConfig", seed: int, num_sharing: int = 1) -> tuple[Backend, DeviceInfo]:
    """Open the backend that `config` asks for and say device, type and the reasons for both; see `Backend.open`."""
    backend, reason = choose(config.backend)
    limit = None if config.memory_limit_gb is None else int(config.memory_limit_gb * 1e9)
    info = backend.open(seed, limit, num_sharing)
    say(f"backend {info.backend} ({reason}): {info.device}, computing in {info.compute_dtype} ({info.dtype_reason})")
    for note in info.notes:
        warn(note)
    return backend, info


@contextmanager
def opened_backend(config: "RuntimeConfig", seed: int, num_sharing: int = 1) -> Iterator[tuple[Backend, DeviceInfo]]:
    """`open_backend` for the time of one run, of a library's caller; afterwards everything is as it was before."""
    backend, info = open_backend(config, seed, num_sharing)
    try:
        yield backend, info
    finally:
        backend.close()
