"""NVIDIA GPUs through MLX's own CUDA build."""

import sys

from mlxmath.backends.base import DeviceInfo
from mlxmath.backends.blas import preload
from mlxmath.backends.device import MlxDevice, machine_memory_bytes


class CudaBackend(MlxDevice):
    """MLX on CUDA."""

    name = "cuda"
    bucket_multiple = 128  # cuDNN's fused attention backward wants query lengths that are multiples of 128
    features = frozenset({"compile", "fused_attention_backward"})
    is_shared = False  # the launcher gives each process a GPU of its own

    def unavailable(self) -> str | None:
        """Why there is no CUDA device here."""
        if not sys.platform.startswith("linux"):
            return f"MLX's CUDA build is for Linux; this is {sys.platform}."
        preload()
        try:
            import mlx.core as mx
        except ImportError as error:
            return f"MLX does not load ({error}); install `pip install 'mlxmath[cuda13]'` (or cuda12)."
        if not mx.cuda.is_available():
            return (
                "this MLX sees no CUDA device; install an NVIDIA driver (>= 580 for CUDA 13, >= 550 for CUDA 12) "
                "and `pip install 'mlxmath[cuda13]'` (or cuda12)."
            )
        return None

    def _describe(self) -> DeviceInfo:
        import mlx.core as mx

        info = mx.device_info()
        memory = info.get("total_memory") or info.get("memory_size") or machine_memory_bytes()
        return DeviceInfo(
            backend=self.name,
            device=str(info.get("device_name", "CUDA GPU")),
            memory_bytes=int(int(memory) * 0.95),
            compute_dtype="bfloat16",
            dtype_reason="tensor cores and fused attention need 16 bits; adapters and optimizer stay float32",
        )
