"""Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv:2402.01306): completions that are desirable or not.

With r = log π(y|x) − log π_ref(y|x) of a completion and the baseline z, which has no gradient, the loss is

    desirable:    λ_D (1 − σ(β (r − z)))
    undesirable:  λ_U (1 − σ(β (z − r)))

(equations 7 and 8), averaged over completions. z = max(0, mean of r(x, y')) estimates the divergence from the
reference, where y' is the completion to another prompt of the same step; the paper and TRL take those of a micro-batch,
which here depends on the machine.

Shapes: N target positions, X hidden width or vocabulary, B rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx

from mlxmath.config.losses import DpoConfig
from mlxmath.data.batch import Batch
from mlxmath.data.batching import StepBatch
from mlxmath.data.completions import Whole
from mlxmath.models.linear_ce import LossHead
from mlxmath.training.accumulate import Workers
from mlxmath.training.held_out import mean_loss
from mlxmath.training.pairs import REWARDS, completion_logprobs, pairs_of

METRICS = (*REWARDS, "chosen_logprob", "rejected_logprob", "kl")
"""What the loss sums beside itself. Chosen are the desirable completions; each side's means are over its own. The
accuracy counts completions on the right side of the baseline."""


def kto_loss(outputs_NX: mx.array, batch: Batch, head: LossHead, *, config: DpoConfig) -> mx.array:
    """Σ over completions, and the sums that `METRICS` names; see the module."""
    targets = pairs_of(batch)
    desirable_B, scales_B, kl, reference_B = targets.desirable_B, targets.scales_B, targets.kl, targets.reference_B
    assert desirable_B is not None and scales_B is not None and kl is not None and reference_B is not None
    logprobs_B = completion_logprobs(outputs_NX, batch, head)
    ratio_B = logprobs_B - reference_B
    sign_B = 2 * desirable_B - 1
    ahead_B = sign_B * (ratio_B - kl)
    weights_B = mx.where(desirable_B > 0, config.desirable_weight, config.undesirable_weight)
    losses_B = weights_B * mx.sigmoid(-config.beta * ahead_B)
    sides = [scales_B * desirable_B, scales_B * (1 - desirable_B)]
    chosen, rejected = ((config.beta * ratio_B * side_B).sum() for side_B in sides)
    metrics = mx.stack([
        chosen, rejected, chosen - rejected, (ahead_B > 0).astype(mx.float32).sum(),
        *((logprobs_B * side_B).sum() for side_B in sides), kl * len(ratio_B),
    ])  # fmt: skip
    return mx.concatenate([losses_B.sum()[None], mx.stop_gradient(metrics)])


class Baseline:
    """Gives steps the baseline that all of them together have, by all workers and ranks.

    Args:
        workers: hold the model, and compute its loss and what the reference says.
        beta: β.
    """

    def __init__(self, workers: Workers, beta: float) -> None:
        self._workers, self._beta = workers, beta

    def __call__(self, steps: Sequence[Any], stopped: Callable[[], bool]) -> Sequence[StepBatch] | None:
        """The steps with it; None if `stopped()` came true on any rank."""
        found = mean_loss(self._workers, [step.mismatched() for step in steps], stopped)
        if found is None:
            return None
        _, _, *means = found
        kl = means[0] / self._beta  # all rows are called desirable: this is the mean of their rewards
        labels = [step.rows.is_desirable[list(step.row_ids)] for step in steps]
        whole = Whole(0.0 if kl < 0 else kl, sum(map(len, labels)), int(sum(found.sum() for found in labels)))
        return [replace(step, whole=whole) for step in steps]

    def of(self, step: StepBatch, stopped: Callable[[], bool]) -> StepBatch | None:
        """The same of one step."""
        found = self([step], stopped)
        return found[0] if found else None
