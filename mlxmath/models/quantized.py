"""Quantized layers whose weight is dequantized before a product of many rows, where that is faster.

MLX multiplies by packed weights one row at a time on a CPU: for 256 rows, dequantizing first is some 25 times faster;
for the single row of a decoding step it is not. On CUDA the forward product of packed weights is a tuned kernel and the
backward one is not, so there the two directions are measured (`mlxmath.models.tuning`) and chosen separately. The
dequantized weight lives for one product, in the backward pass too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn

FEW_ROWS = 4
"""Rows up to which a CPU's product with packed weights is used."""

Packed = tuple[mx.array, ...]
"""Weights, scales and, in affine quantization, biases."""


@dataclass(frozen=True)
class Products:
    """In which direction a packed weight is dequantized before it is multiplied by."""

    forward: bool
    """In x Wᵀ."""
    backward: bool
    """In the gradient of x, d W."""
    few_rows: int = FEW_ROWS
    """Rows up to which the packed weight is used all the same."""


DEQUANTIZED = Products(forward=True, backward=True)
PACKED = Products(forward=False, backward=False)


class DequantizedLinear(nn.QuantizedLinear):
    """y = x Wᵀ + b with W packed, multiplied as `products` says."""

    products = DEQUANTIZED

    def __call__(self, x: mx.array) -> mx.array:
        """Apply the layer."""
        if x.size // x.shape[-1] <= self.products.few_rows:
            return super().__call__(x)
        y = product(self.group_size, self.bits, self.mode, self.products)(x, *packed_of(self))
        return y + self.bias if "bias" in self else y


def packed_of(layer: nn.Module) -> Packed:
    """The arrays of a quantized layer's weight."""
    return tuple(layer[name] for name in ("weight", "scales", "biases") if layer.get(name) is not None)


def products_of(layer: nn.Module) -> Products:
    """How a quantized layer or embedding is multiplied by here."""
    if mx.default_device() == mx.Device(mx.cpu, 0):
        return DEQUANTIZED
    return getattr(layer, "products", PACKED)


def dequantized(packed: Packed, group_size: int, bits: int, mode: str, *, after: mx.array | None = None) -> mx.array:
    """The weight (O, I); not before the array `after`, or MLX would unpack all weights of a graph at once."""
    if after is not None:
        packed = tuple(mx.depends(list(packed), [after]))
    return mx.dequantize(*packed, group_size=group_size, bits=bits, mode=mode)


@cache
def product(group_size: int, bits: int, mode: str, products: Products) -> Callable[..., mx.array]:
    """x Wᵀ as a function of x and the packed weight, which is frozen: only x has a gradient."""

    def multiply(x: mx.array, packed: Packed, *, first: bool, transpose: bool) -> mx.array:
        if not first:
            return mx.quantized_matmul(x, *packed, transpose=transpose, group_size=group_size, bits=bits, mode=mode)
        weight_OI = dequantized(packed, group_size, bits, mode, after=x).astype(x.dtype)
        return x @ (weight_OI.T if transpose else weight_OI)

    @mx.custom_function
    def product(x: mx.array, *packed: mx.array) -> mx.array:
        return multiply(x, packed, first=products.forward, transpose=True)

    @product.vjp
    def product_vjp(primals: Any, cotangent: mx.array, _: mx.array) -> tuple[mx.array, ...]:
        _, *packed = primals
        d_x = multiply(cotangent, tuple(packed), first=products.backward, transpose=False)
        return d_x, *map(mx.zeros_like, packed)

    return product


def use_products(model: nn.Module, products: Products = DEQUANTIZED) -> None:
    """Let all quantized linear layers of a model, and a quantized embedding that is its head, multiply in this way."""
    for module in model.modules():
        if type(module) is nn.QuantizedLinear:
            module.__class__ = DequantizedLinear
        if isinstance(module, DequantizedLinear | nn.QuantizedEmbedding):
            module.products = products
