"""Rotary position embeddings and RMSNorm in few passes over their input.

On a CPU, MLX computes the sines and cosines of every position anew for each call, sums rows in a slow loop, and takes
gradients by autodiff of each small operation.

Shapes: B rows, H heads, L positions, D width (of a head, or hidden).
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn


class TabledRoPE(nn.RoPE):
    """Rotary embeddings (Su et al. 2021, arXiv:2104.09864): x ∘ cos + swapped halves of x ∘ sin, from tables; the
    gradient is the rotation backwards. The same as its base class, to the last bit."""

    def __call__(self, x: mx.array, offset: Any = 0) -> mx.array:
        """Rotate (B, H, L, D) from position `offset` on."""
        is_plain = isinstance(offset, int) and offset == 0 and not self.traditional
        if not is_plain or x.dtype != mx.float32 or x.ndim != 4 or x.shape[-1] != self.dims:
            return super().__call__(x, offset)
        rotated: mx.array = _rotation(self.dims, self.base, self.scale, 1 << (x.shape[2] - 1).bit_length())(x)
        return rotated


class SummedRMSNorm(nn.RMSNorm):
    """RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467), y = w ∘ x / √(mean x² + ε), with rows summed by a product."""

    def __call__(self, x: mx.array) -> mx.array:
        """Normalize (…, D)."""
        if x.dtype != mx.float32 or self.weight.dtype != mx.float32:
            return super().__call__(x)
        normalized: mx.array = _norm(x.shape[-1], self.eps)(x, self.weight)
        return normalized


def use_few_passes(model: nn.Module) -> None:
    """Let all plain rotary embeddings and RMSNorms of a model compute like this."""
    for module in model.modules():
        if type(module) is nn.RoPE:
            module.__class__ = TabledRoPE
        elif type(module) is nn.RMSNorm:
            module.__class__ = SummedRMSNorm


@lru_cache(64)
def _norm(width: int, eps: float) -> Callable[[mx.array, mx.array], mx.array]:
    mean_D1 = mx.full((width, 1), 1 / width)
    mx.eval(mean_D1)

    def inverse(x: mx.array) -> mx.array:
        return mx.rsqrt(mx.square(x) @ mean_D1 + eps)

    @mx.custom_function
    def norm(x: mx.array, weight_D: mx.array) -> mx.array:
        return x * inverse(x) * weight_D

    @norm.vjp
    def norm_vjp(primals: Any, d_y: mx.array, _: mx.array) -> tuple[mx.array, mx.array]:
        x, weight_D = primals
        r, d = inverse(x), d_y * weight_D
        d_x = (d - x * (((d * x) @ mean_D1) * mx.square(r))) * r
        return d_x, (d_y * x * r).reshape(-1, width).sum(axis=0)  # lazy: a frozen weight never asks for the second

    return norm


@lru_cache(64)
def _rotation(width: int, base: float, scale: float, most: int) -> Callable[[mx.array], mx.array]:
    """Of rows of up to so many positions."""
    half = width // 2
    positions_L = mx.arange(most, dtype=mx.float32) * scale
    speeds = mx.exp(mx.arange(0, -half, -1, dtype=mx.float32) * (math.log(base) / half))
    angles = positions_L[:, None, None, None] * speeds
    cos, sin = (mx.concatenate([x, x], axis=-2) for x in (mx.cos(angles), mx.sin(angles)))  # (L, 1, 2, D/2)
    sin = sin * mx.array([-1.0, 1.0])[:, None]
    back = -sin
    mx.eval(cos, sin, back)

    def rotated(x_BHLD: mx.array, sin: mx.array) -> mx.array:
        x = x_BHLD.swapaxes(1, 2)  # as it lies in memory
        halves = x.reshape(*x.shape[:-1], 2, half)
        length = x.shape[1]
        return (halves * cos[:length] + halves[..., ::-1, :] * sin[:length]).reshape(x.shape).swapaxes(1, 2)

    @mx.custom_function
    def rotation(x_BHLD: mx.array) -> mx.array:
        return rotated(x_BHLD, sin)

    @rotation.vjp
    def rotation_vjp(_: Any, cotangent: mx.array, __: mx.array) -> mx.array:
        return rotated(cotangent, back)

    return rotation
