"""A language model in two parts: tokens to hidden states, and hidden states to logits.

Splitting lets the loss see only the positions that count, in chunks, and never all logits at once.

The parts are the model's own. Its call is left where it calls its output layer, so its body is called as the model does
it, in whatever shells it sits; and what stands between the output layer and the logits (a scale, a soft cap) is seen
from what the model makes of given numbers.

A reward model has a score head besides: a vector whose scalar product with a hidden state is a score.

Shapes: B rows, L positions, D hidden width, V vocabulary, N positions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlxmath.errors import MlxmathError
from mlxmath.models.blocks import path_of_blocks
from mlxmath.models.calls import ERRORS, given_to, made_by, standing_in, without_dropout
from mlxmath.models.kernels.cpu import product
from mlxmath.models.linear import left_to_mlx, packed_of, product_in_slices, products_of
from mlxmath.weights.architecture import nothing_kept

_LAYERS = nn.Linear | nn.Embedding | nn.QuantizedLinear | nn.QuantizedEmbedding
_TOKENS = mx.zeros((1, 2), mx.int32)
_LARGE, _SMALL = 1e6, 2**-12
"""A logit that no scale lets a soft cap pass, and one that no cap changes in float32."""


@dataclass(frozen=True)
class Head:
    """The frozen output layer.

    logits (N, V) = scale · (hidden (N, D) · weightᵀ + bias), then cap · tanh(logits / cap) under a soft cap.
    """

    layer: nn.Module
    """nn.Linear or nn.Embedding (tied), or its quantized form."""
    soft_cap: float | None = None
    differentiable: bool = True
    """False where only the loss is asked for: then `hidden_gradient` is zeros, (N, 1), which cost nothing."""
    scale: float = 1.0
    """What the model multiplies its logits by."""

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
        logits_NV = self._product(self._scaled(hidden_ND), transpose=True)
        return logits_NV + self._scaled(self.layer.bias) if "bias" in self.layer else logits_NV

    def hidden_gradient(self, d_logits_NV: mx.array) -> mx.array:
        """(N, D): the gradient of the hidden states, given that of the logits before the cap."""
        if not self.differentiable:
            return mx.zeros((d_logits_NV.shape[0], 1), d_logits_NV.dtype)
        return self._scaled(self._product(d_logits_NV, transpose=False))

    def _scaled(self, x: mx.array) -> mx.array:
        return x if self.scale == 1 else x * self.scale

    def _product(self, x: mx.array, *, transpose: bool) -> mx.array:
        layer = self.layer
        if self._quantized:
            products, form = products_of(layer), (layer.group_size, layer.bits, layer.mode)
            if products.forward if transpose else products.backward:
                return product_in_slices(x, packed_of(layer), *form, transpose=transpose, multiply=_multiply(x.dtype))
            return mx.quantized_matmul(x, *packed_of(layer), transpose, *form[:2], mode=form[2])
        weight_VD = layer.weight.astype(x.dtype)
        multiply = _multiply(x.dtype)
        return multiply(x, weight_VD.T if transpose else weight_VD)


def _multiply(dtype: mx.Dtype) -> Callable[[mx.array, mx.array], mx.array]:
    """A matrix product; on a CPU the one with the fast BLAS."""
    return product if dtype == mx.float32 and mx.default_device() == mx.Device(mx.cpu, 0) else mx.matmul


@dataclass(frozen=True)
class Split:
    """A model's parts: `hidden(tokens_BL, cache=…)` gives (B, L, D); `head` makes logits of it."""

    hidden: Callable[..., mx.array]
    head: Head


def split(model: nn.Module) -> Split | str:
    """Split `model`, or say why it cannot be."""
    with left_to_mlx(), without_dropout(model), nothing_kept(model):  # little of it is computed
        vocab_size: int = model(_TOKENS).shape[-1]
        modules = dict(model.named_modules())
        blocks = path_of_blocks(model) + "."
        layers = {
            path: module
            for path, module in modules.items()
            if isinstance(module, _LAYERS) and len(module.weight) == vocab_size and not path.startswith(blocks)
        }
        trained = None
        for path, layer in layers.items():
            around = modules[path.rpartition(".")[0]]
            if owner := next((each for each in (around, layer) if _trains(each)), None):
                trained = type(owner).__name__
            elif found := _at_output_layer(model, layer, vocab_size):
                return found
        if trained:
            return f"its {trained} over the vocabulary is trained"
        bodies = [module for path, module in modules.items() if path and blocks.startswith(f"{path}.")]
        for body in sorted(bodies, key=lambda module: len(tree_flatten(module.parameters()))):
            for layer in layers.values():
                if found := _at_body(model, body, layer):
                    return found
    return "its logits are not a scaled and capped product of one layer"


