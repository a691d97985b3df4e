"""Attention of models that autodiff goes through, where MLX's own would take another form or too much memory.

MLX's attention has a backward pass of its own for "causal" on Metal, with heads of some widths, and on CUDA in 16 bits
for lengths that are multiples of 128; everywhere else that of long rows holds as many numbers as there are pairs of
tokens, times heads. Its kernels have no gradient of sinks nor of scores that are added (in latent attention, those of
positions), and on Metal none at all where there are sinks, or few queries: MLX raises.

Shapes: B rows, L positions, H heads, K of them with keys and values, D their width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.base import scaled_dot_product_attention

from mlxmath.models import segments
from mlxmath.models.kernels import long_rows
from mlxmath.models.masks import Written
from mlxmath.models.tuning import LENGTH_MULTIPLE, why_not_fused

_FEW = 8
"""Queries, for up to which Metal has another kernel, which keeps nothing for the backward pass."""


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
        self._trains_sinks = any("sink" in name for name, _ in tree_flatten(model.trainable_parameters()))
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
        if isinstance(mask, mx.array) and mask.dtype != mx.bool_ and sinks is None:
            return _with_scores(q_BHLD, k_BKLD, v_BKLD, scale, mask)
        length, num_keys = q_BHLD.shape[2], k_BKLD.shape[2]
        is_causal = segments.is_causal(mask) and length == num_keys
        more = -length % self._multiple if is_causal and cache is None else 0
        if more:  # no query sees a position to the right of it, and those of the padding are cut off
            widths = [(0, 0), (0, 0), (0, more), (0, 0)]
            q_BHLD, k_BKLD, v_BKLD = (mx.pad(array, widths) for array in (q_BHLD, k_BKLD, v_BKLD))
        is_array = isinstance(mask, mx.array) and mask.dtype == mx.bool_
        is_long = max(length, num_keys) > long_rows.block() and not (is_causal and _is_fused(q_BHLD, v_BKLD))
        found: mx.array
        if (is_causal or is_array) and (is_long or self._is_refused(length, sinks)):
            seen = None if is_causal else Written(np.asarray(mask) if self._looks else mask)
            found = _by_blocks(q_BHLD, k_BKLD, v_BKLD, scale, seen, sinks)
        else:
            found = scaled_dot_product_attention(q_BHLD, k_BKLD, v_BKLD, cache, scale, mask, sinks)
        return found[:, :, :length] if more else found

    def _is_refused(self, length: int, sinks: mx.array | None) -> bool:
        """Whether MLX may take a kernel that raises in the backward pass."""
        if mx.default_device().type == mx.cpu:
            return False
        if mx.cuda.is_available():
            return sinks is not None and self._trains_sinks
        return sinks is not None or length <= _FEW


def _by_blocks(
    q_BHLD: mx.array, k_BKLD: mx.array, v_BKLD: mx.array, scale: float, seen: Written | None, sinks_H: mx.array | None
) -> mx.array:  # fmt: skip
    """softmax(scale · q kᵀ) v; differentiable."""

    @mx.custom_function
    def attention(q: mx.array, k: mx.array, v: mx.array, *sinks: mx.array) -> tuple[mx.array, mx.array]:
        return long_rows.attention(q, k, v, scale, seen, *sinks)

    @attention.vjp
    def attention_vjp(given: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, ...]:
        q, k, v, *sinks = given
        d_qkv = long_rows.attention_backward(q, k, v, scale, seen, outputs, cotangents[0])
        return *d_qkv, *(long_rows.sinks_backward(each, outputs, cotangents[0]) for each in sinks)

    output: mx.array = attention(q_BHLD, k_BKLD, v_BKLD, *([] if sinks_H is None else [sinks_H]))[0]
    return output


def _with_scores(
    q_BHLD: mx.array, k_BKLD: mx.array, v_BKLD: mx.array, scale: float, scores: mx.array
) -> mx.array:  # fmt: skip
    """softmax(scale · q kᵀ + scores) v, in the operations of MLX's own where it has no kernel."""
    k, v = (mx.repeat(x, q_BHLD.shape[1] // x.shape[1], axis=1) for x in (k_BKLD, v_BKLD))
    return mx.softmax(scale * q_BHLD @ k.swapaxes(-1, -2) + scores, axis=-1, precise=True) @ v


def _is_fused(q_BHLD: mx.array, v_BKLD: mx.array) -> bool:
    """Whether causal attention of these sizes has a backward pass without all pairs on MLX's default device."""
    if mx.default_device().type == mx.cpu:
        return False
    widths = q_BHLD.shape[-1], v_BKLD.shape[-1]
    if not mx.cuda.is_available():
        return _has_kernel(*widths, q_BHLD.dtype)
    return why_not_fused(*widths, q_BHLD.dtype) is None and q_BHLD.shape[2] % LENGTH_MULTIPLE == 0


@cache
def _has_kernel(head_width: int, value_width: int, dtype: mx.Dtype) -> bool:
    """Whether MLX says that it has a kernel, also for the backward pass. Nothing is computed."""
    q, k, v = (mx.zeros((1, 1, LENGTH_MULTIPLE, width), dtype) for width in (head_width, head_width, value_width))

    def fused(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0, mask="causal", force_fused=True)

    try:
        mx.vjp(fused, [q, k, v], [v])
    except (TypeError, ValueError):  # an MLX without such kernels does not know `force_fused`
        return False
    return True
