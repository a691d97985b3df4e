"""The CPU: every machine has one; float32, with a fast BLAS loaded before MLX."""

import platform

from mlxmath.runtime.backend import DeviceInfo
from mlxmath.runtime.blas import INSTALL_HINT, blas_is_missing, can_limit_threads, num_usable_cores, preload
from mlxmath.runtime.device import MlxDevice, machine_memory_bytes


class CpuBackend(MlxDevice):
    """MLX on the CPU (Accelerate on a Mac; OpenBLAS or MKL, where installed, on Linux)."""

    name = "cpu"
    bucket_multiple = 16
    most_cache_bytes = 512 << 20

    def unavailable(self) -> str | None:
        """None: there is always a CPU, if MLX's library for it is installed."""
        preload()
        try:
            import mlx.core  # noqa: F401
        except ImportError as error:
            return f"MLX does not load ({error}); on Linux install it with `pip install 'mlxmath[cpu]'`."
        return None

    def _select(self) -> None:
        import mlx.core as mx

        mx.set_default_device(mx.cpu)

    def _describe(self) -> DeviceInfo:
        blas = preload()
        notes: tuple[str, ...] = ()
        if blas_is_missing():
            notes = (f"no fast BLAS found for MLX, so matrix products go through NumPy or are slow: {INSTALL_HINT}",)
        return DeviceInfo(
            backend=self.name,
            device=f"{platform.processor() or platform.machine()} ({blas or 'system BLAS'})",
            memory_bytes=int(machine_memory_bytes() * 0.8),
            compute_dtype="float32",
            dtype_reason="MLX's 16-bit matrix products on a CPU are 40 to 80 times slower",
            num_workers=num_usable_cores() if can_limit_threads() else 1,
            notes=notes,
        )
