"""Quantized layers whose weight is dequantized before a product of many rows: for a CPU.

MLX multiplies by packed weights one row at a time on a CPU. For 256 rows, dequantizing first is some 25 times faster;
for the single row of a decoding step it is not. The dequantized weight lives for one product, in the backward pass too.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn

FEW_ROWS = 4
"""Rows up to which MLX's product with packed weights is used."""

Packed = tuple[mx.array, ...]
"""Weights, scales and, in affine quantization, biases."""


class DequantizedLinear(nn.QuantizedLinear):
    """y = x Wᵀ + b with W packed."""

    def __call__(self, x: mx.array) -> mx.array:
        """Apply the layer."""
        if x.size // x.shape[-1] <= FEW_ROWS:
            return super().__call__(x)
        packed = tuple(self[name] for name in ("weight", "scales", "biases") if self.get(name) is not None)
        y = _product(self.group_size, self.bits, self.mode)(x, *packed)
        return y + self.bias if "bias" in self else y


def dequantized(packed: Packed, group_size: int, bits: int, mode: str, *, after: mx.array | None = None) -> mx.array:
    """The weight (O, I); not before the array `after`, or MLX would unpack all weights of a graph at once."""
    if after is not None:
        packed = tuple(mx.depends(list(packed), [after]))
    return mx.dequantize(*packed, group_size=group_size, bits=bits, mode=mode)


@cache
def _product(group_size: int, bits: int, mode: str) -> Callable[..., mx.array]:
    @mx.custom_function
    def product(x: mx.array, *packed: mx.array) -> mx.array:
        return x @ dequantized(packed, group_size, bits, mode, after=x).astype(x.dtype).T

    @product.vjp
    def product_vjp(primals: Any, cotangent: mx.array, _: mx.array) -> tuple[mx.array, ...]:
        _, *packed = primals
        weight = dequantized(tuple(packed), group_size, bits, mode, after=cotangent)
        return cotangent @ weight.astype(cotangent.dtype), *map(mx.zeros_like, packed)  # packed weights are frozen

    return product


def use_dequantized(model: nn.Module) -> None:
    """Let all quantized linear layers of a model dequantize their weight where that is faster."""
    for module in model.modules():
        if type(module) is nn.QuantizedLinear:
            module.__class__ = DequantizedLinear
