"""Apple Silicon's GPU: the default wherever it exists."""

import platform
import sys

from mlxmath.runtime.backend import DeviceInfo
from mlxmath.runtime.device import MlxDevice


class MetalBackend(MlxDevice):
    """MLX on Metal, with unified memory."""

    name = "metal"
    bucket_multiple = 16
    features = frozenset({"compile", "fast_quantized_matmul", "wired_memory"})

    def unavailable(self) -> str | None:
        """Why there is no Metal here."""
        if sys.platform != "darwin" or platform.machine() != "arm64":
            return f"Metal needs macOS on Apple Silicon; this is {platform.system()} on {platform.machine()}."
        import mlx.core as mx

        if not mx.metal.is_available():
            return "MLX sees no Metal device; install MLX natively for arm64 (a Rosetta Python has none)."
        return None

    def _describe(self) -> DeviceInfo:
        import mlx.core as mx

        info = mx.device_info()
        return DeviceInfo(
            backend=self.name,
            device=str(info.get("device_name", "Apple GPU")),
            memory_bytes=int(info["max_recommended_working_set_size"]),
            compute_dtype="bfloat16",
            dtype_reason="half the memory of float32 with its range; adapters and optimizer stay float32",
        )
