"""Attention of models that autodiff goes through, where MLX's own would take another form or too much memory.

MLX's attention has a backward pass of its own for "causal" on Metal, and on CUDA in 16 bits for lengths that are
multiples of 128; everywhere else that of long rows holds as many numbers as there are pairs of tokens, times heads.

Shapes: B rows, L positions, H heads, K of them with keys and values, D their width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.base import scaled_dot_product_attention

from mlxmath.models import segments
from mlxmath.models.kernels import long_rows
from mlxmath.models.masks import Written
from mlxmath.models.tuning import LENGTH_MULTIPLE, why_not_fused


class TrainingAttention:
    """Takes the place of mlx_lm's attention in a model.

    Args:
        model: whose attention gives way.
        multiple: causal attention of whole rows sees multiples of so many positions (1: what there are). Padding all of
            the model as far would make 29 % of GSM8K's rows padding, in place of 6 %.
        looks: whether masks are looked at, which takes that nothing is compiled: blocks that nobody sees are left out.
    """

    def __init__(self, model: nn.Module, *, multiple: int = 1, looks: bool = False) -> None:
        self._multiple, self._looks = multiple, looks
        segments.prepare_attention(model)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While it lasts, in this thread."""
        with segments.attention_by(self._attention):
            yield

    def _attention(
        self, q_BHLD: mx.array, k_BKLD: mx.array, v_BKLD: mx.array, cache: Any, scale: float, mask: Any,
        sinks: Any = None,
    ) -> mx.array:  # fmt: skip
        length, num_keys = q_BHLD.shape[2], k_BKLD.shape[2]
        is_causal = segments.is_causal(mask) and length == num_keys
        more = -length % self._multiple if is_causal and cache is None else 0
        if more:  # no query sees a position to the right of it, and those of the padding are cut off
            widths = [(0, 0), (0, 0), (0, more), (0, 0)]
            q_BHLD, k_BKLD, v_BKLD = (mx.pad(array, widths) for array in (q_BHLD, k_BKLD, v_BKLD))
        is_array = isinstance(mask, mx.array) and mask.dtype == mx.bool_
        is_long = max(length, num_keys) > long_rows.block()
        found: mx.array
        if is_long and sinks is None and (is_array or (is_causal and not _is_fused(q_BHLD, v_BKLD))):
            seen = None if is_causal else Written(np.asarray(mask) if self._looks else mask)
            found = _by_blocks(q_BHLD, k_BKLD, v_BKLD, scale, seen)
        else:
            found = scaled_dot_product_attention(q_BHLD, k_BKLD, v_BKLD, cache, scale, mask, sinks)
        return found[:, :, :length] if more else found


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
