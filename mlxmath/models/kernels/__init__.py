"""The few operations that decide a training step's speed, in a portable form and, where it pays, in a device's own.

All forms are differentiable functions of MLX arrays and pass the same tests.
"""

from mlxmath.runtime.blas import preload

preload()
