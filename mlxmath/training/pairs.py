"""Sums over the rows and the pairs of a micro-batch of `mlxmath.data.pairs` or `mlxmath.data.completions`.

Shapes: N target positions, B = 2 P rows (chosen, rejected, chosen, …), P pairs, X hidden width or vocabulary.
"""

import mlx.core as mx

from mlxmath.data.batch import Batch, PairTargets
from mlxmath.models.linear_ce import LossHead

REWARDS = ("chosen_reward", "rejected_reward", "margin", "accuracy")
"""What `reward_sums` sums. The accuracy counts pairs whose margin, chosen less rejected, is above 0."""


def pairs_of(batch: Batch) -> PairTargets:
    """What a batch of pairs has beside its targets."""
    assert isinstance(batch.extra, PairTargets)
    return batch.extra


def row_sums(values_N: mx.array, batch: Batch) -> mx.array:
    """(B,) the sum over each row's targets."""
    pairs = pairs_of(batch)
    return mx.zeros(pairs.counts_B.shape, values_N.dtype).at[pairs.rows_N].add(values_N * batch.weights_N)


def completion_logprobs(outputs_NX: mx.array, batch: Batch, head: LossHead) -> mx.array:
    """(B,) the summed log-probability of each row: what the losses are made of, and what is asked of the reference."""
    return row_sums(head.logprobs(outputs_NX, batch.targets_N), batch)


def side_sums(values_B: mx.array) -> mx.array:
    """(2,) over the chosen and over the rejected rows."""
    return values_B.reshape(-1, 2).sum(axis=0)


def reward_sums(rewards_B: mx.array) -> mx.array:
    """(4,) over the pairs: see `REWARDS`."""
    margin_P = rewards_B[0::2] - rewards_B[1::2]
    return mx.concatenate(
        [side_sums(rewards_B), mx.stack([margin_P.sum(), (margin_P > 0).astype(margin_P.dtype).sum()])]
    )
