"""How the rows of a batch attend: each to itself, or also to a prompt that is computed once for several of them.

Caches bring masks, positions and earlier keys to the attention of any mlx_lm model; layouts do so block by block.

Shapes: B rows, L positions, G prompts of P positions, K key heads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx

from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.masks import NOWHERE, Mask

_LONGEST = 6
"""Tokens of the longest text on which a model is tried."""


class SharedPrompts(NamedTuple):
    """Prompts that are computed once for all rows that go on from them; G of them, padded to P positions."""

    tokens_GP: mx.array
    lengths_G: mx.array
    groups_B: mx.array
    """The prompt of each row."""

    @property
    def offsets(self) -> mx.array:
        """(B,) the position of each row's first token in its text."""
        return self.lengths_G[self.groups_B]

    def mask(self, length: int) -> Mask:
        """Of its prompt's positions and then of its own, those backwards of each of a row's `length` positions."""
        own_BL = self.offsets[:, None] + mx.arange(length)
        of_prompt_P = mx.arange(self.tokens_GP.shape[1])
        of_prompt_BP = mx.where(of_prompt_P < self.offsets[:, None], of_prompt_P, NOWHERE)
        return Mask(mx.concatenate([of_prompt_BP, own_BL], axis=1), mx.zeros_like(own_BL), own_BL)


class PackedCache:
    """Brings a packed row's mask.

    Positions go on from text to text, which rotary embeddings, being relative, do not notice.
    """

    def __init__(self, mask: Mask, offset: Any = 0) -> None:
        self._mask, self.offset = mask, offset

    def make_mask(self, length: int, return_array: bool = False, window_size: int | None = None) -> mx.array | str:  # noqa: ARG002
        """Backwards within a text, and within the window if there is one."""
        return self._mask.within(window_size).array

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """The keys and values of the row itself."""
        return keys, values


