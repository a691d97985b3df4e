"""Linear layers whose products run in NumPy: for a CPU whose MLX has only the reference BLAS.

NumPy's wheels bring a fast BLAS of their own, which MLX cannot use. Where no other is installed, going through it makes
a matrix product some twenty times faster than MLX's.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxmath.models.kernels.cpu import view


@mx.custom_function
def _now(x: mx.array, weight: mx.array) -> mx.array:
    x_NI = view(x).reshape(-1, x.shape[-1])
    return mx.array(np.matmul(x_NI, view(weight).T)).reshape(*x.shape[:-1], weight.shape[0])


@mx.custom_function
def _if_asked_for(x: mx.array, weight: mx.array) -> mx.array:
    return x @ weight.T


def _vjp(primals: Any, cotangent: mx.array, _: mx.array) -> tuple[mx.array, mx.array]:
    x, weight = primals
    d_NO = cotangent.reshape(-1, weight.shape[0])
    d_x = mx.array(np.matmul(view(d_NO), view(weight))).reshape(x.shape)
    return d_x, d_NO.T @ x.reshape(-1, x.shape[-1])  # the second is lazy, and a frozen weight never asks for it


_now.vjp(_vjp)
_if_asked_for.vjp(_vjp)


class _Laziness(threading.local):
    """NumPy computes at once, needed or not. While `on`, products are left to MLX, which computes only what is asked
    for; gradients still go through NumPy."""

    on = False


laziness = _Laziness()


@contextmanager
def left_to_mlx() -> Iterator[None]:
    """No product is wanted for itself."""
    was_on, laziness.on = laziness.on, True
    try:
        yield
    finally:
        laziness.on = was_on


class NumpyLinear(nn.Linear):
    """y = x Wᵀ + b in float32."""

    def __call__(self, x: mx.array) -> mx.array:
        """Apply the layer."""
        y = (_if_asked_for if laziness.on else _now)(x, self.weight)
        return y + self.bias if "bias" in self else y


def use_numpy(model: nn.Module) -> None:
    """Let all plain linear layers of a float32 model compute in NumPy."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = NumpyLinear
