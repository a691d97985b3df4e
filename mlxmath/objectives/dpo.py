"""Losses of preference tuning: DPO, IPO and ORPO, as TRL defines them.

A batch holds pairs (see `mlxmath.data.pairs`); the losses are sums over pairs. Its `more` holds `rows` (N,), `counts`
(B,) and, but for ORPO, `reference` (B,), the summed log-probabilities of each row under the reference model.

Shapes: N target positions, B = 2 P rows (chosen, rejected, chosen, …), P pairs, D hidden width, V vocabulary.
"""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlxmath.config.objectives import DpoConfig
from mlxmath.data.batching import Batch
from mlxmath.models.kernels.base import Kernels
from mlxmath.models.linear_ce import linear_logprobs
from mlxmath.models.lm_head import Head
from mlxmath.objectives.grpo import logits_logprobs
from mlxmath.objectives.pair_sums import REWARDS, reward_sums, row_sums, side_sums

METRICS = (*REWARDS, "chosen_logprob", "rejected_logprob")
"""What the losses sum over the pairs beside themselves. A reward is beta times the log-ratio to the reference (for
ORPO, beta times the log-probability); log-probabilities are those of whole completions."""
_LEAST_DOUBT = 1e-6
"""Below this probability of anything else, a completion's odds no longer grow."""


def pair_losses(config: DpoConfig, logprobs_B: mx.array, batch: Batch) -> tuple[mx.array, mx.array]:
    """The loss of each pair (P,) and the reward of each row (B,), out of the rows' summed log-probabilities.

    With the margin m of a pair's log-ratios log π(y|x) − log π_ref(y|x), chosen less rejected:

    - sigmoid: −(1 − ε) log σ(β m) − ε log σ(−β m) (Rafailov et al. 2023, arXiv:2305.18290, equation 7; ε is the label
      smoothing of Mitchell 2023)
    - ipo: (m − 1 / (2 β))², with log-probabilities averaged over a row's tokens (Azar et al. 2023, arXiv:2310.12036,
      equation 17)
    - orpo: −log p(chosen) − β log σ(log odds(chosen) − log odds(rejected)), where p is the geometric mean of the
      tokens' probabilities and odds = p / (1 − p) (Hong et al. 2024, arXiv:2403.07691, equations 6 and 7)
    """
    if config.loss_type != "sigmoid":
        logprobs_B = logprobs_B / batch.more["counts"]
    if config.loss_type == "orpo":
        log_odds_B = logprobs_B - mx.log(mx.maximum(-mx.expm1(logprobs_B), _LEAST_DOUBT))
        ratio_P = log_odds_B[0::2] - log_odds_B[1::2]
        return -logprobs_B[0::2] - config.beta * nn.log_sigmoid(ratio_P), config.beta * logprobs_B
    reference_B = batch.more["reference"]
    if config.loss_type == "ipo":
        reference_B = reference_B / batch.more["counts"]
    log_ratio_B = logprobs_B - reference_B
    margin_P = log_ratio_B[0::2] - log_ratio_B[1::2]
    if config.loss_type == "ipo":
        losses_P = mx.square(margin_P - 1 / (2 * config.beta))
    else:
        scaled_P, smoothing = config.beta * margin_P, config.label_smoothing
        losses_P = -(1 - smoothing) * nn.log_sigmoid(scaled_P)
        if smoothing:
            losses_P = losses_P - smoothing * nn.log_sigmoid(-scaled_P)
    return losses_P, config.beta * log_ratio_B


@dataclass(frozen=True)
class PreferenceOptimization:
    """Σ over pairs; see `Objective` and `pair_losses`."""

    config: DpoConfig

    def from_hidden(self, hidden_ND: mx.array, batch: Batch, head: Head, kernels: Kernels) -> mx.array:
        """In one pass, without the logits. Beside the loss, the sums that `METRICS` names."""
        return self._sums(linear_logprobs(hidden_ND, batch.targets_N, head, kernels), batch)

    def from_logits(self, logits_NV: mx.array, batch: Batch) -> mx.array:
        """In float32 whatever the logits' type."""
        return self._sums(logits_logprobs(logits_NV, batch.targets_N, 1.0), batch)

    def _sums(self, logprobs_N: mx.array, batch: Batch) -> mx.array:
        logprobs_B = row_sums(logprobs_N, batch)
        losses_P, rewards_B = pair_losses(self.config, logprobs_B, batch)
        metrics = mx.concatenate([reward_sums(rewards_B), side_sums(logprobs_B)])
        return mx.concatenate([losses_P.sum()[None], mx.stop_gradient(metrics)])


@dataclass(frozen=True)
class RowLogprobs:
    """Not a loss: the summed log-probability of each row (B,), for the reference."""

    def from_hidden(self, hidden_ND: mx.array, batch: Batch, head: Head, kernels: Kernels) -> mx.array:
        """In chunks."""
        return row_sums(linear_logprobs(hidden_ND, batch.targets_N, head, kernels), batch)

    def from_logits(self, logits_NV: mx.array, batch: Batch) -> mx.array:
        """In float32."""
        return row_sums(logits_logprobs(logits_NV, batch.targets_N, 1.0), batch)
