"""What is measured or looked up on a GPU before training begins, and chosen by it: how packed weights are multiplied,
whether attention is fused.
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlxmath.models.linear import PACKED, Products, packed_of, product, use_products
from mlxmath.runtime.console import say

Direction = Literal["forward", "backward"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")
_REPEATS = 3
_FEW_ROWS = 512
"""Rows up to which a GPU keeps to its packed product: those of decoding, for which it is made."""


class Weight(NamedTuple):
    """A quantized weight as a product sees it."""

    outputs: int
    inputs: int
    group_size: int
    bits: int
    mode: str


Timing = Callable[[nn.QuantizedLinear, int, Direction, bool], float]
"""Seconds of a product of a layer with so many rows in a direction, dequantizing its weight first or not."""


def tune_for_training(model: nn.Module, num_tokens: int) -> None:
    """On a GPU, say how attention is computed, and measure and choose how packed weights are multiplied.

    Args:
        model: adapters in place; before anything is compiled.
        num_tokens: of a micro-batch.
    """
    if mx.default_device().type == mx.cpu:
        return
    for line in (attention_note(model), choose_products(model, num_tokens)):
        if line:
            say(line)


def choose_products(model: nn.Module, num_rows: int, timing: Timing | None = None) -> str:
    """Take the faster way in each direction, by the sum over all quantized linear layers of the model.

    Args:
        model: as `tune_for_training` has it.
        num_rows: rows of the products.
        timing: measures one (None: on MLX's default device).

    Returns:
        What was measured and chosen, for people; empty if nothing is quantized.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.QuantizedLinear)]
    if not layers:
        return ""
    timing = timing or seconds_of
    examples = {_weight(layer): layer for layer in layers}
    counts = Counter(map(_weight, layers))
    seconds: dict[tuple[Direction, bool], float] = {}
    for direction in DIRECTIONS:
        for first in (False, True):
            each = (count * timing(examples[weight], num_rows, direction, first) for weight, count in counts.items())
            seconds[direction, first] = sum(each)
    is_faster = {direction: seconds[direction, True] < seconds[direction, False] for direction in DIRECTIONS}
    chosen = Products(is_faster["forward"], is_faster["backward"], _FEW_ROWS)
    if chosen.forward or chosen.backward:
        use_products(model, chosen)
    parts = [
        f"{direction} {'dequantized first' if first else 'packed'} ({1e3 * seconds[direction, first]:.1f} ms for all, "
        f"{1e3 * seconds[direction, not first]:.1f} ms {'packed' if first else 'dequantized first'})"
        for direction, first in is_faster.items()
    ]
    return f"products with quantized weights, measured at {num_rows:,} rows: {'; '.join(parts)}"


def seconds_of(layer: nn.QuantizedLinear, num_rows: int, direction: Direction, first: bool) -> float:
    """The least of a few measurements on MLX's default device."""
    weight = _weight(layer)
    width = weight.inputs if direction == "forward" else weight.outputs
    x = mx.random.normal((num_rows, width), key=mx.random.key(0)).astype(layer.scales.dtype)
    inputs = mx.zeros((num_rows, weight.inputs), x.dtype)
    mx.eval(x, inputs)
    multiply = product(*weight[2:], Products(first, first) if first else PACKED)
    packed = packed_of(layer)

    def run() -> None:
        if direction == "forward":
            mx.eval(multiply(x, *packed))
        else:
            mx.eval(mx.vjp(lambda y: multiply(y, *packed), [inputs], [x])[1])

    run()
    found = []
    for _ in range(_REPEATS):
        mx.synchronize()
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def _weight(layer: nn.QuantizedLinear) -> Weight:
    outputs, columns = layer.weight.shape
    return Weight(outputs, columns * 32 // layer.bits, layer.group_size, layer.bits, layer.mode)


WIDEST_HEAD = 128
"""Of cuDNN's fused attention in MLX; heads are also multiples of 8 wide."""
LENGTH_MULTIPLE = 128
"""Query lengths whose backward pass is fused. The CUDA backend pads rows to multiples of it."""


def why_not_fused(head_width: int, value_width: int, dtype: mx.Dtype) -> str | None:
    """Why cuDNN's fused attention, forward and backward, does not apply to a model; None if it does."""
    if dtype not in (mx.float16, mx.bfloat16):
        return f"it needs 16-bit numbers, and these are {str(dtype).removeprefix('mlx.core.')}"
    for width in (head_width, value_width):
        if width > WIDEST_HEAD or width % 8:
            return f"heads are {width} wide; it takes multiples of 8 up to {WIDEST_HEAD}"
    return None


def attention_note(model: nn.Module) -> str:
    """How attention is computed in training, for people; empty on devices where there is no choice."""
    if not (mx.cuda.is_available() and mx.default_device().type == mx.gpu):
        return ""
    arguments: Any = getattr(model, "args", None)
    heads, hidden_size = (getattr(arguments, name, None) for name in ("num_attention_heads", "hidden_size"))
    width = getattr(arguments, "head_dim", None) or (hidden_size // heads if heads and hidden_size else None)
    if not width:
        return "attention as the model's own code has it"
    types = {array.dtype for _, array in tree_flatten(model.layers[0].parameters())}
    dtype = next((each for each in (mx.bfloat16, mx.float16) if each in types), mx.float32)
    reason = why_not_fused(width, getattr(arguments, "v_head_dim", None) or width, dtype) or _refusal(width, dtype)
    if reason is None:
        return f"attention fused by cuDNN (rows padded to multiples of {LENGTH_MULTIPLE})"
    return f"attention not fused, L² scores in memory: {reason}"


def _refusal(width: int, dtype: mx.Dtype) -> str | None:
    """What the device itself says of a small fused attention and its gradient; None if it computes them."""
    q = mx.zeros((1, 1, LENGTH_MULTIPLE, width), dtype)

    def fused(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0, mask="causal", force_fused=True)

    try:
        mx.eval(mx.vjp(fused, [q, q, q], [q]))
    except (ValueError, RuntimeError) as error:
        return str(error).strip().splitlines()[0]
    return None