class PromptCache(PackedCache):
    """Keeps a layer's keys and values of prompts, for `RowCache`."""

    def __init__(self, length: int) -> None:
        super().__init__(Mask.causal(length))

    def make_mask(self, length: int, return_array: bool = False, window_size: int | None = None) -> mx.array | str:
        """Backwards, which has a name where there is no window."""
        is_plain = window_size is None or length <= window_size
        return "causal" if is_plain and not return_array else super().make_mask(length, return_array, window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """The same, noted."""
        self.keys, self.values = keys, values
        return keys, values


class RowCache(PackedCache):
    """Lets a layer's rows go on from their prompts."""

    def __init__(self, mask: Mask, prompts: SharedPrompts, kept: PromptCache) -> None:
        super().__init__(mask, prompts.offsets)
        self._prompts, self._kept = prompts, kept

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Those of each row's prompt before its own."""
        of_rows = self._prompts.groups_B
        return (
            mx.concatenate([self._kept.keys[of_rows], keys], axis=2),
            mx.concatenate([self._kept.values[of_rows], values], axis=2),
        )


def continued(
    forward: Callable[..., mx.array], num_layers: int, tokens_BL: mx.array, prompts: SharedPrompts
) -> mx.array:
    """`forward(tokens, cache=…)` of rows that go on from prompts, which go through it once."""
    kept = [PromptCache(prompts.tokens_GP.shape[1]) for _ in range(num_layers)]
    forward(prompts.tokens_GP, cache=kept)
    mask = prompts.mask(tokens_BL.shape[1])
    return forward(tokens_BL, cache=[RowCache(mask, prompts, each) for each in kept])


def example(vocab_size: int, attempt: int = 0) -> tuple[mx.array, SharedPrompts, list[list[int]]]:
    """Rows, the prompts that they go on from, and the whole texts that they make."""
    texts = [[(i * step + 1 + 7 * attempt) % vocab_size for i in range(_LONGEST)] for step in (1, 2, 3)]
    prompts = SharedPrompts(
        mx.array([[*texts[0][:2], 0], texts[1][:3]]), mx.array([2, 3]), mx.array([1, 0, 0], mx.int32)
    )
    whole = [texts[1], texts[0][:5], texts[0][:2] + texts[2][:3]]
    return mx.array([text[-3:] for text in whole]), prompts, whole


@dataclass
class Attended:
    """Arguments of a block's attention."""

    q: mx.array
    k: mx.array
    v: mx.array
    scale: float


Output = tuple[mx.array, mx.array]
"""What `Kernels.attention` returns."""


class Rows:
    """Whole texts, or others under a mask; `block` is the number of a block."""

    cache: Any = None
    """What tells the blocks the rows' positions."""
    recomputed = False
    """Whether every block keeps its input alone, and computes the rest again in the backward pass."""

    def __init__(self, tokens_BL: mx.array, mask: Mask | None = None) -> None:
        self.tokens_BL, self._mask = tokens_BL, mask

    def attention(self, kernels: Kernels, block: int, a: Attended) -> Output:  # noqa: ARG002
        """See `Kernels`."""
        return kernels.attention(a.q, a.k, a.v, a.scale, self._mask)

    def attention_backward(
        self, kernels: Kernels, block: int, a: Attended, output: Output, d_o: mx.array  # noqa: ARG002
    ) -> tuple[mx.array, mx.array, mx.array]:  # fmt: skip
        """The gradients of q, k and v."""
        return kernels.attention_backward(a.q, a.k, a.v, a.scale, self._mask, output, d_o)


class PromptRows(Rows):
    """Prompts: their forward pass comes before those of the rows that go on from them, their backward pass after.

    What they keep would be in memory all the while, and they are a small part of all tokens.
    """

    recomputed = True

    def __init__(self, prompts: SharedPrompts) -> None:
        super().__init__(prompts.tokens_GP)
        self.keys_values: dict[int, tuple[mx.array, mx.array]] = {}
        """Of each block, (G, K, P, …)."""
        self.gradients: dict[int, tuple[mx.array, mx.array]] = {}
        """Of `keys_values`, summed over the rows."""

    def attention(self, kernels: Kernels, block: int, a: Attended) -> Output:
        """See `Rows`."""
        self.keys_values[block] = a.k, a.v
        return super().attention(kernels, block, a)

    def attention_backward(
        self, kernels: Kernels, block: int, a: Attended, output: Output, d_o: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        """See `Rows`."""
        d_q, d_k, d_v = super().attention_backward(kernels, block, a, output, d_o)
        del self.keys_values[block]
        of_k, of_v = self.gradients.pop(block)
        return d_q, d_k + of_k, d_v + of_v


class ContinuedRows(Rows):
    """Rows that go on from prompts."""

    def __init__(self, tokens_BL: mx.array, prompts: SharedPrompts, computed: PromptRows) -> None:
        super().__init__(tokens_BL, prompts.mask(tokens_BL.shape[1]))
        self._prompts, self._computed = prompts, computed
        self.cache = PackedCache(Mask.causal(1), prompts.offsets)  # only tells the first positions
        self._rows_of_GB = (mx.arange(len(prompts.lengths_G))[:, None] == prompts.groups_B).astype(mx.float32)

    def attention(self, kernels: Kernels, block: int, a: Attended) -> Output:
        """See `Rows`."""
        k, v = self._keys_values(block, a)
        return kernels.attention(a.q, k, v, a.scale, self._mask)

    def attention_backward(
        self, kernels: Kernels, block: int, a: Attended, output: Output, d_o: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        """See `Rows`. The gradients of the prompts' keys and values are added to theirs."""
        k, v = self._keys_values(block, a)
        d_q, *d_both = kernels.attention_backward(a.q, k, v, a.scale, self._mask, output, d_o)
        length = self._prompts.tokens_GP.shape[1]
        of_prompts: list[mx.array] = []
        for d, before in zip(d_both, self._computed.gradients.get(block, (0, 0)), strict=True):
            d_prompts = d[:, :, :length]
            summed = self._rows_of_GB.astype(d.dtype) @ d_prompts.reshape(len(d), -1)
            of_prompts.append(summed.reshape(-1, *d_prompts.shape[1:]) + before)
        mx.eval(of_prompts)
        self._computed.gradients[block] = of_prompts[0], of_prompts[1]
        return d_q, d_both[0][:, :, length:], d_both[1][:, :, length:]

    def _keys_values(self, block: int, a: Attended) -> list[mx.array]:
        """The prompts' and then their own."""
        pairs = zip(self._computed.keys_values[block], (a.k, a.v), strict=True)
        return [mx.concatenate([of_prompts[self._prompts.groups_B], own], axis=2) for of_prompts, own in pairs]
