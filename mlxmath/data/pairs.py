"""Pairs as the rows of steps.

Shapes: P pairs, a chosen and a rejected completion of one prompt, that stay together in every micro-batch: B = 2 P of
its rows (chosen, rejected, chosen, …); N target positions.
"""

import copy
from dataclasses import dataclass, replace
from functools import cached_property

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxmath.config.training import TrainingConfig
from mlxmath.data.batch import Batch, PairTargets, Rows, Shape, make_batch, make_continued, make_packed
from mlxmath.data.batching import BatchSampler, Ids, StepBatch

_LEAST_SAVED = 0.1
"""Of a micro-batch's positions, for which it is worth computing prompts apart."""


class LastTokens:
    """Rows whose only target is a token put after the last one, so that the last one is an input."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.lengths: NDArray[np.int64] = rows.lengths + 1

    def row(self, index: int) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """Tokens and mask of a row."""
        tokens, _ = self._rows.row(index)
        return np.append(tokens, 0), (np.arange(len(tokens) + 1) == len(tokens)).astype(np.uint8)

    def __len__(self) -> int:
        return len(self._rows)


class Pairs:
    """P pairs as the rows of a step plan.

    Args:
        rows: 2 P rows, those of a pair one after the other.
        first_id: the number of the first pair, for those that need a number of their own among several datasets.
        packed: a pair is as long as both rows laid end to end, not as the longer one.
        scored: what counts of a row is the hidden state at its last token, not the log-probabilities of its targets.
    """

    def __init__(self, rows: Rows, *, first_id: int = 0, packed: bool = False, scored: bool = False) -> None:
        self.rows: Rows = LastTokens(rows) if scored else rows
        ids = getattr(rows, "ids", None)
        self.ids: Ids = np.arange(len(rows) // 2) if ids is None else ids[::2] // 2
        self.numbers = self.ids + first_id
        first, second = self.rows.lengths[::2], self.rows.lengths[1::2]
        self._longer = np.maximum(first, second)
        self.lengths: NDArray[np.int64] = first + second - 1 if packed else self._longer
        ranks = getattr(rows, "ranks", None)
        self.ranks: NDArray[np.int32] | None = None if ranks is None else ranks[::2]

    def row(self, index: int) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """Tokens and mask of one of the 2 P rows."""
        return self.rows.row(index)

    def num_targets(self, index: int) -> int:
        """Of one of the rows."""
        return int(self.row(index)[1][1:].sum())

    def shared(self, index: int) -> int:
        """Tokens that both rows of a pair begin with, none of them a target or what predicts one."""
        (one, of_one), (other, of_other) = self.row(2 * index), self.row(2 * index + 1)
        most = min(int(np.argmax(mask[1:])) for mask in (of_one, of_other))
        differing = np.flatnonzero(one[:most] != other[:most])
        return int(differing[0]) if len(differing) else most

    def unpacked(self) -> "Pairs":
        """The same pairs, as long as the longer of their rows."""
        twin = copy.copy(self)
        twin.lengths = self._longer
        return twin

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class PairStep(StepBatch):
    """The micro-batches of an optimizer step on pairs, which are what its loss is the mean over."""

    sampler: "PairSampler"

    def batch(self, index: int) -> Batch:
        """A micro-batch, padded; `num_targets` are its pairs."""
        pairs = self.sampler.rows
        assert isinstance(pairs, Pairs)
        ids = self.micro_batches[index]
        both = tuple(side for pair in ids for side in (2 * pair, 2 * pair + 1))
        batch = self._batch(pairs, ids, both)
        counts = np.array([pairs.num_targets(side) for side in both], np.int32)
        rows = np.zeros(batch.targets_N.size, np.int32)
        rows[: batch.num_targets] = np.repeat(np.arange(len(both), dtype=np.int32), counts)
        extra = PairTargets(
            mx.array(rows), mx.array(counts), mx.array(pairs.numbers[list(ids)]), mean_chosen=self._mean_chosen
        )
        num_tokens = sum(len(pairs.row(side)[0]) for side in both)  # as many as without prompts computed once
        return replace(batch, row_ids=ids, num_tokens=num_tokens, num_targets=len(ids), extra=extra)

    @cached_property
    def _mean_chosen(self) -> mx.array:
        """Targets of the step's chosen completions on average."""
        pairs = self.sampler.rows
        assert isinstance(pairs, Pairs)
        return mx.array(np.mean([pairs.num_targets(2 * pair) for pair in self.row_ids]), mx.float32)

    def _batch(self, pairs: Pairs, ids: tuple[int, ...], both: tuple[int, ...]) -> Batch:
        """Of the rows `both`, laid out in the way that has the fewest positions."""
        shape = self.sampler.shape
        if self.sampler.is_packed:
            return make_packed(pairs.rows, both, shape)
        if self.sampler.shares:
            starts = np.repeat([pairs.shared(pair) for pair in ids], 2).tolist()
            batch = make_continued(pairs.rows, both, starts, shape)
            assert batch.prompts is not None
            whole = 2 * self.sampler.size(ids)
            if batch.prompts.tokens_GP.size + batch.inputs_BL.size <= (1 - _LEAST_SAVED) * whole:
                return batch
        return make_batch(pairs.rows, both, shape)


class PairSampler(BatchSampler):
    """A step holds `batch_size · grad_accumulation_steps` pairs; all else as in `BatchSampler`.

    With `shares`, the tokens that both rows of a pair begin with are computed once in a micro-batch, where that saves
    enough of its positions. The micro-batches are the same.
    """

    def __init__(
        self, pairs: Pairs, config: TrainingConfig, max_tokens: int, shape: Shape, num_workers: int = 1, *,
        shares: bool = False,
    ) -> None:  # fmt: skip
        self.shares = shares
        rows_each = 1 if config.batching == "pack" else 2
        super().__init__(pairs, config, max(1, max_tokens // rows_each), shape, num_workers)

    def step(self, ids: Ids, epoch: int, index: int) -> StepBatch:
        """See `BatchSampler`."""
        plain = super().step(ids, epoch, index)
        return PairStep(self, plain.micro_batches, epoch, index)
