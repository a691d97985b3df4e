"""Rows held out of training, to measure on.

Shapes: R rows, S texts (rows that are chunks of one text count as one).
"""

import hashlib
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mlxmath.data.cache import TokenRows
from mlxmath.errors import InputError


class Subset:
    """Some rows of a dataset, numbered from 0; `ids` are their numbers there."""

    def __init__(self, rows: TokenRows, ids: NDArray[np.int64]) -> None:
        self.rows, self.ids = rows, ids

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, index: int) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """Tokens (L,) and loss mask (L,) of a row."""
        return self.rows.row(int(self.ids[index]))

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits: the same for the same choice of the same rows."""
        chosen = np.ascontiguousarray(self.ids, "<i8").tobytes()
        return hashlib.sha256(self.rows.fingerprint.encode() + chosen).hexdigest()[:16]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """(R,) tokens of each row."""
        return self.rows.lengths[self.ids]

    @cached_property
    def ranks(self) -> NDArray[np.int32] | None:
        """(R,) the lower, the earlier in training."""
        return None if self.rows.ranks is None else self.rows.ranks[self.ids]


def hold_out(rows: TokenRows, amount: float, seed: int) -> tuple[Subset, Subset]:
    """Split rows by a seeded choice over their texts, so that chunks of one text stay together.

    A text is held out if its hash is among the smallest: the choice is the same on every machine and with every version
    of numpy, and a larger amount holds out the same texts and more.

    Args:
        rows: the dataset.
        amount: a fraction of its texts if below 1 (at least one text), else their number.
        seed: another seed, another choice.

    Returns:
        The rows to train on and those held out, each in the dataset's order.

    Raises:
        InputError: nothing would be left to train on.
    """
    sources = np.arange(len(rows)) if rows.sources is None else rows.sources
    texts, text_of_row = np.unique(sources, return_inverse=True)  # (S,), (R,)
    count = max(1, round(amount * len(texts))) if amount < 1 else int(amount)
    if count >= len(texts):
        raise InputError(
            f"--validation-split {amount:g} holds out {count:,} of {len(texts):,} problems and leaves none to train "
            "on; give a smaller one."
        )
    seeded = _mix(np.array([seed], np.uint64))
    order = np.argsort(_mix(texts.astype(np.uint64) ^ seeded), kind="stable")
    held = np.zeros(len(texts), bool)
    held[order[:count]] = True
    held_row = held[text_of_row]
    return Subset(rows, np.flatnonzero(~held_row)), Subset(rows, np.flatnonzero(held_row))


def _mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output function (Steele, Lea, Flood 2014): every bit of the result depends on every bit given."""
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
