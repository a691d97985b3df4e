"""NVIDIA GPUs through MLX's own CUDA build."""

import os
import sys
from typing import Any

from mlxmath.runtime import nvidia
from mlxmath.runtime.backend import DeviceInfo
from mlxmath.runtime.blas import preload
from mlxmath.runtime.device import MlxDevice

_USABLE = 0.95
"""Of the memory; the rest is for CUDA's own context, cuDNN's workspaces and kernels."""
_CACHES = {"MLX_ENABLE_CACHE_THRASHING_CHECK": "0", "MLX_CUDA_SDPA_BACKWARD_CACHE_SIZE": "256"}
"""MLX ends a process whose shapes and graphs have missed its caches a few hundred times in all, however long it ran.
Long runs see that many; a miss merely takes a moment. The user's own values count more."""


class CudaBackend(MlxDevice):
    """MLX on CUDA."""

    name = "cuda"
    bucket_multiple = 128  # cuDNN's fused attention backward wants query lengths that are multiples of 128
    features = frozenset({"compile", "fused_attention_backward"})
    is_shared = False  # the launcher gives each process a GPU of its own
    cache_share = 1.0  # nobody else waits for this memory, and what is given back costs the step that asks again
    most_cache_bytes = sys.maxsize

    def unavailable(self) -> str | None:
        """Why there is no CUDA device here, and what to install."""
        if not sys.platform.startswith("linux"):
            return f"MLX's CUDA build is for Linux; this is {sys.platform}."
        preload()
        for name, value in _CACHES.items():  # before MLX first uses the GPU
            os.environ.setdefault(name, value)
        builds, release = nvidia.installed_builds(), nvidia.driver_release()
        try:
            import mlx.core as mx
        except ImportError as error:
            return nvidia.why_not_loaded(str(error), builds, release)
        if not mx.cuda.is_available():
            return nvidia.why_no_cuda_build(builds, release)
        if mx.device_count(mx.gpu) == 0:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            return nvidia.why_no_device(builds, nvidia.driver_cuda(), visible)
        info = mx.device_info(mx.gpu)
        if reason := nvidia.why_too_old(str(info.get("device_name", "the GPU")), _capability(info)):
            return reason
        try:
            mx.eval(mx.add(mx.ones(2), mx.ones(2), stream=mx.gpu))
            mx.eval(mx.compile(lambda x: mx.exp(x) * x)(mx.ones(2)))
        except (RuntimeError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            if "CUDA_HOME" in first:
                return nvidia.why_no_headers(builds)
            return (
                f"a first operation on the GPU fails: {first}. Driver {release}; installed: {', '.join(builds)}. "
                "Install a current driver, or NVIDIA's libraries again: `pip install --force-reinstall "
                f"'mlxmath[cuda{nvidia.BUILDS.get(builds[0], 13) if builds else 13}]'`."
            )
        return None

    def _describe(self) -> DeviceInfo:
        import mlx.core as mx

        info = mx.device_info(mx.gpu)
        total = int(info["total_memory"])
        free = int(info.get("free_memory", total))
        capability = _capability(info)
        has_bfloat16 = capability >= (8, 0)
        notes: tuple[str, ...] = ()
        if free < 0.8 * total:
            notes = (f"{(total - free) / 1e9:.1f} of the GPU's {total / 1e9:.1f} GB are in use by other processes",)
        return DeviceInfo(
            backend=self.name,
            device=f"{info.get('device_name', 'NVIDIA GPU')} (compute capability {'.'.join(map(str, capability))}, "
            f"driver {nvidia.driver_release() or 'unknown'})",
            memory_bytes=int(min(total * _USABLE, free)),
            compute_dtype="bfloat16" if has_bfloat16 else "float32",
            dtype_reason=(
                "tensor cores and fused attention need 16 bits; adapters and optimizer stay float32"
                if has_bfloat16
                else "this GPU has no bfloat16, and float16's range loses gradients"
            ),
            notes=notes,
        )


def _capability(info: dict[str, Any]) -> tuple[int, int]:
    """Compute capability, out of MLX's device information."""
    return int(info["compute_capability_major"]), int(info["compute_capability_minor"])
