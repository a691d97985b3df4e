"""What brings masks, positions and earlier keys to the attention of any mlx_lm model: caches for training.

Shapes: B rows, L positions, G prompts of P positions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

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

    def __init__(self, mask_B1LL: mx.array, offset: Any = 0) -> None:
        self._mask_B1LL, self.offset = mask_B1LL, offset

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


def example(vocab_size: int, attempt: int = 0) -> tuple[mx.array, SharedPrompts, list[list[int]]]:
    """Rows, the prompts that they go on from, and the whole texts that they make."""
    texts = [[(i * step + 1 + 7 * attempt) % vocab_size for i in range(_LONGEST)] for step in (1, 2, 3)]
    prompts = SharedPrompts(
        mx.array([[*texts[0][:2], 0], texts[1][:3]]), mx.array([2, 3]), mx.array([1, 0, 0], mx.int32)
    )
    whole = [texts[1], texts[0][:5], texts[0][:2] + texts[2][:3]]
    return mx.array([text[-3:] for text in whole]), prompts, whole


def cannot_share(forward: Callable[[mx.array, SharedPrompts | None], mx.array], vocab_size: int) -> str | None:
    """Why a model's rows cannot go on from shared prompts; None if they can, as tried on a few tokens.

    Args:
        forward: outputs (B, L, …) of tokens (B, L) that may go on from prompts.
        vocab_size: tokens are below it.
    """
    rows, prompts, texts = example(vocab_size)
    try:
        found = forward(rows, prompts).astype(mx.float32)
        length = rows.shape[1]
        expected = mx.stack([forward(mx.array([text]), None)[0, -length:].astype(mx.float32) for text in texts])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        return f"its layers need another cache ({error})"
    tolerance = 1e-3 if forward(rows, None).dtype == mx.float32 else 5e-2
    if not mx.allclose(found, expected, rtol=tolerance, atol=tolerance):
        return "its layers see more of a text than keys and values"
    return None
