"""Decoding on a CPU in float32 with the device's own kernels, on all cores.

Prompts are read in parts by threads that have a core each: element-wise operations of MLX run on one, and products of
many rows are as fast on one core each as on all of them one after the other. A step of few rows, whose products wait
for the weights, stays together; its attention and SwiGLU are shared out among the cores.

Keys and values lie in NumPy's memory, so a row that joins or leaves moves no other. mlx_lm's models run as they are:
their attention asks the cache, and their SwiGLU gives way (`mlxmath.models.segments`).

Shapes: B rows, H query heads, K key heads, Q = H / K, D head width, G prompts of P positions, L own positions.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import KVCache
from numpy.typing import NDArray

from mlxmath.models.kernels.cpu import CpuKernels, Floats, views
from mlxmath.models.segments import is_causal, prepare_swiglu, swiglu_by
from mlxmath.models.shared_prefix import Groups, SharedPrefixes, tried
from mlxmath.models.threads import thread_for_each_core
from mlxmath.models.trust import remembered
from mlxmath.runtime.blas import limit_threads, num_usable_cores

PART_TOKENS = 1024
"""Prompt tokens, with padding, that go through the model at once."""
_LEAST = 64
"""Fewer of them are not divided any further."""
_ROOM = 64
"""Own positions that there is memory for at least. More of it is taken twofold, and no page of it before it is used."""


def unsupported(model: nn.Module) -> str | None:
    """Why a model cannot be decoded like this; None if it can, as tried once on a few tokens."""
    if mx.default_device() != mx.Device(mx.cpu, 0):
        return "its device is no CPU"

    def attempt() -> str | None:
        for module in model.modules():
            prepare_swiglu(module)
        if model(mx.zeros((1, 1), mx.int32)).dtype != mx.float32:
            return "it does not compute in float32"
        return tried(model, lambda texts, groups, most: read(model, CpuKernels(), texts, groups, most))

    return remembered("on a CPU", model, (), attempt)


class _AllRead(Exception):  # noqa: N818 (not an error: the way out of a model whose last keys and values are known)
    pass


class _ReadingCache:
    """A layer's keys and values of prompts that are read together, padded on the right.

    Args:
        kernels: compute attention.
        before: keys and values that each of them begins with, if there are any.
        is_last: whether there is no need to go on after this layer's keys and values.
    """

    def __init__(self, kernels: CpuKernels, before: Sequence[mx.array], is_last: bool) -> None:
        self._kernels, self._is_last, self.both = kernels, is_last, before
        self.offset = before[0].shape[2] if before else 0

    def make_mask(self, length: int, return_array: bool = False, window_size: int | None = None) -> Any:
        """The causal one."""
        if self.offset or return_array or window_size:
            return create_causal_mask(length, self.offset, window_size)[None, None]
        return "causal"

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """All so far."""
        if self.both:
            keys, values = (mx.concatenate(pair, axis=2) for pair in zip(self.both, (keys, values), strict=True))
        self.both, self.offset = [keys, values], keys.shape[2]
        return keys, values

    def attend(self, q_BHLD: mx.array, scale: float, mask: Any) -> mx.array:
        """See `mlxmath.models.kernels.portable.Kernels`."""
        mx.eval(self.both)
        if self._is_last:
            raise _AllRead
        keys, values = self.both
        return self._kernels.attention(q_BHLD, keys, values, scale, None if is_causal(mask) else mask)[0]


def read(
    model: nn.Module,
    kernels: CpuKernels,
    texts: Sequence[Sequence[int]],
    groups: Groups,
    most: int,
    before: Sequence[KVCache] = (),
) -> SharedPrefixes:
    """The keys and values of texts, for rows that go on from them.

    Args:
        model: one that `unsupported` has nothing against.
        kernels: for the rows.
        texts: token ids, one of each at least; the longest ones first make the least padding.
        groups: which rows go on from which text.
        most: own positions that a row may need.
        before: a layer's keys and values each, which the texts go on from.
    """
    num_layers = len(model.layers)

    def of_part(part: range, kernels: CpuKernels) -> list[Sequence[mx.array]]:
        def repeated(layer: KVCache) -> list[mx.array]:
            return [mx.broadcast_to(each, (len(part), *each.shape[1:])) for each in layer.keys_and_values()]

        width = max(len(texts[i]) for i in part)
        tokens_BL = mx.array([[*texts[i], *[0] * (width - len(texts[i]))] for i in part], mx.int32)
        caches = [
            _ReadingCache(kernels, repeated(before[i]) if before else [], i == num_layers - 1)
            for i in range(num_layers)
        ]
        with swiglu_by(kernels.swiglu):
            for start in range(0, width, PART_TOKENS):
                with suppress(_AllRead):
                    model(tokens_BL[:, start : start + PART_TOKENS], cache=caches)
        mx.eval([cache.both for cache in caches])
        return [cache.both for cache in caches]

    divided = list(_divided(list(map(len, texts))))
    if len(divided) == 1:
        parts = [of_part(divided[0], kernels)]
    else:
        with limit_threads(1):
            parts = list(thread_for_each_core().map(lambda part: of_part(part, CpuKernels(1)), divided))
    num_before = before[0].offset if before else 0
    lengths_G = np.array([num_before + len(text) for text in texts], np.intp)
    layers = [RowsCache(kernels, [part.pop(0) for part in parts], lengths_G, groups, most) for _ in range(num_layers)]
    return SharedPrefixes(layers, groups)


def _divided(lengths: Sequence[int]) -> Iterator[range]:
    """Texts of these lengths in parts for the cores, of some `_LEAST` to `PART_TOKENS` tokens."""
    most = max(_LEAST, min(PART_TOKENS, -(-sum(lengths) // num_usable_cores())))
    start = widest = 0
    for stop, length in enumerate(lengths):
        widest = max(widest, length)
        if stop > start and (stop + 1 - start) * widest > most:
            yield range(start, stop)
            start, widest = stop, length
    yield range(start, len(lengths))


class _Memory:
    """Keys and values (N, K, L, D): of `count` rows and `width` positions, and room for more of both."""

    def __init__(self, *like: mx.array) -> None:
        self.count = self.width = 0
        self._arrays = [np.zeros((0, array.shape[1], 0, array.shape[3]), np.float32) for array in like]

    @property
    def both(self) -> list[Floats]:
        """What is in use."""
        return [array[: self.count, :, : self.width] for array in self._arrays]

    def resize(self, count: int, width: int, room: int = 0) -> None:
        """Have so many rows and positions in use; new ones are zero or anything, but finite.

        Args:
            count: rows.
            width: positions.
            room: positions to take memory for if there is not enough.
        """
        rows, heads, positions, _ = self._arrays[0].shape
        if count > rows or width > positions:
            rows, positions = max(count, rows), max(width, room, positions)
            for index, old in enumerate(self.both):
                larger = np.zeros((rows, heads, positions, old.shape[3]), np.float32)
                larger[: old.shape[0], :, : old.shape[2]] = old
                self._arrays[index] = larger
        self.count, self.width = count, width

    def append(self, both: Sequence[Floats]) -> None:
        """Take in more rows."""
        first, (count, _, width, _) = self.count, both[0].shape
        self.resize(first + count, max(self.width, width))
        for array, new in zip(self._arrays, both, strict=True):
            array[first : self.count, :, :width] = new

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows; only those are copied that are to stand elsewhere."""
        wanted = np.array(rows, np.intp)
        moved = np.flatnonzero(wanted != np.arange(len(wanted)))
        for array in self.both:
            array[moved] = array[wanted[moved]]
        self.count = len(wanted)


