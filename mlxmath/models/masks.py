"""Which keys each query sees, told by a few numbers a position, not by an array of all pairs.

Shapes: B rows (or 1 for all of them), L queries, K keys.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

Numbers: TypeAlias = mx.array | NDArray[np.int32]
Seen: TypeAlias = mx.array | NDArray[np.bool_]
"""(B, 1, L, K): True where a query sees a key."""

NOWHERE = 1 << 30
"""The place of a key that no query sees."""


@dataclass(frozen=True)
class Mask:
    """A query sees the keys whose places are from its first to its last.

    So are causal attention, that within a window, of packed texts and of rows that go on from prompts. The last query
    stands at the last key, and no query sees a key to the right of it.
    """

    places_BK: Numbers
    first_BL: Numbers
    last_BL: Numbers

    @classmethod
    def causal(cls, length: int, num_before: int = 0) -> "Mask":
        """All backwards; `num_before` keys come before the first query's own."""
        places = np.arange(num_before + length, dtype=np.int32)[None]
        last = places[:, num_before:]
        return cls(places, np.zeros_like(last), last)

    @classmethod
    def packed(cls, texts_BL: mx.array) -> "Mask":
        """Backwards within a text; `texts_BL` has the number of the text that a position belongs to."""
        places_1L = mx.arange(texts_BL.shape[1])[None]
        begins_BL = mx.concatenate([mx.ones((len(texts_BL), 1), mx.bool_), texts_BL[:, 1:] != texts_BL[:, :-1]], axis=1)
        return cls(places_1L, mx.cummax(mx.where(begins_BL, places_1L, 0), axis=1), places_1L)

    def within(self, window: int | None) -> "Mask":
        """Only the last `window` places (None: all)."""
        if window is None:
            return self
        larger = np.maximum if isinstance(self.first_BL, np.ndarray) else mx.maximum
        return replace(self, first_BL=larger(self.first_BL, self.last_BL - (window - 1)))

    def known(self) -> "Mask":
        """The same in NumPy, evaluated, so that blocks that nobody sees are left out."""
        return Mask(*(np.asarray(numbers) for numbers in (self.places_BK, self.first_BL, self.last_BL)))

    @cached_property
    def array(self) -> mx.array:
        """(B, 1, L, K) of all pairs."""
        return mx.array(self.block(slice(None), slice(None)))

    def block(self, queries: slice, keys: slice) -> Seen:
        """(B, 1, L, K) of these queries and keys."""
        places = self.places_BK[:, None, None, keys]
        return (self.first_BL[:, None, queries, None] <= places) & (places <= self.last_BL[:, None, queries, None])

    def seen_by(self, queries: slice, size: int) -> Iterator[tuple[slice, Seen | None]]:
        """The blocks of `size` keys that these queries see something of, with what they see (None: everything)."""
        num_keys = self.places_BK.shape[1]
        for start in range(0, num_keys - self.last_BL.shape[1] + queries.stop, size):
            keys = slice(start, min(start + size, num_keys))
            if isinstance(self.places_BK, np.ndarray):
                places, first, last = self.places_BK[:, keys], self.first_BL[:, queries], self.last_BL[:, queries]
                if places.max() < first.min() or places.min() > last.max():
                    continue
                if first.max() <= places.min() and places.max() <= last.min():
                    yield keys, None
                    continue
            yield keys, self.block(queries, keys)


@dataclass(frozen=True)
class Written:
    """The mask of someone else, written out: broadcast to (B, H, L, K), True where a query sees a key."""

    pairs: Seen

    def seen_by(self, queries: slice, size: int) -> Iterator[tuple[slice, Seen | None]]:
        """As `Mask` has it."""
        for start in range(0, self.pairs.shape[-1], size):
            keys = slice(start, min(start + size, self.pairs.shape[-1]))
            seen = self.pairs[..., queries, keys]
            if not isinstance(seen, np.ndarray):
                yield keys, seen
            elif seen.any():
                yield keys, None if seen.all() else seen
