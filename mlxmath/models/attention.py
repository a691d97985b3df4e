"""Whether attention is fused in training, on devices that may do so, and if not, why."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

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