class RowsCache:
    """A layer's keys and values: prompts' (G), and the rows' own (B), which begin with the last token of the prompt.

    Args:
        kernels: compute attention.
        parts: keys and values of all but the prompts' last tokens.
        lengths_G: of the prompts without them.
        groups: of the rows.
        most: own positions that a row may need.
    """

    def __init__(
        self,
        kernels: CpuKernels,
        parts: Sequence[Sequence[mx.array]],
        lengths_G: NDArray[np.intp],
        groups: Groups,
        most: int,
    ) -> None:
        self._kernels, self._lengths_G, self._groups, self._most = kernels, lengths_G, groups, most
        self._prompts, self._own = _Memory(*parts[0]), _Memory(*parts[0])
        self._prompts.resize(0, int(lengths_G.max()))
        for part in parts:
            self._prompts.append(views(*part))
        self._counts_B = np.zeros(len(groups.of_rows), np.intp)

    @property
    def offset(self) -> mx.array:
        """(B,) the position of each row's next token."""
        return mx.array(self._lengths_G[self._groups.of_rows] + self._counts_B, mx.int32)

    def make_mask(self, length: int, return_array: bool = False, window_size: int | None = None) -> mx.array:  # noqa: ARG002
        """(B, 1, 1, P + L): what of its prompt and of its own tokens the next token of each row sees."""
        assert length == 1
        lengths_B1, counts_B1 = self._lengths_G[self._groups.of_rows][:, None], self._counts_B[:, None]
        of_prompt_P, own_L = np.arange(self._prompts.width)[None], np.arange(counts_B1.max() + 1)[None]
        mask = np.concatenate([of_prompt_P < lengths_B1, own_L <= counts_B1], axis=1)
        if window_size is not None:
            first_B1 = lengths_B1 + counts_B1 - window_size
            mask &= np.concatenate([of_prompt_P > first_B1, own_L + lengths_B1 > first_B1], axis=1)
        return mx.array(mask[:, None, None])

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """The new ones alone, which are noted."""
        self._new = keys, values
        return keys, values

    def attend(self, q_BH1D: mx.array, scale: float, mask: mx.array) -> mx.array:
        """(B, H, 1, D): softmax(scale · q kᵀ) v over both segments."""
        q_BH1D, *new, mask = views(q_BH1D * scale, *self._new, mask)
        width = int(self._counts_B.max()) + 1
        self._own.resize(len(q_BH1D), width, min(self._most, max(_ROOM, 2 * width)))
        for array, one in zip(self._own.both, new, strict=True):
            array[np.arange(len(one)), :, self._counts_B] = one[:, :, 0]
        self._counts_B = self._counts_B + 1
        added = np.where(mask, np.float32(0), np.float32(-np.inf))
        q_BKQD = q_BH1D.reshape(len(q_BH1D), new[0].shape[1], -1, q_BH1D.shape[-1])
        found = _attended(self._kernels, q_BKQD, self._prompts.both, self._own.both, self._groups, added)
        return mx.array(found).reshape(*q_BH1D.shape[:-1], found.shape[-1])

    def filter(self, rows: Sequence[int], groups: Groups, prompts: Sequence[int]) -> None:
        """Keep these rows and these prompts."""
        self._groups, self._lengths_G, self._counts_B = groups, self._lengths_G[prompts], self._counts_B[rows]
        for memory, kept, lengths in ((self._prompts, prompts, self._lengths_G), (self._own, rows, self._counts_B)):
            memory.keep(kept)
            memory.width = int(lengths.max())

    def extend(self, other: "RowsCache", groups: Groups, new: Sequence[int]) -> None:
        """Take in the rows of another, and its prompts numbered `new`."""
        self._groups = groups
        self._lengths_G = np.concatenate([self._lengths_G, other._lengths_G[new]])
        self._counts_B = np.concatenate([self._counts_B, other._counts_B])
        self._prompts.append([array[new] for array in other._prompts.both])
        self._own.append(other._own.both)