def _at_output_layer(model: nn.Module, layer: nn.Module, vocab_size: int) -> Split | None:
    """The split where the model calls its output layer; None if the layer is not that."""
    method = "as_linear" if isinstance(layer, nn.Embedding | nn.QuantizedEmbedding) else "__call__"
    shape = (*_TOKENS.shape, vocab_size)
    num_calls = 0

    def logits_of(output_1LV: mx.array) -> mx.array:
        """What the model makes of the layer's output."""

        def instead(*_: Any) -> mx.array:
            nonlocal num_calls
            num_calls += 1
            return output_1LV

        with standing_in(layer, instead, method):
            logits: mx.array = model(_TOKENS)
        return logits.astype(mx.float32)

    try:
        largest = logits_of(mx.full(shape, _LARGE))
        if num_calls != 1 or largest.shape != shape:
            return None
        scale = _exact((logits_of(mx.full(shape, _SMALL)).max() / _SMALL).item(), 1e-6)
        cap = largest.max().item()
        soft_cap = cap if cap < 1e-2 * scale * _LARGE else None
        for size in (1.0, 100.0):
            given = mx.broadcast_to(mx.linspace(-size, size, vocab_size), shape)
            expected = scale * given if soft_cap is None else soft_cap * mx.tanh(scale * given / soft_cap)
            if not mx.allclose(logits_of(given), expected, rtol=1e-4, atol=1e-4 * scale * size):
                return None
    except ERRORS:
        return None

    def hidden(tokens_BL: mx.array, cache: Any = None) -> mx.array:
        return given_to(layer, lambda: called(model, tokens_BL, cache), method)

    return Split(hidden, Head(layer, soft_cap, scale=scale))


def _at_body(model: nn.Module, body: nn.Module, layer: nn.Module) -> Split | None:
    """The split after the call of a body, for a model that multiplies by its output layer's weight itself."""
    hidden_11D = mx.random.normal((1, 1, layer.weight.shape[-1]), key=mx.random.key(0)).astype(layer.weight.dtype)
    head = Head(layer)
    try:
        with standing_in(body, lambda *_, **__: hidden_11D):
            logits_V = model(_TOKENS).astype(mx.float32).reshape(-1)
        product_V = head.logits(hidden_11D[0]).astype(mx.float32).reshape(-1)
        scale = ((logits_V * product_V).sum() / mx.square(product_V).sum()).item()
        tolerance = 1e-4 if hidden_11D.dtype == mx.float32 else 1e-2
        if not mx.abs(logits_V - scale * product_V).max() < tolerance * mx.abs(logits_V).max():
            return None
    except ERRORS:
        return None

    def hidden(tokens_BL: mx.array, cache: Any = None) -> mx.array:
        return made_by(body, lambda: called(model, tokens_BL, cache))

    return Split(hidden, Head(layer, scale=_exact(scale, tolerance)))


def _exact(scale: float, tolerance: float) -> float:
    """1 where it is as good as that, as it mostly is."""
    return 1.0 if abs(scale - 1) < tolerance else scale


def called(model: nn.Module, tokens_BL: mx.array, cache: Any = None) -> mx.array:
    """The model's logits."""
    logits: mx.array = model(tokens_BL) if cache is None else model(tokens_BL, cache=cache)
    return logits


def _trains(module: nn.Module) -> bool:
    """Whether an array of the module's own is trained."""
    return any(
        isinstance(value, mx.array) and module.trainable_parameter_filter(module, key, value)
        for key, value in module.items()
    )


def add_score_head(model: nn.Module) -> None:
    """Give the model a trainable `score`, (1, D) in float32, drawn normally with deviation 1 / √(D + 1).

    Raises:
        MlxmathError: the model's hidden states cannot be had.
    """
    parts = split(model)
    if isinstance(parts, str):
        raise MlxmathError(f"a reward model needs hidden states, which this model does not give: {parts}.")
    width = parts.hidden(mx.array([[0]])).shape[-1]
    model.score = nn.Linear(width, 1, bias=False)
    model.score.weight = mx.random.normal((1, width)) / math.sqrt(width + 1)
    mx.eval(model.score.weight)
