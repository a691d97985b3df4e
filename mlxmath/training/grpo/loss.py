"""Group-relative policy optimization (Shao et al. 2024, arXiv:2402.03300) and its relatives, as TRL defines them.

The loss of a token is −min(ratio · A, clip(ratio, 1 − ε, 1 + ε_high) · A) + β · KL, with the ratio of the token's
probability now to that at which it was drawn, and the advantage A of its completion; `policy_losses` has the others.

Shapes: N target positions, R completions, B rows of a micro-batch, X hidden width or vocabulary.
"""

from typing import Any, Literal

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxmath.config.methods import GrpoConfig
from mlxmath.data.batch import Batch, RolloutTargets
from mlxmath.data.batching import StepBatch
from mlxmath.models.linear_ce import LossHead
from mlxmath.models.lora.inject import adapter_arrays
from mlxmath.runtime.ranks import Ranks
from mlxmath.training.gradients import Gradients

Floats = NDArray[np.float64]

_STD_FLOOR = 1e-4
_CISPO_BOUND = 5.0
METRICS = ("clipped", "kl", "surprise")
"""What `grpo_loss` sums over the tokens beside the loss: clipped ones, KL, −log-probability (whose mean estimates
the entropy)."""


def group_advantages(rewards_R: Floats, group_size: int, scale: Literal["group", "batch", "none"]) -> Floats:
    """(R,) each reward less its group's mean, divided by the standard deviation of the group, of all, or not.

    The groups lie one after the other. The deviation is that of a sample (R − 1), with 1e-4 added.
    """
    groups = rewards_R.reshape(-1, group_size)
    differs = np.ptp(groups, axis=1, keepdims=True) > 0
    centred = np.where(differs, groups - groups.mean(axis=1, keepdims=True), 0.0)  # a mean of equals may be rounded
    if scale == "group":
        centred = centred / (groups.std(axis=1, ddof=1, keepdims=True) + _STD_FLOOR)
    elif scale == "batch":
        centred = centred / (rewards_R.std(ddof=1) + _STD_FLOOR)
    return centred.reshape(-1)


