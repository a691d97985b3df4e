"""How the rows of a batch attend: each to itself, or also to a prompt that is computed once for several of them.

Shapes: B rows, L positions, G prompts of P positions, K key heads.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx

from mlxmath.models.kernels.base import Kernels
from mlxmath.models.row_caches import PackedCache, SharedPrompts


@dataclass
class Attended:
    """Arguments of a block's attention."""

    q: mx.array
    k: mx.array
    v: mx.array
    scale: float


Output = tuple[mx.array, mx.array]
"""What `Kernels.attention` returns."""


class Layout(Protocol):
    """Rows and what they attend to; `block` is the number of the block."""

    tokens_BL: mx.array
    cache: Any
    """What tells the blocks the rows' positions."""
    recomputed: bool
    """Whether every block keeps its input alone, and computes the rest again in the backward pass."""

    def attention(self, kernels: Kernels, block: int, a: Attended) -> Output:
        """See `Kernels`."""

    def attention_backward(
        self, kernels: Kernels, block: int, a: Attended, output: Output, d_o: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        """The gradients of q, k and v."""


class Rows:
    """Whole texts, or packed ones under a mask as `Kernels.attention` has it."""

    cache: Any = None
    recomputed = False

    def __init__(self, tokens_BL: mx.array, mask: mx.array | None = None) -> None:
        self.tokens_BL, self._mask = tokens_BL, mask

    def attention(self, kernels: Kernels, block: int, a: Attended) -> Output:  # noqa: ARG002
        """See `Layout`."""
        return kernels.attention(a.q, a.k, a.v, a.scale, self._mask)

    def attention_backward(
        self, kernels: Kernels, block: int, a: Attended, output: Output, d_o: mx.array  # noqa: ARG002
    ) -> tuple[mx.array, mx.array, mx.array]:  # fmt: skip
        """See `Layout`."""
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
        """See `Layout`."""
        self.keys_values[block] = a.k, a.v
        return super().attention(kernels, block, a)

    def attention_backward(
        self, kernels: Kernels, block: int, a: Attended, output: Output, d_o: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        """See `Layout`."""
        d_q, d_k, d_v = super().attention_backward(kernels, block, a, output, d_o)
        del self.keys_values[block]
        of_k, of_v = self.gradients.pop(block)
        return d_q, d_k + of_k, d_v + of_v


class ContinuedRows:
    """Rows that go on from prompts."""

    recomputed = False

    def __init__(self, tokens_BL: mx.array, prompts: SharedPrompts, computed: PromptRows) -> None:
        self.tokens_BL, self._prompts, self._computed = tokens_BL, prompts, computed
        self.cache: Any = _Positions(prompts.offsets)
        self._mask = prompts.mask(tokens_BL.shape[1])
        self._rows_of_GB = (mx.arange(len(prompts.lengths_G))[:, None] == prompts.groups_B).astype(mx.float32)

    def attention(self, kernels: Kernels, block: int, a: Attended) -> Output:
        """See `Layout`."""
        k, v = self._keys_values(block, a)
        return kernels.attention(a.q, k, v, a.scale, self._mask)

    def attention_backward(
        self, kernels: Kernels, block: int, a: Attended, output: Output, d_o: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        """See `Layout`. The gradients of the prompts' keys and values are added to theirs."""
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


class _Positions(PackedCache):
    """Only tells each row's first position."""

    def __init__(self, offsets_B: mx.array) -> None:
        super().__init__(mx.ones((1, 1, 1, 1), mx.bool_), offsets_B)
