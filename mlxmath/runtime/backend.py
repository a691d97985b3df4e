"""The port that a device plugs into. Not a tensor API (MLX is that): what differs between Metal, CUDA and the CPU."""

from dataclasses import dataclass
from typing import Literal, Protocol

Feature = Literal["compile", "fused_attention_backward", "fast_quantized_matmul", "wired_memory"]


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


class Backend(Protocol):
    """One kind of device."""

    name: str
    bucket_multiple: int
    """Padded sequence lengths are multiples of this."""

    def unavailable(self) -> str | None:
        """Why this machine cannot use the backend and what to do about it; None if it can."""

    def open(self, seed: int, memory_limit_bytes: int | None = None, num_sharing: int = 1) -> DeviceInfo:
        """Make the device MLX's default, set its limits and seed its random state.

        Args:
            seed: of the random state.
            memory_limit_bytes: most that MLX may hold (None: the device's recommendation).
            num_sharing: processes of this run on the machine, which divide its memory and its cores between them.
        """

    def supports(self, feature: Feature) -> bool:
        """Whether the device has a fast path for `feature`."""

    def memory(self) -> MemoryStats:
        """The allocator's state now."""

    def reset_peak(self) -> None:
        """Start a new peak measurement."""

    def trim(self) -> None:
        """Give cached buffers back to the system."""

    def synchronize(self) -> None:
        """Wait until the device has finished."""
