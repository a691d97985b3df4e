"""Rows into micro-batches of few shapes.

Shapes: B rows, L positions (padded to a bucket width, so that few shapes occur), N target positions; of pairs B = 2 P
rows (chosen, rejected, chosen, …).
"""

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxmath.models.layouts import SharedPrompts
from mlxmath.models.masks import Mask


class Rows(Protocol):
    """Tokenized rows, as `mlxmath.data.cache.TokenRows` holds them."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""

    def row(self, index: int) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """Tokens (L,) and loss mask (L,) of a row."""

    def __len__(self) -> int: ...


class PairTargets(NamedTuple):
    """What losses on pairs need of a micro-batch beside its targets."""

    rows_N: mx.array
    """The row that a target is in."""
    counts_B: mx.array
    """Targets of each row."""
    numbers_P: mx.array
    """Of the pairs."""
    reference_B: mx.array | None = None
    """Summed log-probability of each row under the reference model."""
    score_D: mx.array | None = None
    """The reward model's score head."""


class RolloutTargets(NamedTuple):
    """What GRPO needs of each target position (N,), beside the token."""

    advantages_N: mx.array
    old_logprobs_N: mx.array
    """When it was drawn."""
    reference_logprobs_N: mx.array
    """Under the model to stay close to; anything where beta is 0."""
    rows_N: mx.array
    """The row of the micro-batch that it is in."""


@dataclass(frozen=True)
class Batch:
    """A micro-batch. The hidden state at flat position `positions[n]` (of B · L) predicts `targets[n]`."""

    inputs_BL: mx.array
    positions_N: mx.array
    targets_N: mx.array
    weights_N: mx.array
    """1 for a target; 0 for an entry that only fills up a fixed shape."""
    row_ids: tuple[int, ...]
    num_tokens: int
    """Real tokens, padding not counted."""
    num_targets: int
    extra: PairTargets | RolloutTargets | None = None
    """What the loss needs beside these."""
    texts_BL: mx.array | None = None
    """In packed rows, the number of the text that a position belongs to: attention stays within a text."""
    prompts: SharedPrompts | None = None
    """What the rows go on from, if they are not whole texts."""
    parts: tuple["Batch", ...] = ()
    """With prompts: the same rows in batches of fewer, in order, with the same prompts."""

    @property
    def mask(self) -> Mask | None:
        """What the positions of packed rows see; None: all backwards."""
        return None if self.texts_BL is None else Mask.packed(self.texts_BL)


@dataclass(frozen=True)
class Shape:
    """How batches are brought to few shapes.

    Attributes:
        multiple: rows are padded to a multiple of this many positions.
        target_steps: the number of targets is filled up to a multiple of B · L / target_steps (0: not at all), for
            devices that compile one graph a shape.
    """

    multiple: int
    target_steps: int = 0

    def width(self, length: int) -> int:
        """Positions for a row of `length` tokens (its last token is no input)."""
        return max(1, -(-(length - 1) // self.multiple)) * self.multiple


def make_batch(rows: Rows, ids: tuple[int, ...], shape: Shape) -> Batch:
    """Pad rows to a common width. A row's first token is never a target, its last token never an input."""
    taken = [rows.row(index) for index in ids]
    width = shape.width(max(len(tokens) for tokens, _ in taken))
    inputs = np.zeros((len(ids), width), np.int32)
    for i, (tokens, _) in enumerate(taken):
        inputs[i, : len(tokens) - 1] = tokens[:-1]
    return _batch(taken, ids, inputs, [i * width for i in range(len(ids))], shape)


def make_packed(rows: Rows, ids: tuple[int, ...], shape: Shape) -> Batch:
    """Lay rows end to end in one (the targets are those of `make_batch`)."""
    taken = [rows.row(index) for index in ids]
    starts = np.cumsum([0, *(len(tokens) - 1 for tokens, _ in taken)])
    inputs = np.zeros((1, shape.width(int(starts[-1]) + 1)), np.int32)
    texts = np.full_like(inputs, len(ids))  # padding is a text of its own
    for i, (tokens, _) in enumerate(taken):
        inputs[0, starts[i] : starts[i + 1]] = tokens[:-1]
        texts[0, starts[i] : starts[i + 1]] = i
    return replace(_batch(taken, ids, inputs, starts[:-1].tolist(), shape), texts_BL=mx.array(texts))


def _batch(
    taken: list[tuple[NDArray[np.integer], NDArray[np.integer]]],
    ids: tuple[int, ...],
    inputs: NDArray[np.int32],
    starts: list[int],
    shape: Shape,
) -> Batch:
    """The batch of rows that begin at the flat positions `starts`."""
    heres = [np.flatnonzero(mask[1:]) for _, mask in taken]
    positions = [here + start for here, start in zip(heres, starts, strict=True)]
    targets = [tokens[1:][here].astype(np.int64) for (tokens, _), here in zip(taken, heres, strict=True)]
    count = sum(map(len, heres))
    step = max(1, inputs.size // shape.target_steps) if shape.target_steps else 1
    fill = np.zeros(-count % step, np.int64)
    return Batch(
        mx.array(inputs),
        mx.array(np.concatenate([*positions, fill]).astype(np.int32)),
        mx.array(np.concatenate([*targets, fill]).astype(np.int32)),
        mx.array((np.arange(count + len(fill)) < count).astype(np.float32)),
        ids,
        num_tokens=sum(len(tokens) for tokens, _ in taken),
        num_targets=count,
    )
