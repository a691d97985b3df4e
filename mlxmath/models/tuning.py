"""What is measured on a GPU before training begins, and chosen by it: how packed weights are multiplied, which kernel
computes the loss, how attention is computed. Within a second, once: a run that is resumed takes the same again.
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlxmath.models.kernels import loss_kernels
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.linear import FEW_ROWS, PACKED, Products, Weight, packed_of, product, use_products, weight_of
from mlxmath.runtime.device import DeviceInfo

Choices = dict[str, Any]
"""As JSON holds them; what is not there is left as it is."""
Direction = Literal["forward", "backward"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")
_REPEATS = 3
_DRAWN_ROWS = (8, 24, 96, 384)
"""Of products while completions are drawn."""
_LOGITS = (128, 65_536)
"""Tokens and vocabulary of the loss that is measured."""
_ATTENTION = (4, 176)
"""Rows, and their length, of the attention that is measured."""

Timing = Callable[[nn.QuantizedLinear, int, Direction, bool], float]
"""Seconds of a product of a layer with so many rows in a direction, dequantizing its weight first or not."""


def tune(model: nn.Module, device: DeviceInfo, num_tokens: int) -> Choices:
    """Measure what there is to choose on a GPU; nothing on a CPU.

    Args:
        model: adapters in place.
        device: where it runs.
        num_tokens: of a micro-batch.
    """
    if device.backend == "cpu":
        return {}
    found = choose_products(model, num_tokens) | choose_loss(loss_kernels(device.backend))
    if device.backend == "cuda":
        found |= choose_attention(model)
    return found


def use(model: nn.Module, choices: Choices) -> None:
    """Let the model's packed weights be multiplied as chosen; before anything is compiled."""
    if chosen := choices.get("products"):
        use_products(model, Products(**chosen))


def lines_of(choices: Choices) -> list[str]:
    """What was measured, for people."""
    return [text for name, text in choices.items() if name.endswith("_measured")]


def choose_products(model: nn.Module, num_rows: int, timing: Timing | None = None) -> Choices:
    """Take the faster way in each direction, by the sum over all quantized linear layers of the model; and the packed
    product for as few rows as it is the faster one for.

    Args:
        model: as `tune` has it.
        num_rows: rows of the products in training.
        timing: measures one (None: on MLX's default device).
    """
    layers = [module for module in model.modules() if isinstance(module, nn.QuantizedLinear)]
    if not layers:
        return {}
    measure = timing or seconds_of
    examples = {weight_of(layer): layer for layer in layers}
    counts: Counter[Weight] = Counter(map(weight_of, layers))

    def seconds(rows: int, direction: Direction) -> tuple[float, float]:
        """Packed, and dequantized first."""
        packed, first = (
            sum(count * measure(examples[weight], rows, direction, way) for weight, count in counts.items())
            for way in (False, True)
        )
        return packed, first

    parts, faster = [], {}
    for direction in DIRECTIONS:
        packed, first = seconds(num_rows, direction)
        faster[direction] = first < packed
        parts.append(f"{direction} {_said(packed, first)}")
    few_rows = FEW_ROWS
    if faster["forward"]:
        for rows in _DRAWN_ROWS:
            packed, first = seconds(rows, "forward")
            if first < packed:
                break
            few_rows = rows
        parts.append(f"packed for up to {few_rows} rows")
    text = f"products with quantized weights, measured at {num_rows:,} rows: {'; '.join(parts)}"
    chosen = {"forward": faster["forward"], "backward": faster["backward"], "few_rows": few_rows}
    return {"products_measured": text} | ({"products": chosen} if any(faster.values()) else {})


def _said(packed: float, first: float) -> str:
    ways = [(packed, "packed"), (first, "dequantized first")]
    (least, name), (most, other) = sorted(ways)
    return f"{name} ({1e3 * least:.1f} ms for all, {1e3 * most:.1f} ms {other})"


def seconds_of(layer: nn.QuantizedLinear, num_rows: int, direction: Direction, first: bool) -> float:
    """The least of a few measurements on MLX's default device."""
    weight = weight_of(layer)
    width = weight.inputs if direction == "forward" else weight.outputs
    dtype = mx.bfloat16 if layer.scales.dtype == mx.uint8 else layer.scales.dtype  # float forms: 8 bits a scale
    x = mx.random.normal((num_rows, width), key=mx.random.key(0)).astype(dtype)
    inputs = mx.zeros((num_rows, weight.inputs), x.dtype)
    multiply = product(*weight[2:], Products(first, first) if first else PACKED)
    packed = packed_of(layer)
    if direction == "forward":
        return least_seconds(lambda: multiply(x, *packed), x)
    return least_seconds(lambda: mx.vjp(lambda y: multiply(y, *packed), [inputs], [x])[1], x, inputs)


