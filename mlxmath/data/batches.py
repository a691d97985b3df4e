"""Rows into windows: the micro-batches of one optimizer step, in a seeded order that any machine repeats.

Shapes: B rows, L positions (padded to a bucket width, so that few shapes occur).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxmath.config.schema import TrainingConfig


class Rows(Protocol):
    """Tokenized rows, as `mlxmath.data.cache.TokenRows` holds them."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""

    def row(self, index: int) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """Tokens (L,) and loss mask (L,) of a row."""

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Batch:
    """A micro-batch: position l predicts `targets[l]`, and counts if `weights[l]` is 1."""

    inputs_BL: mx.array
    targets_BL: mx.array
    weights_BL: mx.array
    row_ids: tuple[int, ...]
    num_tokens: int
    """Real tokens, padding not counted."""
    num_targets: int


@dataclass(frozen=True)
class Window:
    """The micro-batches of one optimizer step, made when they are asked for."""

    rows: Rows
    micro_batches: tuple[tuple[int, ...], ...]
    bucket_multiple: int
    epoch: int
    index: int
    """Position of the window in its epoch."""

    @property
    def row_ids(self) -> tuple[int, ...]:
        """All rows of the window."""
        return tuple(row for batch in self.micro_batches for row in batch)

    def batches(self) -> Iterator[Batch]:
        """The micro-batches, padded."""
        for ids in self.micro_batches:
            yield make_batch(self.rows, ids, self.bucket_multiple)


def make_batch(rows: Rows, ids: tuple[int, ...], bucket_multiple: int) -> Batch:
    """Pad rows to a common bucket width. A row's first token is never a target, its last token never an input."""
    taken = [rows.row(index) for index in ids]
    longest = max(len(tokens) for tokens, _ in taken) - 1
    width = -(-longest // bucket_multiple) * bucket_multiple
    inputs = np.zeros((len(ids), width), np.int32)
    targets = np.zeros((len(ids), width), np.int32)
    weights = np.zeros((len(ids), width), np.float32)
    for i, (tokens, mask) in enumerate(taken):
        n = len(tokens) - 1
        inputs[i, :n] = tokens[:-1]
        targets[i, :n] = tokens[1:]
        weights[i, :n] = mask[1:]
    return Batch(
        mx.array(inputs),
        mx.array(targets),
        mx.array(weights),
        ids,
        num_tokens=sum(len(tokens) for tokens, _ in taken),
        num_targets=int(weights.sum()),
    )


def num_windows(num_rows: int, batch_size: int, accumulation: int) -> int:
    """Windows of an epoch; the last one may be smaller."""
    return -(-num_rows // (batch_size * accumulation))


def epoch_windows(
    rows: Rows, *, batch_size: int, accumulation: int, bucket_multiple: int, seed: int, epoch: int, start: int = 0
) -> Iterator[Window]:
    """The windows of an epoch from number `start` on.

    A window holds `batch_size * accumulation` rows (the last one what is left: nothing is dropped). Within it rows are
    sorted by length before they are split into micro-batches, which saves padding and changes no sum.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(rows))
    lengths = rows.lengths
    per_window = batch_size * accumulation
    for index in range(start, num_windows(len(rows), batch_size, accumulation)):
        ids = order[index * per_window : (index + 1) * per_window]
        ids = ids[np.argsort(lengths[ids], kind="stable")]
        micro = tuple(tuple(int(i) for i in ids[j : j + batch_size]) for j in range(0, len(ids), batch_size))
        yield Window(rows, micro, bucket_multiple, epoch, index)


def training_windows(
    rows: Rows, config: TrainingConfig, bucket_multiple: int, *, epoch: int = 0, window: int = 0
) -> Iterator[Window]:
    """The windows of a whole run, from window number `window` of `epoch` to the end of the last epoch."""
    for number in range(epoch, config.num_epochs):
        yield from epoch_windows(
            rows,
            batch_size=config.batch_size,
            accumulation=config.grad_accumulation_steps,
            bucket_multiple=bucket_multiple,
            seed=config.seed,
            epoch=number,
            start=window if number == epoch else 0,
        )
