"""What brings masks, positions and earlier keys to the attention of any mlx_lm model: caches for training.

Shapes: B rows, L positions, G prompts of P positions.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

_TESTED_ON = 9
"""Tokens of the text on which a model is tried."""


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

    def mask(self, length: int, window: int | None = None) -> mx.array:
        """(B, 1, L, P + L): which of its prompt's positions and its own each row's positions see."""
        of_prompt_P, own_L = mx.arange(self.tokens_GP.shape[1]), mx.arange(length)
        offsets_B1 = self.offsets[:, None]
        present_BK = mx.concatenate(
            [of_prompt_P[None] < offsets_B1, mx.ones((len(offsets_B1), length), mx.bool_)], axis=1
        )
        places_BK = mx.concatenate([mx.broadcast_to(of_prompt_P, (len(offsets_B1), len(of_prompt_P))),
                                    offsets_B1 + own_L], axis=1)  # fmt: skip
        here_BL1, places_B1K = (offsets_B1 + own_L)[:, :, None], places_BK[:, None]
        mask_BLK = (places_B1K <= here_BL1) & present_BK[:, None]
        if window is not None:
            mask_BLK = mask_BLK & (here_BL1 < places_B1K + window)
        return mask_BLK[:, None]


class PackedCache:
    """Brings a packed row's mask.

    Positions go on from text to text, which rotary embeddings, being relative, do not notice.
    """

    offset: Any = 0

    def __init__(self, mask_B1LL: mx.array) -> None:
        self._mask_B1LL = mask_B1LL

    def make_mask(self, length: int, return_array: bool = False, window_size: int | None = None) -> mx.array:  # noqa: ARG002
        """Backwards within a text, and within the window if there is one."""
        if window_size is None:
            return self._mask_B1LL
        place = mx.arange(length)
        return self._mask_B1LL & (place[:, None] < place[None] + window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """The keys and values of the row itself."""
        return keys, values


class PromptCache(PackedCache):
    """Keeps a layer's keys and values of prompts, for `RowCache`."""

    def __init__(self, length: int) -> None:
        place = mx.arange(length)
        super().__init__((place[:, None] >= place[None])[None, None])

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """The same, noted."""
        self.keys, self.values = keys, values
        return keys, values


class RowCache:
    """Lets a layer's rows go on from their prompts."""

    def __init__(self, prompts: SharedPrompts, kept: PromptCache) -> None:
        self.offset = prompts.offsets
        self._prompts, self._kept = prompts, kept

    def make_mask(self, length: int, return_array: bool = False, window_size: int | None = None) -> mx.array:  # noqa: ARG002
        """Of the row's prompt all, of itself backwards, and within the window if there is one."""
        return self._prompts.mask(length, window_size)

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
    return forward(tokens_BL, cache=[RowCache(prompts, each) for each in kept])


def cannot_share(forward: Callable[[mx.array, SharedPrompts | None], mx.array], vocab_size: int) -> str | None:
    """Why a model's rows cannot go on from shared prompts; None if they can, as tried on a few tokens.

    Args:
        forward: outputs (B, L, …) of tokens (B, L) that may go on from prompts.
        vocab_size: tokens are below it.
    """
    texts: Sequence[Any] = [[(i * step + 1) % vocab_size for i in range(_TESTED_ON)] for step in (1, 2, 3)]
    prompts = SharedPrompts(
        mx.array([[*texts[0][:4], 0], texts[1][:5]]), mx.array([4, 5]), mx.array([1, 0, 0], mx.int32)
    )
    rows = mx.array([texts[1][5:9], texts[0][4:8], texts[2][:4]])
    whole = [texts[1], texts[0][:8], texts[0][:4] + texts[2][:4]]
    try:
        found = forward(rows, prompts).astype(mx.float32)
        expected = mx.stack([forward(mx.array([text]), None)[0, -4:].astype(mx.float32) for text in whole])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        return f"its layers need another cache ({error})"
    tolerance = 1e-3 if forward(rows, None).dtype == mx.float32 else 5e-2
    if not mx.allclose(found, expected, rtol=tolerance, atol=tolerance):
        return "its layers see more of a text than keys and values"
    return None
