"""The few operations that decide a training step's speed, in a portable form and, where it pays, in a device's own.

All forms are differentiable functions of MLX arrays and pass the same tests.
"""

from collections.abc import Callable
from typing import Any

from mlxmath.models.kernels.cpu import CpuKernels
from mlxmath.models.kernels.gpu import FastKernels, GpuKernels, works
from mlxmath.models.kernels.portable import Kernels
from mlxmath.runtime.blas import num_usable_cores
from mlxmath.runtime.console import warn
from mlxmath.runtime.device import DeviceInfo

OWN = "mlxmath's kernel"


def kernels_for(device: DeviceInfo, num_workers: int = 1, choices: dict[str, Any] | None = None) -> Kernels:
    """The device's own kernels where it has some, for one of `num_workers` micro-batches at a time.

    `choices`: of `mlxmath.models.tuning`, on a GPU.
    """
    if device.backend == "cpu":
        cores = max(1, num_usable_cores() // num_workers)
        return CpuKernels(cores) if device.compute_dtype == "float32" else Kernels()
    ways, choices = loss_kernels(device.backend), choices or {}
    if OWN not in ways:
        warn(f"the kernel for the loss does not work on {device.device}; MLX's own operations take its place")
    kernels = ways.get(choices.get("loss", OWN)) or next(iter(ways.values()))
    kernels.attention_multiple = choices.get("attention_multiple", 1)
    return kernels


def loss_kernels(language: str) -> dict[str, Kernels]:
    """By name, those that compute the loss as they should on MLX's default device, in "metal" or "cuda"."""
    makes: dict[str, Callable[[], Kernels]] = {OWN: lambda: GpuKernels(language), "mx.fast.cross_entropy": FastKernels}
    found = {}
    for name, make in makes.items():
        try:
            kernels = make()
        except (RuntimeError, ValueError):  # no such device
            continue
        if works(kernels):
            found[name] = kernels
    return found | {"MLX's operations": Kernels()}
