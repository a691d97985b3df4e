"""What the three backends share: MLX's allocator, and opening a device."""

import os
from abc import ABC, abstractmethod
from dataclasses import replace

from mlxmath.errors import InputError
from mlxmath.runtime.backend import DeviceInfo, Feature, MemoryStats
from mlxmath.runtime.blas import can_limit_threads, limit_threads, num_usable_cores


def machine_memory_bytes() -> int:
    """Physical memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class MlxDevice(ABC):
    """A backend on MLX. Imports MLX only when it is used, so that listing backends is instant."""

    name: str
    bucket_multiple: int
    features: frozenset[Feature] = frozenset()
    is_shared: bool = True
    """Whether all processes of a machine compute on the same device."""
    cache_share: float = 1 / 8
    """Of the memory limit, for freed buffers that MLX keeps for the next operations."""
    most_cache_bytes: int = 8 << 30
    """The same in bytes."""

    @abstractmethod
    def unavailable(self) -> str | None:
        """See `Backend`."""

    @abstractmethod
    def _describe(self) -> DeviceInfo:
        """The device with the memory that MLX should be allowed by default."""

    def _select(self) -> None:
        import mlx.core as mx

        mx.set_default_device(mx.gpu)

    def open(self, seed: int, memory_limit_bytes: int | None = None, num_sharing: int = 1) -> DeviceInfo:
        """See `Backend`.

        Raises:
            InputError: the backend is not available here.
        """
        if reason := self.unavailable():
            raise InputError(f"--backend {self.name}: {reason}")
        import mlx.core as mx

        self._select()
        info = self._describe()
        if self.is_shared and num_sharing > 1:
            info = replace(
                info,
                memory_bytes=info.memory_bytes // num_sharing,
                num_workers=max(1, info.num_workers // num_sharing),
            )
            if can_limit_threads():
                limit_threads(max(1, num_usable_cores() // num_sharing))
        limit = memory_limit_bytes or info.memory_bytes
        mx.set_memory_limit(limit)
        mx.set_cache_limit(min(int(limit * self.cache_share), self.most_cache_bytes))
        if self.supports("wired_memory"):
            mx.set_wired_limit(min(limit, info.memory_bytes))
        mx.random.seed(seed)
        return replace(info, memory_bytes=limit)

    def supports(self, feature: Feature) -> bool:
        """See `Backend`."""
        return feature in self.features

    def memory(self) -> MemoryStats:
        """See `Backend`."""
        import mlx.core as mx

        return MemoryStats(mx.get_active_memory(), mx.get_peak_memory(), mx.get_cache_memory())

    def reset_peak(self) -> None:
        """See `Backend`."""
        import mlx.core as mx

        mx.reset_peak_memory()

    def trim(self) -> None:
        """See `Backend`."""
        import mlx.core as mx

        mx.clear_cache()

    def synchronize(self) -> None:
        """See `Backend`."""
        import mlx.core as mx

        mx.synchronize()
