"""Completions that are each desirable or not, as the rows of steps.

Shapes: R rows, B those of a micro-batch, N target positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxmath.config.training import TrainingConfig
from mlxmath.data.batch import Batch, PairTargets, Rows, Shape
from mlxmath.data.batching import BatchSampler, Ids, StepBatch

UNNUMBERED = -1


class Completions:
    """R completions as the rows of a step plan.

    Args:
        rows: tokenized.
        numbers: (R,) by which one is known among several datasets; `UNNUMBERED` for what comes once.
        is_desirable: (R,) their labels.
        questions: (R,) hashes of what they answer.
    """

    def __init__(
        self, rows: Rows, numbers: Ids, is_desirable: NDArray[np.bool_], questions: NDArray[np.uint64]
    ) -> None:
        self.rows, self.numbers, self.is_desirable, self.questions = rows, numbers, is_desirable, questions
        self.ids: Ids = getattr(rows, "ids", np.arange(len(rows)))
        self.lengths: NDArray[np.int64] = rows.lengths
        self.ranks: NDArray[np.int32] | None = getattr(rows, "ranks", None)

    @classmethod
    def of(cls, rows: Any, first_id: int = 0) -> "Completions":
        """Of tokenized rows whose sources are even where they are desirable (`tokenize_completions`)."""
        ids = getattr(rows, "ids", np.arange(len(rows)))
        return cls(rows, ids + first_id, rows.sources % 2 == 0, rows.questions_of_rows)

    def row(self, index: int) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """Tokens and mask of a row."""
        return self.rows.row(index)

    def mismatched(self, ids: Sequence[int]) -> "Completions":
        """The prompts of these rows, each with the completion of another of them; all completions occur once.

        The rows are put into a circle and moved on by the least number that gives the fewest prompts a completion to
        the same question. One that would be longer than the longest row is cut.
        """
        questions = self.questions[list(ids)]
        same = [np.count_nonzero(questions == np.roll(questions, shift)) for shift in range(1, len(ids))]
        others = np.roll(np.array(ids), 1 + int(np.argmin(same)) if same else 0)
        rows = Mismatched(self.rows, ids, others.tolist(), int(self.lengths.max()))
        return Completions(rows, np.full(len(ids), UNNUMBERED), np.ones(len(ids), bool), questions)

    def __len__(self) -> int:
        return len(self.lengths)


class Mismatched:
    """Rows of the prompt of one row and the completion of another; `longest` tokens at most."""

    def __init__(self, rows: Rows, prompts: Sequence[int], completions: Sequence[int], longest: int) -> None:
        self._rows = [
            _joined(rows.row(one), rows.row(other), longest) for one, other in zip(prompts, completions, strict=True)
        ]
        self.lengths: NDArray[np.int64] = np.array([len(tokens) for tokens, _ in self._rows], np.int64)

    def row(self, index: int) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """Tokens and mask of a row."""
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)


def _joined(one: Any, other: Any, longest: int) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """What comes before the first target of one row, and from it on of the other."""
    (tokens, mask), (of_other, mask_of_other) = one, other
    prompt, start = int(np.argmax(mask)), int(np.argmax(mask_of_other))
    return (
        np.concatenate([tokens[:prompt], of_other[start:]])[:longest],
        np.concatenate([mask[:prompt], mask_of_other[start:]])[:longest],
    )


@dataclass(frozen=True)
class Whole:
    """What a row's loss needs of all rows that are computed for one result: those of a step, or all held out."""

    kl: float = 0.0
    """The baseline."""
    num_rows: int = 1
    num_desirable: int = 1


@dataclass(frozen=True)
class CompletionStep(StepBatch):
    """The micro-batches of an optimizer step on completions, which are what its loss is the mean over."""

    sampler: "CompletionSampler"
    whole: Whole = Whole()

    @property
    def rows(self) -> Completions:
        """The data."""
        rows = self.sampler.rows
        assert isinstance(rows, Completions)
        return rows

    def mismatched(self) -> "CompletionStep":
        """Its prompts with each other's completions. They are the same however the rows share micro-batches."""
        sampler, rows = self.sampler, self.rows.mismatched(sorted(self.row_ids))
        other = CompletionSampler(rows, sampler.config, sampler.max_tokens, sampler.shape, sampler.num_workers)
        return other.step(np.arange(len(rows)), self.epoch, self.index)

    def batch(self, index: int) -> Batch:
        """A micro-batch, padded; `num_targets` are its rows."""
        rows, batch, ids = self.rows, super().batch(index), list(self.micro_batches[index])
        counts = np.array([int(rows.row(row)[1][1:].sum()) for row in ids], np.int32)
        of_targets = np.zeros(batch.targets_N.size, np.int32)
        of_targets[: batch.num_targets] = np.repeat(np.arange(len(ids), dtype=np.int32), counts)
        desirable, whole = rows.is_desirable[ids], self.whole
        same = np.where(desirable, whole.num_desirable, whole.num_rows - whole.num_desirable)
        extra = PairTargets(
            mx.array(of_targets), mx.array(counts), mx.array(rows.numbers[ids]),
            desirable_B=mx.array(desirable.astype(np.float32)),
            scales_B=mx.array((whole.num_rows / np.maximum(same, 1)).astype(np.float32)),
            kl=mx.array(whole.kl, mx.float32),
        )  # fmt: skip
        return replace(batch, num_targets=len(ids), extra=extra)

    def finer(self) -> "CompletionStep | None":
        """See `StepBatch`; what it needs of the whole step stays."""
        found = super().finer()
        return replace(found, whole=self.whole) if isinstance(found, CompletionStep) else None


class CompletionSampler(BatchSampler):
    """As `BatchSampler`, of completions."""

    def __init__(
        self, rows: Completions, config: TrainingConfig, max_tokens: int, shape: Shape, num_workers: int = 1
    ) -> None:
        super().__init__(rows, config, max_tokens, shape, num_workers)
        self.config, self.num_workers = config, num_workers

    def step(self, ids: Ids, epoch: int, index: int) -> CompletionStep:
        """See `BatchSampler`."""
        plain = super().step(ids, epoch, index)
        return CompletionStep(self, plain.micro_batches, epoch, index)
