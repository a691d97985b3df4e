"""A language model in two parts: tokens to hidden states, and hidden states to logits.

Splitting lets the loss see only the positions that count, in chunks, and never all logits at once.

Shapes: B rows, L positions, D hidden width, V vocabulary, N positions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlxmath.kernels.cpu import product
from mlxmath.models.dequantized import dequantized, packed_of, products_of
from mlxmath.models.memory import QUANTIZED_HEAD_SLICE


@dataclass(frozen=True)
class Head:
    """The frozen output layer.

    logits (N, V) = hidden (N, D) · weightᵀ + bias, then cap · tanh(logits / cap) under a soft cap.
    """

    layer: nn.Module
    """nn.Linear or nn.Embedding (tied), or its quantized form."""
    soft_cap: float | None = None
    differentiable: bool = True
    """False where only the loss is asked for: then `hidden_gradient` is zeros, (N, 1), which cost nothing."""

    @property
    def _quantized(self) -> bool:
        return isinstance(self.layer, nn.QuantizedLinear | nn.QuantizedEmbedding)

    @property
    def vocab_size(self) -> int:
        """V."""
        size: int = self.layer.weight.shape[0]
        return size

    def logits(self, hidden_ND: mx.array) -> mx.array:
        """(N, V), before the cap."""
        logits_NV = self._product(hidden_ND, transpose=True)
        return logits_NV + self.layer.bias if "bias" in self.layer else logits_NV

    def hidden_gradient(self, d_logits_NV: mx.array) -> mx.array:
        """(N, D): the gradient of the hidden states, given that of the logits before the cap."""
        if not self.differentiable:
            return mx.zeros((d_logits_NV.shape[0], 1), d_logits_NV.dtype)
        return self._product(d_logits_NV, transpose=False)

    def _product(self, x: mx.array, *, transpose: bool) -> mx.array:
        layer = self.layer
        if self._quantized:
            products = products_of(layer)
            if products.forward if transpose else products.backward:
                return self._dequantized_product(x, transpose=transpose)
            return mx.quantized_matmul(
                x,
                layer.weight,
                layer.scales,
                layer.get("biases"),
                transpose=transpose,
                group_size=layer.group_size,
                bits=layer.bits,
                mode=layer.mode,
            )
        weight_VD = layer.weight.astype(x.dtype)
        multiply = _multiply(x.dtype)
        return multiply(x, weight_VD.T if transpose else weight_VD)

    def _dequantized_product(self, x: mx.array, *, transpose: bool) -> mx.array:
        """In slices of the vocabulary, so that only one slice's weight is dequantized at a time."""
        layer = self.layer
        packed, multiply = packed_of(layer), _multiply(x.dtype)
        parts: list[mx.array] = []
        for start in range(0, self.vocab_size, QUANTIZED_HEAD_SLICE):
            rows = slice(start, start + QUANTIZED_HEAD_SLICE)
            chosen = tuple(array[rows] for array in packed)
            before = parts[-1] if parts else x
            weight_SD = dequantized(chosen, layer.group_size, layer.bits, layer.mode, after=before).astype(x.dtype)
            if transpose:
                parts.append(multiply(x, weight_SD.T))
            else:
                parts = [multiply(x[:, rows], weight_SD) + (parts[0] if parts else 0)]
        return mx.concatenate(parts, axis=1) if transpose else parts[0]


def _multiply(dtype: mx.Dtype) -> Callable[[mx.array, mx.array], mx.array]:
    """A matrix product; on a CPU the one with the fast BLAS."""
    return product if dtype == mx.float32 and mx.default_device() == mx.Device(mx.cpu, 0) else mx.matmul


@dataclass(frozen=True)
class Split:
    """A model's parts: `hidden(tokens_BL)` gives (B, L, D); `head` makes logits of it."""

    hidden: Callable[..., mx.array]
    head: Head


def split(model: nn.Module) -> Split | str:
    """Split `model`, or say why it cannot be.

    A split is accepted only if its two parts together give the model's own logits on a few tokens.
    """
    body = getattr(model, "model", None)
    if body is None or not callable(body):
        return "it has no separate body"
    layer = getattr(model, "lm_head", None) or getattr(body, "embed_tokens", None)
    kinds = nn.Linear | nn.Embedding | nn.QuantizedLinear | nn.QuantizedEmbedding
    if not isinstance(layer, kinds):
        return f"its head is a {type(layer).__name__}"
    if tree_flatten(layer.trainable_parameters()):
        return "its head is trained"
    head = Head(layer, _soft_cap(model))
    tokens_BL = mx.arange(6)[None] % head.vocab_size
    was_training = model.training
    model.eval()  # no dropout: it would differ, and draw random numbers that are the training's
    expected_NV = model(tokens_BL)[0].astype(mx.float32)
    found_NV = head.logits(body(tokens_BL)[0]).astype(mx.float32)
    model.train(was_training)
    if head.soft_cap is not None:
        found_NV = head.soft_cap * mx.tanh(found_NV / head.soft_cap)
    tolerance = 1e-3 if expected_NV.dtype == mx.float32 else 3e-2
    if found_NV.shape != expected_NV.shape or not mx.allclose(found_NV, expected_NV, rtol=tolerance, atol=tolerance):
        return "its logits are more than a linear function of its body's output"
    return Split(body, head)


def _soft_cap(model: nn.Module) -> float | None:
    arguments: Any = getattr(model, "args", None)
    cap = getattr(model, "final_logit_softcapping", None) or getattr(arguments, "final_logit_softcapping", None)
    return float(cap) if cap else None