def _attended(
    kernels: CpuKernels,
    q_BKQD: Floats,
    prompts: Sequence[Floats],
    own: Sequence[Floats],
    groups: Groups,
    added_B11X: Floats,
) -> Floats:
    """softmax(q kᵀ + added) v over the keys and values of prompts (G, K, P, D) and the rows' own (B, K, L, D)."""
    (k_GKPD, v_GKPD), (k_BKLD, v_BKLD) = prompts, own
    num_before, count = k_GKPD.shape[2], len(q_BKQD)
    scores = np.empty((*q_BKQD.shape[:-1], num_before + k_BKLD.shape[2]), np.float32)
    out = np.empty((*q_BKQD.shape[:-1], v_BKLD.shape[3]), np.float32)

    def shared_out(a: Floats, b: Floats) -> Floats:
        found = np.empty((*a.shape[:-1], b.shape[-1]), np.float32)

        def product(i: int, j: int) -> None:
            np.matmul(a[i:j], b[i:j], out=found[i:j])

        kernels._parallel(product, len(a), len(a))
        return found

    def rows(i: int, j: int) -> None:
        s = scores[i:j]
        s[..., num_before:] = np.matmul(q_BKQD[i:j], k_BKLD[i:j].swapaxes(-1, -2))
        s += added_B11X[i:j]
        s -= s.max(-1, keepdims=True)
        np.exp(s, out=s)
        s /= s.sum(-1, keepdims=True)
        np.matmul(s[..., num_before:], v_BKLD[i:j], out=out[i:j])

    scores[..., :num_before] = groups.by_row(shared_out(groups.by_prompt(q_BKQD), k_GKPD.swapaxes(-1, -2)))
    kernels._parallel(rows, count, count)
    out += groups.by_row(shared_out(groups.by_prompt(scores[..., :num_before]), v_GKPD))
    return out
