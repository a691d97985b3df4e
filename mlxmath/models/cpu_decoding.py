"""Decoding on a CPU in float32 with the device's own kernels, on all cores.

Prompts are read in parts by threads that have a core each: element-wise operations of MLX run on one, and products of
many rows are as fast on one core each as on all of them one after the other. Many rows are drawn likewise
(`mlxmath.generation.lanes`); of few, whose products wait for the weights, a step stays together, and its attention and
SwiGLU are shared out among the cores.

mlx_lm's models run as they are: their attention asks the cache, and their SwiGLU gives way (`mlxmath.models.segments`).

Shapes: B rows, L positions, H query heads, D head width.
"""

import itertools
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.cache import KVCache

from mlxmath.models.kernels.cpu import CpuKernels
from mlxmath.models.masks import Mask
from mlxmath.models.rows_cache import RowKernels, RowsCache
from mlxmath.models.segments import is_causal, prepare_swiglu, swiglu_by
from mlxmath.models.served import PROMPT_TOKENS, is_served
from mlxmath.models.shared_prefix import Groups, SharedPrefixes, tried
from mlxmath.models.threads import thread_for_each_core
from mlxmath.models.trust import remembered
from mlxmath.runtime.blas import limit_threads

PART_TOKENS = 1024
"""Prompt tokens, with padding, that go through the model at once."""
_LEAST = 64
"""Fewer of them are not divided any further."""


def unsupported(model: nn.Module) -> str | None:
    """Why a model cannot be decoded like this; None if it can, as tried once on a few tokens."""
    if mx.default_device() != mx.Device(mx.cpu, 0):
        return "its device is no CPU"
    if getattr(model, "is_spread", False):
        return "it is spread over several processes"

    def attempt() -> str | None:
        if any(array.dtype in (mx.float16, mx.bfloat16) for _, array in tree_flatten(model.parameters())):
            return "it does not compute in float32"
        for module in model.modules():
            prepare_swiglu(module)
        return tried(model, lambda texts, groups, most: read(model, RowKernels(), texts, groups, most))

    return remembered("on a CPU", model, (), attempt)


class _AllRead(Exception):  # noqa: N818 (not an error: the way out of a model whose last keys and values are known)
    pass


class _ReadingCache:
    """A layer's keys and values of prompts that are read together, padded on the right.

    Args:
        kernels: compute attention.
        is_last: whether there is no need to go on after this layer's keys and values.
    """

    def __init__(self, kernels: CpuKernels, is_last: bool) -> None:
        self._kernels, self._is_last = kernels, is_last
        self.offset, self.both = 0, list[mx.array]()

    def go_on_from(self, before: KVCache, num_rows: int) -> None:
        """Let all rows begin with these."""
        self.offset = before.offset
        self.both = [mx.broadcast_to(each, (num_rows, *each.shape[1:])) for each in before.keys_and_values()]

    def make_mask(self, length: int, return_array: bool = False, window_size: int | None = None) -> Any:
        """The causal one."""
        if window_size:
            raise ValueError("a window")
        return Mask.causal(length, self.offset).array if self.offset or return_array else "causal"

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """All so far."""
        if self.both:
            keys, values = (mx.concatenate(pair, axis=2) for pair in zip(self.both, (keys, values), strict=True))
        self.both, self.offset = [keys, values], keys.shape[2]
        return keys, values

    def attend(self, q_BHLD: mx.array, scale: float, mask: Any) -> mx.array:
        """See `mlxmath.models.kernels.portable.Kernels`."""
        if self._is_last:
            raise _AllRead
        keys, values = self.both
        mx.eval(q_BHLD, keys, values)
        length, num_keys = q_BHLD.shape[2], keys.shape[2]
        seen = None if is_causal(mask) else Mask.causal(length, num_keys - length)
        return self._kernels.attention(q_BHLD, keys, values, scale, seen)[0]


def read(
    model: nn.Module,
    kernels: RowKernels,
    texts: Sequence[Sequence[int]],
    groups: Groups,
    most: int,
    before: Sequence[KVCache] = (),
) -> SharedPrefixes:
    """The keys and values of texts, for rows that go on from them.

    Args:
        model: one that `unsupported` has nothing against.
        kernels: for the rows; the texts are read on as many cores.
        texts: token ids, one of each at least; the longest ones first make the least padding.
        groups: which rows go on from which text.
        most: own positions that a row may need.
        before: a layer's keys and values each, which the texts go on from.
    """
    num_layers, on_disk = len(model.layers), is_served(model)
    step = PROMPT_TOKENS if on_disk else PART_TOKENS

    def of_part(part: range, kernels: CpuKernels) -> list[Sequence[mx.array]]:
        width = max(len(texts[i]) for i in part)
        tokens_BL = mx.array([[*texts[i], *[0] * (width - len(texts[i]))] for i in part], mx.int32)
        caches = [_ReadingCache(kernels, i == num_layers - 1) for i in range(num_layers)]
        for cache, layer in zip(caches, before, strict=False):
            cache.go_on_from(layer, len(part))
        with swiglu_by(kernels.swiglu):
            for start in range(0, width, step):
                with suppress(_AllRead):
                    model(tokens_BL[:, start : start + step], cache=caches)
        mx.eval([cache.both for cache in caches])
        return [cache.both for cache in caches]

    cores = 1 if on_disk else kernels.num_cores
    divided = _divided(list(map(len, texts)), cores, step)
    if len(divided) == 1 or cores == 1:
        parts = [of_part(each, kernels) for each in divided]
    else:
        mx.eval(model.state)  # a thread cannot evaluate another's graph
        with limit_threads(1):
            parts = list(thread_for_each_core().map(lambda part: of_part(part, CpuKernels(1)), divided))
    num_before = before[0].offset if before else 0
    lengths_G = np.array([num_before + len(text) for text in texts], np.intp)
    layers = [RowsCache(kernels, [part.pop(0) for part in parts], lengths_G, groups, most) for _ in range(num_layers)]
    mx.clear_cache()
    return SharedPrefixes(layers, groups)


def _divided(lengths: Sequence[int], cores: int, most: int) -> list[range]:
    """Texts of these lengths in parts of some `_LEAST` to `most` tokens, about equal ones for all cores."""
    total = sum(lengths)
    number = max(1, min(cores * -(-total // (cores * most)), total // _LEAST))
    middles = np.cumsum(lengths) - np.array(lengths) / 2
    bounds = np.searchsorted(middles, np.arange(number + 1) * total / number)
    bounds[-1] = len(lengths)  # where the last ones are empty
    return [range(start, stop) for start, stop in itertools.pairwise(bounds.tolist()) if start < stop]
