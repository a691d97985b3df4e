"""Scored completions as rows, steps and micro-batches, so that the training loop takes them like any others."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxmath.config.training import TrainingConfig
from mlxmath.data.batch import Batch, PieceTargets, RolloutTargets, Shape, TopTargets, make_batch, make_continued
from mlxmath.data.batching import BatchSampler, Ids, StepBatch

_PARTS = 16
"""Parts of a micro-batch: more share prompts more widely, and load the workers less evenly."""


@dataclass(frozen=True)
class Trajectory:
    """A completion that trains."""

    prompt_id: int
    prompt: tuple[int, ...]
    drawn: tuple[int, ...]
    advantage: float
    weight: float
    """Of each of its tokens in the step's loss."""
    logprobs: tuple[float, ...]
    """Of the targets, when they were drawn."""
    reference: tuple[float, ...] = ()
    """Of the targets, under the reference model (none: there is no such)."""
    by_tool: tuple[bool, ...] = ()
    """Of each of `drawn`: whether a tool wrote it, so that it is no target (empty: none did)."""

    @property
    def num_targets(self) -> int:
        """The tokens that the model drew."""
        return len(self.drawn) - sum(self.by_tool)

    def plain(self) -> list[Any]:
        """As JSON can hold it."""
        return [getattr(self, field.name) for field in fields(self)]

    @classmethod
    def from_plain(cls, values: Sequence[Any]) -> "Trajectory":
        """The inverse of `plain`."""
        names = [field.name for field in fields(cls)]
        tupled: list[Any] = [tuple(value) if isinstance(value, list) else value for value in values]
        return cls(**dict(zip(names, tupled, strict=False)))  # an earlier version knew no tools


@dataclass(frozen=True)
class Taught(Trajectory):
    """A text of which it is known what a teacher says of each of `drawn` (T tokens); see `TopTargets`."""

    ids_TK: NDArray[np.int32] | None = None
    logprobs_TC: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Pieced(Trajectory):
    """A completion whose pieces a teacher with other tokens has scored; see `PieceTargets`."""

    excess: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()


class RolloutRows:
    """The trajectories of an optimizer step, as `mlxmath.data.batch.Rows`.

    Args:
        trajectories: that train.
        entropic: of each, which of its tokens the policy's loss counts (None: all).
    """

    def __init__(self, trajectories: Sequence[Trajectory], entropic: Sequence[Sequence[bool]] | None = None) -> None:
        self.trajectories, self.entropic = list(trajectories), entropic
        self.lengths: NDArray[np.int64] = np.array([len(t.prompt) + len(t.drawn) for t in trajectories], np.int64)
        self.ids = np.array([t.prompt_id for t in trajectories], np.int64)
        self.num_targets = sum(t.num_targets for t in trajectories)

    def row(self, index: int) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """Tokens (L,) and loss mask (L,) of a row: what the model drew is a target."""
        chosen = self.trajectories[index]
        tokens = np.array(chosen.prompt + chosen.drawn, np.int64)
        mask = (np.arange(len(tokens)) >= len(chosen.prompt)).astype(np.uint8)
        if chosen.by_tool:
            mask[len(chosen.prompt) :] = ~np.array(chosen.by_tool)
        return tokens, mask

    def __len__(self) -> int:
        return len(self.trajectories)


