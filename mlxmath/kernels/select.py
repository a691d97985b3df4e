"""The kernels of a device."""

from mlxmath.backends.base import DeviceInfo
from mlxmath.kernels.base import Kernels
from mlxmath.kernels.cpu import CpuKernels
from mlxmath.kernels.portable import PortableKernels


def kernels_for(device: DeviceInfo) -> Kernels:
    """The device's own kernels where it has some."""
    return CpuKernels() if device.backend == "cpu" and device.compute_dtype == "float32" else PortableKernels()
