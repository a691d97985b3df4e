"""Linear layers whose products are computed otherwise than MLX would.

Quantized ones, whose weight is dequantized before a product of many rows, where that is faster. MLX multiplies by
packed weights one row at a time on a CPU: for 256 rows, dequantizing first is some 25 times faster; for the single row
of a decoding step it is not. On CUDA the forward product of packed weights is a tuned kernel and the backward one is
not, so there the two directions are measured (`mlxmath.models.tuning`) and chosen separately. The dequantized weight
lives for one product, in the backward pass too.

And plain ones in NumPy, for a CPU whose MLX has only the reference BLAS: NumPy's wheels bring a fast one, which MLX
cannot use; going through it makes a matrix product some twenty times faster.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxmath.models.kernels.cpu import view
from mlxmath.models.memory import QUANTIZED_HEAD_SLICE

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


class Weight(NamedTuple):
    """A quantized weight as a product sees it."""

    outputs: int
    inputs: int
    group_size: int
    bits: int
    mode: str


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


def weight_of(layer: nn.QuantizedLinear) -> Weight:
    """A layer's."""
    outputs, columns = layer.weight.shape
    return Weight(outputs, columns * 32 // layer.bits, layer.group_size, layer.bits, layer.mode)


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


def product_in_slices(
    x: mx.array, packed: Packed, group_size: int, bits: int, mode: str, *,
    transpose: bool, multiply: Callable[[mx.array, mx.array], mx.array] = mx.matmul,
) -> mx.array:  # fmt: skip
    """x Wᵀ, or x W, of a head: only a slice of the vocabulary is dequantized at a time."""
    parts: list[mx.array] = []
    for start in range(0, len(packed[0]), QUANTIZED_HEAD_SLICE):
        rows = slice(start, start + QUANTIZED_HEAD_SLICE)
        before = parts[-1] if parts else x
        weight_SD = dequantized(tuple(array[rows] for array in packed), group_size, bits, mode, after=before)
        if transpose:
            parts.append(multiply(x, weight_SD.astype(x.dtype).T))
        else:
            parts = [multiply(x[..., rows], weight_SD.astype(x.dtype)) + (parts[0] if parts else 0)]
    return mx.concatenate(parts, axis=-1) if transpose else parts[0]


@cache
def product(
    group_size: int, bits: int, mode: str, products: Products, in_slices: bool = False
) -> Callable[..., mx.array]:
    """x Wᵀ as a function of x and the packed weight, which is frozen: only x has a gradient."""

    def multiply(x: mx.array, packed: Packed, *, first: bool, transpose: bool) -> mx.array:
        if not first:
            return mx.quantized_matmul(x, *packed, transpose=transpose, group_size=group_size, bits=bits, mode=mode)
        if in_slices:
            return product_in_slices(x, packed, group_size, bits, mode, transpose=transpose)
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
        if type(module) is nn.QuantizedEmbedding:
            module.__class__ = PackedEmbedding
        if isinstance(module, DequantizedLinear | PackedEmbedding):
            module.products = products


class PackedEmbedding(nn.QuantizedEmbedding):
    """A quantized embedding; as a head it multiplies as `products` says.

    MLX unpacks float forms as bfloat16, whatever the type of the model is: the vectors are given that.
    """

    products = PACKED
    activations: mx.Dtype | None = None

    def __call__(self, x: mx.array) -> mx.array:
        """Apply the layer."""
        return self.of_type(super().__call__(x))

    def of_type(self, vectors: mx.array) -> mx.array:
        """Vectors as the model computes with them."""
        return vectors if self.activations is None else vectors.astype(self.activations)

    def as_linear(self, x: mx.array) -> mx.array:
        """(…, V): x Wᵀ."""
        if x.size // x.shape[-1] <= self.products.few_rows:
            return super().as_linear(x)
        return product(self.group_size, self.bits, self.mode, self.products, in_slices=True)(x, *packed_of(self))


def use_activations(model: nn.Module, dtype: mx.Dtype) -> None:
    """Let packed embeddings give activations of the model's type, or all of them would be of another."""
    for module in model.modules():
        if type(module) is nn.QuantizedEmbedding:
            module.__class__ = PackedEmbedding
        if isinstance(module, PackedEmbedding):
            module.activations = dtype


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
