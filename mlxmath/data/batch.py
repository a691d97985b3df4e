"""Rows into micro-batches of few shapes.

Shapes: B rows, L positions (padded to a bucket width, so that few shapes occur), N target positions; of pairs B = 2 P
rows (chosen, rejected, chosen, …).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxmath.models.layouts import SharedPrompts
from mlxmath.models.masks import Mask

_Row = tuple[NDArray[np.integer], NDArray[np.integer]]
"""Tokens and loss mask."""


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
    """Of the pairs, or of each row where these have labels."""
    reference_B: mx.array | None = None
    """Summed log-probability of each row under the reference model."""
    score_D: mx.array | None = None
    """The reward model's score head."""
    mean_chosen: mx.array | None = None
    """Targets of the step's chosen completions on average."""
    desirable_B: mx.array | None = None
    """Of rows that are no pairs, 1 or 0."""
    scales_B: mx.array | None = None
    """All rows of the step, divided by those of a row's label: so sums over a label become its means."""
    kl: mx.array | None = None
    """The step's baseline (KTO)."""


class RolloutTargets(NamedTuple):
    """What GRPO needs of each target position (N,), beside the token."""

    advantages_N: mx.array
    old_logprobs_N: mx.array
    """When it was drawn."""
    reference_logprobs_N: mx.array
    """Under the model to stay close to; anything where beta is 0."""
    rows_N: mx.array
    """The row of the micro-batch that it is in."""
    entropic_N: mx.array | None = None
    """1 where the policy's loss counts the token, 0 where its entropy is too low; None: all count."""


class TeacherTargets(NamedTuple):
    """What distillation needs of each target position."""

    outputs_NY: mx.array
    """The teacher's, as its head takes them."""


class TopTargets(NamedTuple):
    """The same, of a teacher of which only its K most likely tokens and the rest together are known."""

    ids_NK: mx.array
    """Those tokens, in any order."""
    logprobs_NC: mx.array
    """(N, K + 1) theirs, and the rest's last."""


class PieceTargets(NamedTuple):
    """The same, of a teacher that has other tokens, and says something of pieces of a text."""

    excess_N: mx.array
    """Log-probability of a target's piece when it was drawn, less that under the teacher."""
    shares_N: mx.array
    """The same by the targets in the piece. Both are 0 for a target in none."""
    old_logprobs_N: mx.array
    """When it was drawn."""


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
    extra: PairTargets | RolloutTargets | TeacherTargets | TopTargets | PieceTargets | None = None
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
        few: for devices that compile one graph a shape. Widths, numbers of rows and of targets are out of small
            geometric sets.
    """

    multiple: int
    few: bool = False

    def width(self, length: int) -> int:
        """Positions for a row of `length` tokens (its last token is no input): of few, eight widths an octave."""
        units = max(1, -(-(length - 1) // self.multiple))
        step = max(1, _power_below(units) // 8) if self.few else 1
        return -(-units // step) * step * self.multiple

    def num_rows(self, most: int) -> int:
        """Rows of a micro-batch, of which there may be so many: of few, 1, 2, 3, 4, 6, 8, 12, …"""
        power = _power_below(most + 1)
        return most if not self.few else max(power, 3 * power // 2 if 3 * power <= 2 * most else 0)

    def num_targets(self, count: int, size: int) -> int:
        """What `count` targets among `size` positions are filled up to: of few, so many eighths of the positions."""
        step = max(1, size // 8) if self.few else 1
        return -(-count // step) * step


def _power_below(number: int) -> int:
    """The largest power of two below `number`; 1 at least."""
    return 1 << max(0, (number - 1).bit_length() - 1)


def make_batch(rows: Rows, ids: tuple[int, ...], shape: Shape) -> Batch:
    """Pad rows to a common width. A row's first token is never a target, its last token never an input."""
    return _padded([rows.row(index) for index in ids], ids, shape)


def make_continued(
    rows: Rows, ids: tuple[int, ...], starts: Sequence[int], shape: Shape,
    prompts: Sequence[tuple[int, ...]] | None = None,
) -> Batch:  # fmt: skip
    """Rows without their first tokens, which are prompts that the rest goes on from: equal ones are computed once.

    Args:
        rows: the data.
        ids: of the rows.
        starts: of each row, how many tokens come before the one that predicts its first target, or fewer.
        shape: of the rest, and of the prompts.
        prompts: of these rows and of others (None: of these).
    """
    taken = [rows.row(index) for index in ids]
    before = [tuple(tokens[:start].tolist()) for (tokens, _), start in zip(taken, starts, strict=True)]
    prompts = list(dict.fromkeys(before)) if prompts is None else prompts
    lengths = list(map(len, prompts))
    padded = np.zeros((len(prompts), shape.width(1 + max(lengths))), np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    groups = mx.array([prompts.index(prompt) for prompt in before], mx.int32)
    rest = [(tokens[start:], mask[start:]) for (tokens, mask), start in zip(taken, starts, strict=True)]
    batch = _padded(rest, ids, shape)
    shared = SharedPrompts(mx.array(padded), mx.array(lengths, mx.int32), groups)
    return replace(batch, num_tokens=batch.num_tokens + sum(lengths), prompts=shared)


def _padded(taken: list[_Row], ids: tuple[int, ...], shape: Shape) -> Batch:
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
    taken: list[_Row], ids: tuple[int, ...], inputs: NDArray[np.int32], starts: list[int], shape: Shape
) -> Batch:
    """The batch of rows that begin at the flat positions `starts`."""
    heres = [np.flatnonzero(mask[1:]) for _, mask in taken]
    positions = [here + start for here, start in zip(heres, starts, strict=True)]
    targets = [tokens[1:][here].astype(np.int64) for (tokens, _), here in zip(taken, heres, strict=True)]
    count = sum(map(len, heres))
    fill = np.zeros(shape.num_targets(count, inputs.size) - count, np.int64)
    return Batch(
        mx.array(inputs),
        mx.array(np.concatenate([*positions, fill]).astype(np.int32)),
        mx.array(np.concatenate([*targets, fill]).astype(np.int32)),
        mx.array((np.arange(count + len(fill)) < count).astype(np.float32)),
        ids,
        num_tokens=sum(len(tokens) for tokens, _ in taken),
        num_targets=count,
    )
