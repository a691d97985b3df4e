"""The Bradley-Terry loss, its gradients and the score head's, against an independent implementation in torch."""

from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlxmath.config.losses import RewardModelConfig
from mlxmath.data.batch import Batch, PairTargets
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.linear_ce import FusedHead
from mlxmath.models.lm_head import Head
from mlxmath.training.pairs import REWARDS
from mlxmath.training.reward_model import bradley_terry_loss

PAIRS, WIDTH, FILL = 4, 6, 2


def case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2 * PAIRS, WIDTH)), rng.normal(size=WIDTH)


def ours(config: RewardModelConfig, hidden: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums, and the gradient of the hidden states; the last two positions only fill up a shape."""
    count = 2 * PAIRS
    batch = Batch(
        mx.zeros((count, 3), mx.int32), mx.zeros(count + FILL, mx.int32), mx.zeros(count + FILL, mx.int32),
        mx.array([1.0] * count + [0.0] * FILL), (), 0, PAIRS,
        PairTargets(
            mx.array([*range(count)] + [0] * FILL), mx.ones(count, mx.int32), mx.arange(PAIRS),
            score_D=mx.array(score.astype(np.float32)),
        ),
    )  # fmt: skip
    filled = mx.array(np.concatenate([hidden, np.full((FILL, WIDTH), 9.0)]).astype(np.float32))
    head = Head(nn.Linear(WIDTH, 3, bias=False))

    def loss(hidden_ND: mx.array) -> Any:
        sums = partial(bradley_terry_loss, config=config)(hidden_ND, batch, FusedHead(head, Kernels()))
        return sums[0], sums

    (_, sums), gradient = mx.value_and_grad(loss)(filled)
    return np.array(sums), np.array(gradient)


@pytest.mark.parametrize("coefficient", [0.0, 0.01, 0.5])
def test_loss_and_gradients_equal_torch(coefficient: float) -> None:
    torch = pytest.importorskip("torch", reason="the parity extra is not installed")
    for seed in range(3):
        states, head = case(seed)
        hidden, score = (torch.tensor(array, requires_grad=True) for array in (states, head))
        rewards = hidden @ score
        chosen, rejected = rewards[::2], rewards[1::2]
        loss = -torch.nn.functional.logsigmoid(chosen - rejected).sum() + coefficient * ((chosen + rejected) ** 2).sum()
        loss.backward()
        config = RewardModelConfig(center_rewards_coefficient=coefficient)
        sums, gradient = ours(config, states, head)
        assert sums[0] == pytest.approx(loss.item(), rel=1e-5)
        np.testing.assert_allclose(gradient[: 2 * PAIRS], hidden.grad.numpy(), atol=1e-5)
        assert not gradient[2 * PAIRS :].any()
        np.testing.assert_allclose(sums[1 + len(REWARDS) :], score.grad.numpy(), atol=1e-5)
        margins = (chosen - rejected).detach()
        expected = [chosen.sum().item(), rejected.sum().item(), margins.sum(), (margins > 0).sum()]
        np.testing.assert_allclose(sums[1 : 1 + len(REWARDS)], expected, rtol=1e-5, atol=1e-5)


def test_the_option_changes_the_gradients() -> None:
    states, head = case(0)
    before, after = (ours(RewardModelConfig(center_rewards_coefficient=value), states, head) for value in (0.0, 0.01))
    assert np.abs(after[1] - before[1]).max() > 1e-4
    assert np.abs(after[0][5:] - before[0][5:]).max() > 1e-4
