"""A reward model's loss: the score of the chosen completion is to be above that of the rejected one.

A row's score is the scalar product of a vector, the score head, with the hidden state at its last token. A batch holds
pairs (see `mlxmath.data.pairs`, `scored`) and in its `more` the head as `score` (D,).

Shapes: N target positions, B = 2 P rows (chosen, rejected, chosen, …), P pairs, D hidden width.
"""

from dataclasses import dataclass
from typing import NoReturn

import mlx.core as mx
import mlx.nn as nn

from mlxmath.config.objectives import RewardModelConfig
from mlxmath.data.batching import Batch
from mlxmath.errors import MlxmathError
from mlxmath.models.kernels.base import Kernels
from mlxmath.models.lm_head import Head
from mlxmath.objectives.pair_sums import reward_sums, row_sums


@dataclass(frozen=True)
class BradleyTerry:
    """Σ over pairs of −log σ(r chosen − r rejected) + c (r chosen + r rejected)²; see `Objective`.

    (Bradley and Terry 1952; Ouyang et al. 2022, arXiv:2203.02155, equation 1. The second term keeps scores around 0:
    Eisenstein et al. 2023, arXiv:2312.09244.)
    """

    config: RewardModelConfig

    def from_hidden(self, hidden_ND: mx.array, batch: Batch, head: Head, kernels: Kernels) -> mx.array:  # noqa: ARG002
        """The loss, the sums that `REWARDS` names, and the gradient of the score head (D,)."""
        scores_B = row_sums(scores_of(hidden_ND, batch), batch)
        losses_P, d_scores_B = self._losses(scores_B)
        weights_N = d_scores_B[batch.more["rows"]] * batch.weights_N
        d_score_D = (weights_N[:, None] * hidden_ND.astype(mx.float32)).sum(axis=0)
        return mx.concatenate(
            [losses_P.sum()[None], mx.stop_gradient(mx.concatenate([reward_sums(scores_B), d_score_D]))]
        )

    def _losses(self, scores_B: mx.array) -> tuple[mx.array, mx.array]:
        """Of each pair (P,), and their sum's gradient (B,)."""
        chosen_P, rejected_P = scores_B[0::2], scores_B[1::2]
        losses_P = -nn.log_sigmoid(chosen_P - rejected_P)
        d_margin_P = -mx.sigmoid(rejected_P - chosen_P)
        d_scores_P2 = mx.stack([d_margin_P, -d_margin_P], axis=1)
        if coefficient := self.config.center_rewards_coefficient:
            sums_P = chosen_P + rejected_P
            losses_P = losses_P + coefficient * mx.square(sums_P)
            d_scores_P2 = d_scores_P2 + 2 * coefficient * sums_P[:, None]
        return losses_P, d_scores_P2.reshape(-1)

    def from_logits(self, logits_NV: mx.array, batch: Batch) -> NoReturn:  # noqa: ARG002
        """Logits do not tell the hidden states."""
        raise _needs_hidden()


@dataclass(frozen=True)
class Scores:
    """Not a loss: the score of each target position (N,)."""

    def from_hidden(self, hidden_ND: mx.array, batch: Batch, head: Head, kernels: Kernels) -> mx.array:  # noqa: ARG002
        """In float32."""
        return scores_of(hidden_ND, batch)

    def from_logits(self, logits_NV: mx.array, batch: Batch) -> NoReturn:  # noqa: ARG002
        """Logits do not tell the hidden states."""
        raise _needs_hidden()


def scores_of(hidden_ND: mx.array, batch: Batch) -> mx.array:
    """(N,) in float32 whatever the hidden states' type."""
    return hidden_ND.astype(mx.float32) @ batch.more["score"]


def _needs_hidden() -> MlxmathError:
    return MlxmathError(
        "the hidden states of this model cannot be had apart from its logits; choose another for a reward model."
    )