def least_seconds(make: Callable[[], Any], *given: mx.array) -> float:
    """Of a few evaluations of what is made, after one that is not counted."""
    mx.eval(given, make())
    found = []
    for _ in range(_REPEATS):
        mx.synchronize()
        start = time.perf_counter()
        mx.eval(make())
        found.append(time.perf_counter() - start)
    return min(found)


def choose_loss(ways: dict[str, Kernels], timing: Callable[[Kernels], float] | None = None) -> Choices:
    """The fastest of the kernels that compute a chunk's loss and gradient, by its name."""
    seconds = {name: (timing or loss_seconds)(kernels) for name, kernels in ways.items()}
    best = min(seconds, key=seconds.__getitem__)
    text = ", ".join(f"{name} {1e3 * each:.2f} ms" for name, each in seconds.items())
    return {"loss": best, "loss_measured": f"loss and gradient of {_LOGITS[0]} x {_LOGITS[1]:,} logits: {text}"}


def loss_seconds(kernels: Kernels) -> float:
    """The least of a few measurements on MLX's default device."""
    logits_NV = mx.random.normal(_LOGITS, key=mx.random.key(0)).astype(mx.bfloat16)
    targets_N, weights_N = mx.arange(_LOGITS[0]), mx.ones(_LOGITS[0])
    make = lambda: kernels.softmax_gradient(logits_NV, targets_N, weights_N, None)  # noqa: E731
    return least_seconds(make, logits_NV, targets_N, weights_N)


WIDEST_HEAD = 128
"""Of cuDNN's fused attention in MLX; heads are also multiples of 8 wide."""
LENGTH_MULTIPLE = 128
"""Query lengths whose backward pass is fused there."""


def why_not_fused(head_width: int, value_width: int, dtype: mx.Dtype) -> str | None:
    """Why cuDNN's fused attention, forward and backward, does not apply to a model; None if it does."""
    if dtype not in (mx.float16, mx.bfloat16):
        return f"it needs 16-bit numbers, and these are {str(dtype).removeprefix('mlx.core.')}"
    for width in (head_width, value_width):
        if width > WIDEST_HEAD or width % 8:
            return f"heads are {width} wide; it takes multiples of 8 up to {WIDEST_HEAD}"
    return None


def choose_attention(model: nn.Module, timing: Callable[[mx.array, bool], float] | None = None) -> Choices:
    """Whether rows are padded further within attention, so that cuDNN's fused one applies to any length."""
    arguments: Any = getattr(model, "args", None)
    heads, hidden_size = (getattr(arguments, name, None) for name in ("num_attention_heads", "hidden_size"))
    width = getattr(arguments, "head_dim", None) or (hidden_size // heads if heads and hidden_size else None)
    if not width or not heads:
        return {"attention_measured": "attention as the model's own code has it"}
    types = {array.dtype for _, array in tree_flatten(model.layers[0].parameters())}
    dtype = next((each for each in (mx.bfloat16, mx.float16) if each in types), mx.float32)
    reason = why_not_fused(width, getattr(arguments, "v_head_dim", None) or width, dtype) or _refusal(width, dtype)
    if reason:
        return {"attention_measured": f"attention not fused, L² scores in memory: {reason}"}
    x_BHLD = mx.random.normal((_ATTENTION[0], heads, _ATTENTION[1], width), key=mx.random.key(0)).astype(dtype)
    plain, padded = ((timing or attention_seconds)(x_BHLD, pads) for pads in (False, True))
    text = f"{1e3 * padded:.2f} ms padded to {LENGTH_MULTIPLE}s and fused, {1e3 * plain:.2f} ms as they are"
    multiple = LENGTH_MULTIPLE if padded < plain else 1
    return {"attention_multiple": multiple, "attention_measured": f"attention of rows of {_ATTENTION[1]}: {text}"}


def attention_seconds(x_BHLD: mx.array, pads: bool) -> float:
    """Of causal attention and its gradient, the least of a few measurements on MLX's default device."""
    more = -x_BHLD.shape[2] % LENGTH_MULTIPLE if pads else 0

    def attention(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        q, k, v = (mx.pad(each, [(0, 0), (0, 0), (0, more), (0, 0)]) for each in (q, k, v))
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0, mask="causal")
        return out[:, :, : x_BHLD.shape[2]]

    return least_seconds(lambda: mx.vjp(attention, [x_BHLD] * 3, [x_BHLD]), x_BHLD)


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
