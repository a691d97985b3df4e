"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864) with their sines and cosines looked up.

On a CPU, MLX computes the sines and cosines of every position anew for each call, and the gradient by autodiff of
slices. Here both are a few passes: y = x ∘ cos + swapped halves of x ∘ sin, and the gradient is the rotation backwards.

Shapes: B rows, H heads, L positions, D head width.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn


class TabledRoPE(nn.RoPE):
    """The same as its base class, to the last bit."""

    def __call__(self, x: mx.array, offset: Any = 0) -> mx.array:
        """Rotate (B, H, L, D) from position `offset` on."""
        is_plain = isinstance(offset, int) and offset == 0 and not self.traditional
        if not is_plain or x.dtype != mx.float32 or x.ndim != 4 or x.shape[-1] != self.dims:
            return super().__call__(x, offset)
        rotated: mx.array = _rotation(self.dims, self.base, self.scale, x.shape[2])(x)
        return rotated


def use_tables(model: nn.Module) -> None:
    """Let all plain rotary embeddings of a model look their sines and cosines up."""
    for module in model.modules():
        if type(module) is nn.RoPE:
            module.__class__ = TabledRoPE


@lru_cache(64)
def _rotation(width: int, base: float, scale: float, length: int) -> Callable[[mx.array], mx.array]:
    """Of rows of one length, which are few."""
    half = width // 2
    positions_L = mx.arange(length, dtype=mx.float32) * scale
    speeds = mx.exp(mx.arange(0, -half, -1, dtype=mx.float32) * (math.log(base) / half))
    angles = positions_L[:, None, None, None] * speeds
    cos, sin = (mx.concatenate([x, x], axis=-2) for x in (mx.cos(angles), mx.sin(angles)))  # (L, 1, 2, D/2)
    sin = sin * mx.array([-1.0, 1.0])[:, None]
    back = -sin
    mx.eval(cos, sin, back)

    def rotated(x_BHLD: mx.array, sin: mx.array) -> mx.array:
        x = x_BHLD.swapaxes(1, 2)  # as it lies in memory
        halves = x.reshape(*x.shape[:-1], 2, half)
        return (halves * cos + halves[..., ::-1, :] * sin).reshape(x.shape).swapaxes(1, 2)

    @mx.custom_function
    def rotation(x_BHLD: mx.array) -> mx.array:
        return rotated(x_BHLD, sin)

    @rotation.vjp
    def rotation_vjp(_: Any, cotangent: mx.array, __: mx.array) -> mx.array:
        return rotated(cotangent, back)

    return rotation
