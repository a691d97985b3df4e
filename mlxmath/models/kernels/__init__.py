"""The few operations that decide a training step's speed, in a portable form and, where it pays, in a device's own.

All forms are differentiable functions of MLX arrays and pass the same tests.
"""

from mlxmath.models.kernels.cpu import CpuKernels
from mlxmath.models.kernels.gpu import GpuKernels, works
from mlxmath.models.kernels.portable import Kernels
from mlxmath.runtime.blas import num_usable_cores
from mlxmath.runtime.console import warn
from mlxmath.runtime.device import DeviceInfo


def kernels_for(device: DeviceInfo, num_workers: int = 1) -> Kernels:
    """The device's own kernels where it has some, for one of `num_workers` micro-batches at a time."""
    if device.backend == "cpu":
        cores = max(1, num_usable_cores() // num_workers)
        return CpuKernels(cores) if device.compute_dtype == "float32" else Kernels()
    kernels = GpuKernels(device.backend)
    if works(kernels):
        return kernels
    warn(f"the kernel for the loss does not work on {device.device}; MLX's own operations take its place")
    return Kernels()