@dataclass(frozen=True)
class RolloutStep(StepBatch):
    """The micro-batches of an optimizer step, with what `RolloutTargets` names."""

    sampler: "RolloutSampler"

    def batch(self, index: int) -> Batch:
        """A micro-batch, padded. Its weights are multiplied by the step's targets, by which the loop divides."""
        rows, ids = self.sampler.rows, self.micro_batches[index]
        assert isinstance(rows, RolloutRows)
        shape = self.sampler.shape
        if not self.sampler.shares:
            return self._weighted(rows, make_batch(rows, ids, shape))
        prompts = list(dict.fromkeys(rows.trajectories[i].prompt[:-1] for i in ids))

        def continued(ids: tuple[int, ...]) -> Batch:
            starts = [len(rows.trajectories[i].prompt) - 1 for i in ids]
            return self._weighted(rows, make_continued(rows, ids, starts, shape, prompts))

        batch = continued(ids)
        if not self.sampler.part_tokens:
            return batch
        assert batch.prompts is not None
        width = batch.inputs_BL.shape[1]
        size = max(1, (self.sampler.part_tokens - 2 * batch.prompts.tokens_GP.size // 3) // width)
        return replace(batch, parts=tuple(continued(ids[i : i + size]) for i in range(0, len(ids), size)))

    def _weighted(self, rows: RolloutRows, batch: Batch) -> Batch:
        ids = batch.row_ids
        chosen = [rows.trajectories[i] for i in ids]
        counts = [t.num_targets for t in chosen]
        num_fill = batch.targets_N.size - sum(counts)

        def of_rows(values: Sequence[float]) -> mx.array:
            return filled(np.repeat(np.array(values, np.float32), counts))

        def filled(values: NDArray[Any]) -> mx.array:
            return mx.array(np.concatenate([values, np.zeros(num_fill, values.dtype)]))

        def of_kept(parts: Sequence[Any]) -> mx.array:
            return mx.array(np.concatenate([*parts, np.zeros((num_fill, parts[0].shape[1]), parts[0].dtype)]))

        def of_tokens(values: Sequence[Sequence[float]]) -> mx.array:
            return filled(np.concatenate([np.array(value, np.float32) for value in values]))

        weights_N = of_rows([t.weight * rows.num_targets for t in chosen])
        if taught := [t for t in chosen if isinstance(t, Taught)]:
            kept = TopTargets(of_kept([t.ids_TK for t in taught]), of_kept([t.logprobs_TC for t in taught]))
            return replace(batch, weights_N=weights_N, extra=kept)
        if pieced := [t for t in chosen if isinstance(t, Pieced)]:
            named = ([t.excess for t in pieced], [t.shares for t in pieced], [t.logprobs for t in pieced])
            return replace(batch, weights_N=weights_N, extra=PieceTargets(*map(of_tokens, named)))
        return replace(
            batch,
            weights_N=weights_N,
            extra=RolloutTargets(
                advantages_N=of_rows([t.advantage for t in chosen]),
                old_logprobs_N=of_tokens([t.logprobs for t in chosen]),
                reference_logprobs_N=of_tokens([t.reference or t.logprobs for t in chosen]),
                rows_N=filled(np.repeat(np.arange(len(ids), dtype=np.int32), counts)),
                entropic_N=None if rows.entropic is None else of_tokens([rows.entropic[i] for i in ids]),
            ),
        )


class MostRows:
    """Rows in a micro-batch: once there was too little memory for more, the samplers that follow begin with as few."""

    def __init__(self) -> None:
        self._rows: int | None = None

    @contextmanager
    def of(self, sampler: BatchSampler) -> Iterator[None]:
        """Bound a sampler, and see whether its step had to bound it further."""
        sampler.max_rows = before = min(sampler.max_rows, self._rows or sampler.max_rows)
        yield
        if sampler.max_rows < before:
            self._rows = sampler.max_rows


class RolloutSampler(BatchSampler):
    """All trajectories of a rollout are one step.

    With `shares` and `bucket` batching, micro-batches are made of completions of the same prompts, each prompt computed
    once in a micro-batch. With `in_parts` they are as large as a few whole groups, of which `max_tokens` are
    computed at a time, those of prompts counted two thirds; one completion, or one prompt, may be longer. Where rows
    are to be packed, buckets take their place, with each prompt in each row.
    """

    def __init__(
        self, rows: RolloutRows, config: TrainingConfig, max_tokens: int, shape: Shape, num_workers: int = 1, *,
        shares: bool = False, in_parts: bool = False,
    ) -> None:  # fmt: skip
        self._trajectories = rows.trajectories
        self.shares = shares and config.batching == "bucket"
        self.part_tokens = max_tokens if self.shares and in_parts else 0
        most = max_tokens * (_PARTS if self.part_tokens else 1)
        super().__init__(rows, config.unpacked(), most, shape, num_workers)

    def step(self, ids: Ids, epoch: int, index: int) -> StepBatch:
        """See `BatchSampler`."""
        plain = super().step(ids, epoch, index)
        return RolloutStep(self, plain.micro_batches, epoch, index)

    def whole(self, epoch: int, index: int) -> StepBatch:
        """The step of all trajectories."""
        return self.step(np.arange(len(self.rows)), epoch, index)

    def size(self, ids: tuple[int, ...]) -> int:
        """See `BatchSampler`."""
        if not self.shares:
            return super().size(ids)
        longest = max(len(self._trajectories[i].drawn) for i in ids)
        return self._size_of_prompts(ids)[1] + len(ids) * self.shape.width(1 + longest)

    def _size_of_prompts(self, ids: tuple[int, ...]) -> tuple[int, int]:
        """Their number, and their padded tokens."""
        prompts = {self._trajectories[i].prompt for i in ids}
        return len(prompts), len(prompts) * self.shape.width(max(map(len, prompts)))

    def _fits(self, ids: tuple[int, ...], max_tokens: int) -> bool:
        number, tokens = self._size_of_prompts(ids)
        too_many_prompts = self.part_tokens and number > 1 and tokens > self.part_tokens
        return len(ids) <= self.max_rows and self.size(ids) <= max_tokens and not too_many_prompts

    def _groups(self, ids: Ids, max_tokens: int) -> list[tuple[int, ...]]:
        """Completions of a prompt one after the other, the longest first."""
        if not self.shares:
            return super()._groups(ids, max_tokens)
        chosen = [(self._trajectories[i], i) for i in map(int, ids)]
        chosen.sort(key=lambda each: (each[0].prompt, -len(each[0].drawn)))
        by_prompt = [[i for _, i in same] for _, same in groupby(chosen, key=lambda each: each[0].prompt)]
        by_prompt.sort(key=lambda same: -len(self._trajectories[same[0]].drawn))
        groups: list[tuple[int, ...]] = []
        group: tuple[int, ...] = ()
        for row in (i for same in by_prompt for i in same):
            if group and not self._fits((*group, row), max_tokens):
                groups.append(group)
                group = ()
            group = (*group, row)
        return [*groups, group] if group else groups
