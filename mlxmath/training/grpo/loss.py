"""Group-relative policy optimization (Shao et al. 2024, arXiv:2402.03300) and its relatives, as TRL defines them.

The loss of a token is −min(ratio · A, clip(ratio, 1 − ε, 1 + ε_high) · A) + β · KL, with the ratio of the token's
probability now to that at which it was drawn, and the advantage A of its completion.

Shapes: N target positions, R completions, B rows of a micro-batch, X hidden width or vocabulary.
"""

from typing import Any, Literal

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxmath.config.methods import GrpoConfig
from mlxmath.data.batching import Batch, RolloutTargets, StepBatch
from mlxmath.models.linear_ce import LossHead
from mlxmath.models.lora.inject import adapter_arrays
from mlxmath.runtime.ranks import Ranks
from mlxmath.training.gradients import Gradients

Floats = NDArray[np.float64]

_STD_FLOOR = 1e-4
METRICS = ("clipped", "kl", "surprise")
"""What `grpo_loss` sums over the tokens beside the loss: clipped ones, KL, −log-probability (whose mean estimates
the entropy)."""


def group_advantages(rewards_R: Floats, group_size: int, scale: Literal["group", "batch", "none"]) -> Floats:
    """(R,) each reward less its group's mean, divided by the standard deviation of the group, of all, or not.

    The groups lie one after the other. The deviation is that of a sample (R − 1), with 1e-4 added.
    """
    groups = rewards_R.reshape(-1, group_size)
    centred = groups - groups.mean(axis=1, keepdims=True)
    if scale == "group":
        centred = centred / (groups.std(axis=1, ddof=1, keepdims=True) + _STD_FLOOR)
    elif scale == "batch":
        centred = centred / (rewards_R.std(ddof=1) + _STD_FLOOR)
    return centred.reshape(-1)


def token_weights(
    config: GrpoConfig, lengths_R: NDArray[np.int64], counted_R: NDArray[np.bool_], batch_size: int
) -> Floats:
    """(R,) the weight in the loss of each token of a completion.

    - grpo: the mean over completions of the mean over their tokens
    - dr_grpo: the sum over tokens, divided by completions times the longest length (Liu et al. 2025, arXiv:2503.20783)
    - bnpo: the mean over batches of the mean over the tokens that count in one
    - dapo: the mean over the tokens that count (Yu et al. 2025, arXiv:2503.14476)

    Args:
        config: its loss type and longest completion.
        lengths_R: tokens of all completions of an optimizer step.
        counted_R: False for those that are left out of the loss.
        batch_size: completions of a batch, of which the step accumulates one or more.
    """
    num = len(lengths_R)
    counted_lengths_R = np.where(counted_R, lengths_R, 0)
    if config.loss_type == "grpo":
        weights = 1 / (num * np.maximum(lengths_R, 1))
    elif config.loss_type == "dr_grpo":
        weights = np.full(num, 1 / (num * config.max_completion_length))
    elif config.loss_type == "bnpo":
        batches = np.arange(num) // batch_size
        weights = 1 / ((batches[-1] + 1) * np.maximum(np.bincount(batches, counted_lengths_R), 1)[batches])
    else:
        weights = np.full(num, 1 / max(1, counted_lengths_R.sum()))
    return np.where(counted_R, weights, 0.0)


def token_losses(
    config: GrpoConfig, logprobs_N: mx.array, targets: RolloutTargets, weights_N: mx.array, num_rows: int
) -> tuple[mx.array, mx.array, mx.array]:
    """The loss, whether it is clipped, and the KL of each token, (N,), not yet weighted.

    A ratio of sequences is exp of the mean of their tokens' log-ratios (Zheng et al. 2025, arXiv:2507.18071). The KL to
    the reference is estimated by exp(d) − d − 1 with d = log reference − log policy (Schulman's k3).
    """
    log_ratio_N = logprobs_N - targets.old_logprobs_N
    if config.importance_sampling_level == "sequence":
        present_N = (weights_N != 0).astype(mx.float32)
        sums_B = mx.zeros(num_rows).at[targets.rows_N].add(log_ratio_N * present_N)
        counts_B = mx.zeros(num_rows).at[targets.rows_N].add(present_N)
        log_ratio_N = (sums_B / mx.maximum(counts_B, 1))[targets.rows_N]
    ratio_N = mx.exp(log_ratio_N)
    low = 1 - config.epsilon
    high = 1 + (config.epsilon if config.epsilon_high is None else config.epsilon_high)
    advantages_N = targets.advantages_N
    losses_N = -mx.minimum(ratio_N * advantages_N, mx.clip(ratio_N, low, high) * advantages_N)
    clipped_N = ((ratio_N < low) & (advantages_N < 0)) | ((ratio_N > high) & (advantages_N > 0))
    if not config.beta:
        return losses_N, clipped_N, mx.zeros_like(losses_N)
    difference_N = targets.reference_logprobs_N - logprobs_N
    kl_N = mx.exp(difference_N) - difference_N - 1
    return losses_N + config.beta * kl_N, clipped_N, kl_N


def grpo_loss(outputs_NX: mx.array, batch: Batch, head: LossHead, *, config: GrpoConfig) -> mx.array:
    """Σ weight · token loss, and the sums that `METRICS` names; see `Loss`."""
    targets = batch.extra
    assert isinstance(targets, RolloutTargets)
    logprobs_N = head.logprobs(outputs_NX, batch.targets_N, config.temperature)
    losses_N, clipped_N, kl_N = token_losses(config, logprobs_N, targets, batch.weights_N, batch.inputs_BL.shape[0])
    metrics = mx.stack([clipped_N.astype(mx.float32), kl_N, -logprobs_N])
    present_N = (batch.weights_N != 0).astype(mx.float32)
    sums = mx.stop_gradient((metrics * present_N).sum(axis=1))
    return mx.concatenate([(losses_N * batch.weights_N).sum()[None], sums])


def target_logprobs(outputs_NX: mx.array, batch: Batch, head: LossHead, *, temperature: float) -> mx.array:
    """(N,) the log-probability of each target: what is asked of a reference."""
    return head.logprobs(outputs_NX, batch.targets_N, temperature)


class Reference:
    """Log-probabilities under the model as it was at the start: the base, or the adapter that the run started from.

    Args:
        model: at the start.
        logprobs: computes `target_logprobs` of a micro-batch.
        ranks: each computes a part; all get all.
    """

    def __init__(self, model: Any, logprobs: Gradients, ranks: Ranks | None = None) -> None:
        self._model, self._logprobs, self._ranks = model, logprobs, ranks or Ranks()
        self._arrays = {name: mx.array(array) for name, array in adapter_arrays(model).items()}
        mx.eval(list(self._arrays.values()))

    def __call__(self, step: StepBatch) -> dict[int, list[float]]:
        """By the row of the step, of each of its targets."""
        now = adapter_arrays(self._model)
        self._model.load_weights(list(self._arrays.items()), strict=False)
        self._model.eval()
        found: dict[int, list[float]] = {}
        ranks = self._ranks
        try:
            for index, ids in list(enumerate(step.micro_batches))[ranks.rank :: ranks.size]:
                batch = step.batch(index)
                values: list[float] = self._logprobs.loss(batch).tolist()
                assert isinstance(batch.extra, RolloutTargets)
                rows = batch.extra.rows_N.tolist()[: batch.num_targets]
                for position, value in zip(rows, values, strict=False):
                    found.setdefault(ids[position], []).append(value)
        finally:
            self._model.load_weights(list(now.items()), strict=False)
            self._model.train()
        return {row: values for part in ranks.gather("reference", list(found.items())) for row, values in part}
