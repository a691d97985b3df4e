"""Scored completions as rows, windows and micro-batches, so that the training loop takes them like any others."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxmath.data.batches import Batch, Ids, Window, WindowPlan, make_batch


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
    """Of `drawn`, when they were."""
    reference: tuple[float, ...] = ()
    """Of `drawn`, under the reference model (none: there is no such)."""

    def plain(self) -> list[Any]:
        """As JSON can hold it."""
        return [getattr(self, field.name) for field in fields(self)]

    @classmethod
    def from_plain(cls, values: Sequence[Any]) -> "Trajectory":
        """The inverse of `plain`."""
        names = [field.name for field in fields(cls)]
        tupled: list[Any] = [tuple(value) if isinstance(value, list) else value for value in values]
        return cls(**dict(zip(names, tupled, strict=True)))


class Experience:
    """The trajectories of an optimizer step, as `mlxmath.data.batches.Rows`."""

    def __init__(self, trajectories: Sequence[Trajectory]) -> None:
        self.trajectories = list(trajectories)
        self.lengths: NDArray[np.int64] = np.array([len(t.prompt) + len(t.drawn) for t in trajectories], np.int64)
        self.ids = np.array([t.prompt_id for t in trajectories], np.int64)
        self.num_targets = sum(len(t.drawn) for t in trajectories)

    def row(self, index: int) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """Tokens (L,) and loss mask (L,) of a row: what was drawn is a target."""
        chosen = self.trajectories[index]
        tokens = np.array(chosen.prompt + chosen.drawn, np.int64)
        return tokens, (np.arange(len(tokens)) >= len(chosen.prompt)).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.trajectories)


@dataclass(frozen=True)
class ExperienceWindow(Window):
    """The micro-batches of an optimizer step, with what `Targets` names."""

    def batch(self, index: int) -> Batch:
        """A micro-batch, padded. Its weights are multiplied by the window's targets, by which the loop divides."""
        rows = self.plan.rows
        assert isinstance(rows, Experience)
        ids = self.micro_batches[index]
        batch = make_batch(rows, ids, self.plan.shape)
        chosen = [rows.trajectories[i] for i in ids]
        counts = [len(t.drawn) for t in chosen]
        num_fill = batch.targets_N.size - sum(counts)

        def of_rows(values: Sequence[float]) -> mx.array:
            return filled(np.repeat(np.array(values, np.float32), counts))

        def filled(values: NDArray[Any]) -> mx.array:
            return mx.array(np.concatenate([values, np.zeros(num_fill, values.dtype)]))

        def of_tokens(values: Sequence[tuple[float, ...]]) -> mx.array:
            return filled(np.concatenate([np.array(value, np.float32) for value in values]))

        return replace(
            batch,
            weights_N=of_rows([t.weight * rows.num_targets for t in chosen]),
            more={
                "advantages": of_rows([t.advantage for t in chosen]),
                "old_logprobs": of_tokens([t.logprobs for t in chosen]),
                "reference_logprobs": of_tokens([t.reference or t.logprobs for t in chosen]),
                "rows": filled(np.repeat(np.arange(len(ids), dtype=np.int32), counts)),
            },
        )


class ExperiencePlan(WindowPlan):
    """All trajectories of a step are one window."""

    def window(self, ids: Ids, epoch: int, index: int) -> Window:
        """See `WindowPlan`."""
        plain = super().window(ids, epoch, index)
        return ExperienceWindow(self, plain.micro_batches, epoch, index)

    def whole(self, epoch: int, index: int) -> Window:
        """The window of all trajectories."""
        return self.window(np.arange(len(self.rows)), epoch, index)
