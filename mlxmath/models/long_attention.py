"""Attention by blocks for models that autodiff goes through, where a device's own backward pass would hold all pairs.

MLX's attention has a backward pass of its own for "causal" on Metal, and for 16 bits on CUDA; everywhere else that of
long rows holds as many numbers as there are pairs of tokens, times heads.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.base import scaled_dot_product_attention

from mlxmath.models import segments
from mlxmath.models.kernels import long_rows
from mlxmath.models.masks import Written
from mlxmath.models.tuning import LENGTH_MULTIPLE, why_not_fused


class ByBlocks:
    """Attention of a model's long rows.

    Args:
        model: whose attention gives way.
        looks: whether masks are looked at, which takes that nothing is compiled: blocks that nobody sees are left out.
    """

    def __init__(self, model: nn.Module, *, looks: bool) -> None:
        self._looks = looks
        segments.prepare_attention(model)

    def __call__(
        self,
        q_BHLD: mx.array,
        k_BKLD: mx.array,
        v_BKLD: mx.array,
        cache: Any,
        scale: float,
        mask: Any,
        sinks: Any = None,
    ) -> mx.array:
        """In the place of mlx_lm's `scaled_dot_product_attention`."""
        is_causal = segments.is_causal(mask) and q_BHLD.shape[2] == k_BKLD.shape[2]
        is_array = isinstance(mask, mx.array) and mask.dtype == mx.bool_
        is_long = max(q_BHLD.shape[2], k_BKLD.shape[2]) > long_rows.block()
        if not (is_long and sinks is None and (is_array or (is_causal and not _is_fused(q_BHLD, v_BKLD)))):
            found: mx.array = scaled_dot_product_attention(q_BHLD, k_BKLD, v_BKLD, cache, scale, mask, sinks)
            return found
        seen = None if is_causal else Written(np.asarray(mask) if self._looks else mask)
        return _by_blocks(q_BHLD, k_BKLD, v_BKLD, scale, seen)


def _by_blocks(
    q_BHLD: mx.array, k_BKLD: mx.array, v_BKLD: mx.array, scale: float, seen: Written | None
) -> mx.array:  # fmt: skip
    """softmax(scale · q kᵀ) v; differentiable."""

    @mx.custom_function
    def attention(q: mx.array, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        return long_rows.attention(q, k, v, scale, seen)

    @attention.vjp
    def attention_vjp(given: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, ...]:
        q, k, v = given
        return long_rows.attention_backward(q, k, v, scale, seen, outputs, cotangents[0])

    output: mx.array = attention(q_BHLD, k_BKLD, v_BKLD)[0]
    return output


def _is_fused(q_BHLD: mx.array, v_BKLD: mx.array) -> bool:
    """Whether causal attention of these sizes has a backward pass without all pairs on MLX's default device."""
    if mx.default_device().type == mx.cpu:
        return False
    if not mx.cuda.is_available():
        return True
    refusal = why_not_fused(q_BHLD.shape[-1], v_BKLD.shape[-1], q_BHLD.dtype)
    return refusal is None and q_BHLD.shape[2] % LENGTH_MULTIPLE == 0