def token_weights(
    config: GrpoConfig, lengths_R: NDArray[np.int64], counted_R: NDArray[np.bool_], batch_size: int
) -> Floats:
    """(R,) the weight in the loss of each token of a completion.

    - grpo, sapo: the mean over completions of the mean over their tokens
    - dr_grpo: the sum over tokens, divided by completions times the longest length (Liu et al. 2025, arXiv:2503.20783)
    - bnpo: the mean over batches of the mean over the tokens that count in one
    - dapo, cispo: the mean over the tokens that count (Yu et al. 2025, arXiv:2503.14476)

    Args:
        config: its loss type and longest completion.
        lengths_R: tokens of all completions of an optimizer step.
        counted_R: False for those that are left out of the loss.
        batch_size: completions of a batch, of which the step accumulates one or more.
    """
    num = len(lengths_R)
    counted_lengths_R = np.where(counted_R, lengths_R, 0)
    if config.loss_type in ("grpo", "sapo"):
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
    the reference is estimated by exp(d) − d − 1 with d = log reference − log policy (Schulman's k3). Of tokens that
    `top_entropy_quantile` leaves out it counts all the same.
    """
    log_ratio_N = logprobs_N - targets.old_logprobs_N
    if config.importance_sampling_level == "sequence":
        present_N = (weights_N != 0).astype(mx.float32)
        sums_B = mx.zeros(num_rows).at[targets.rows_N].add(log_ratio_N * present_N)
        counts_B = mx.zeros(num_rows).at[targets.rows_N].add(present_N)
        log_ratio_N = (sums_B / mx.maximum(counts_B, 1))[targets.rows_N]
    losses_N, clipped_N = policy_losses(config, mx.exp(log_ratio_N), targets.advantages_N, logprobs_N)
    if targets.entropic_N is not None:
        losses_N, clipped_N = losses_N * targets.entropic_N, clipped_N & (targets.entropic_N > 0)
    if not config.beta:
        return losses_N, clipped_N, mx.zeros_like(losses_N)
    difference_N = targets.reference_logprobs_N - logprobs_N
    kl_N = mx.exp(difference_N) - difference_N - 1
    return losses_N + config.beta * kl_N, clipped_N, kl_N


def policy_losses(
    config: GrpoConfig, ratio_N: mx.array, advantages_N: mx.array, logprobs_N: mx.array
) -> tuple[mx.array, mx.array]:
    """The loss of each token without its KL, and whether it is clipped, (N,).

    - cispo: −sg(min(ratio, ε_high)) · A · log π: the weight is clipped, so every token keeps its gradient (MiniMax
      2025, arXiv:2506.13585; ε_high = 5 as in ScaleRL, arXiv:2510.13786)
    - sapo: −σ(τ (ratio − 1)) · 4 / τ · A with τ of A > 0 or of the others (Gao et al. 2025, arXiv:2511.20347)
    - all others: −min(ratio · A, clip(ratio, 1 − ε, 1 + ε_high) · A) (Schulman et al. 2017, arXiv:1707.06347)
    """
    if config.loss_type == "cispo":
        bound = _CISPO_BOUND if config.epsilon_high is None else config.epsilon_high
        weights_N = mx.stop_gradient(mx.minimum(ratio_N, bound))
        return -weights_N * advantages_N * logprobs_N, (ratio_N > bound) & (advantages_N > 0)
    if config.loss_type == "sapo":
        tau_N = mx.where(advantages_N > 0, config.sapo_temperature_pos, config.sapo_temperature_neg)
        return -mx.sigmoid(tau_N * (ratio_N - 1)) * 4 / tau_N * advantages_N, mx.zeros(ratio_N.shape, mx.bool_)
    low = 1 - config.epsilon
    high = 1 + (config.epsilon if config.epsilon_high is None else config.epsilon_high)
    losses_N = -mx.minimum(ratio_N * advantages_N, mx.clip(ratio_N, low, high) * advantages_N)
    return losses_N, ((ratio_N < low) & (advantages_N < 0)) | ((ratio_N > high) & (advantages_N > 0))


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


def target_entropies(outputs_NX: mx.array, batch: Batch, head: LossHead, *, temperature: float) -> mx.array:
    """(N,) the entropy in nats of what each target was drawn from; see `Entropies`."""
    return head.entropies(outputs_NX, batch.targets_N, temperature)


def of_rows(gradients: Gradients, step: StepBatch, ranks: Ranks) -> dict[int, list[float]]:
    """What `gradients.loss` gives of each target, by the row of the step; each rank computes a part, all get all."""
    found: dict[int, list[float]] = {}
    for index, ids in list(enumerate(step.micro_batches))[ranks.rank :: ranks.size]:
        batch = step.batch(index)
        values: list[float] = gradients.loss(batch).tolist()
        assert isinstance(batch.extra, RolloutTargets)
        rows = batch.extra.rows_N.tolist()[: batch.num_targets]
        for position, value in zip(rows, values, strict=False):
            found.setdefault(ids[position], []).append(value)
    return {row: values for part in ranks.gather("of rows", list(found.items())) for row, values in part}


class Entropies:
    """Which tokens of a step have the highest entropy (Wang et al. 2025, arXiv:2506.01939): those count alone.

    Args:
        model: that learns; asked as it is at each step.
        entropies: computes `target_entropies` of a micro-batch.
        quantile: the share that counts; 0 is the highest alone.
        ranks: each computes a part; all get all.
    """

    def __init__(self, model: Any, entropies: Gradients, quantile: float, ranks: Ranks | None = None) -> None:
        self._model, self._entropies, self._quantile, self._ranks = model, entropies, quantile, ranks or Ranks()

    def __call__(self, step: StepBatch) -> dict[int, list[bool]]:
        """By the row of the step, whether each of its targets is at or above the quantile of all the step's."""
        self._model.eval()
        try:
            found = of_rows(self._entropies, step, self._ranks)
        finally:
            self._model.train()
        least = np.quantile(np.concatenate([np.array(values) for values in found.values()]), 1 - self._quantile)
        return {row: [value >= least for value in values] for row, values in found.items()}


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
        try:
            return of_rows(self._logprobs, step, self._ranks)
        finally:
            self._model.load_weights(list(now.items()), strict=False)
            self._model.train()
