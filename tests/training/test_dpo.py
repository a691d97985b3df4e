"""Preference losses and gradients against an independent implementation in torch."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxmath.config.losses import DpoConfig
from mlxmath.data.batch import Batch
from mlxmath.models.kernels.cpu import CpuKernels
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.linear_ce import FullLogits
from mlxmath.training.dpo import METRICS
from mlxmath.training.pairs import completion_logprobs
from tests.training.preference_case import COLUMNS, LENGTH, LENGTHS, ROWS, VOCABULARY, WIDTH, batch_of, case, ours

CONFIGS = [
    {}, {"beta": 0.7}, {"label_smoothing": 0.2}, {"loss_type": "ipo"}, {"loss_type": "ipo", "beta": 0.5},
    {"loss_type": "orpo"}, {"loss_type": "orpo", "beta": 0.9},
    {"loss_type": "simpo"}, {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "label_smoothing": 0.1},
    {"loss_type": "simpo", "cpo_alpha": 0.4}, {"loss_type": "cpo"}, {"loss_type": "cpo", "cpo_alpha": 0.0},
    {"loss_type": "cpo", "beta": 0.4, "cpo_alpha": 0.7, "label_smoothing": 0.2},
]  # fmt: skip


def in_torch(config: DpoConfig, case: dict[str, np.ndarray]) -> tuple[float, np.ndarray, list[float]]:
    """Loss, gradient of the hidden states and rewards, on padded rows, as the papers and TRL's manual write them."""
    torch = pytest.importorskip("torch", reason="the parity extra is not installed")
    log_sigmoid = torch.nn.functional.logsigmoid
    hidden = torch.tensor(case["hidden"], requires_grad=True)
    logprobs = torch.log_softmax(hidden @ torch.tensor(case["head"]).T, -1)
    logprobs = logprobs.gather(-1, torch.tensor(case["tokens"])[..., None])[..., 0]
    lengths = torch.tensor(LENGTHS)
    sums = (logprobs * (torch.arange(LENGTH)[None] < lengths[:, None])).sum(-1)
    reference = torch.tensor(case["reference"])
    if config.loss_type == "orpo":
        average = sums / lengths
        odds = average.exp() / (1 - average.exp())
        rewards = config.beta * average
        losses = -average[::2] - config.beta * log_sigmoid(torch.log(odds[::2] / odds[1::2]))
    elif config.loss_type in ("simpo", "cpo"):
        rewards = config.beta * (sums / lengths if config.loss_type == "simpo" else sums)
        margin = rewards[::2] - rewards[1::2] - (config.simpo_gamma if config.loss_type == "simpo" else 0)
        losses = -log_sigmoid(margin) * (1 - config.label_smoothing) - log_sigmoid(-margin) * config.label_smoothing
        losses = losses - config.nll_weight * sums[::2].sum() / lengths[::2].sum()
    elif config.loss_type == "ipo":
        ratio = sums / lengths - reference / lengths
        rewards = config.beta * ratio
        losses = (ratio[::2] - ratio[1::2] - 0.5 / config.beta) ** 2
    else:
        rewards = config.beta * (sums - reference)
        margin = rewards[::2] - rewards[1::2]
        losses = -log_sigmoid(margin) * (1 - config.label_smoothing) - log_sigmoid(-margin) * config.label_smoothing
    losses.sum().backward()
    found = rewards.detach().numpy()
    metrics = [found[::2].sum(), found[1::2].sum(), (found[::2] - found[1::2]).sum(), (found[::2] > found[1::2]).sum()]
    of_sides = [sums[::2].sum().item(), sums[1::2].sum().item()]
    return losses.sum().item(), hidden.grad.numpy(), [*metrics, *of_sides]


def unfilled(data: dict[str, np.ndarray]) -> Batch:
    whole = batch_of(data)
    count = len(ROWS)
    return Batch(
        whole.inputs_BL, whole.positions_N[:count], whole.targets_N[:count], whole.weights_N[:count], (), 0, 3,
        whole.extra._replace(rows_N=whole.extra.rows_N[:count]),
    )  # fmt: skip


@pytest.mark.parametrize("kernels", [None, CpuKernels(), Kernels()], ids=["logits", "cpu", "portable"])
@pytest.mark.parametrize("changes", CONFIGS)
def test_loss_gradient_and_metrics_equal_torch(changes: Any, kernels: Any) -> None:
    config = DpoConfig(**changes)
    for seed in range(3):
        loss, gradient, metrics = in_torch(config, case(seed))
        sums, found = ours(config, case(seed), kernels)
        assert sums[0] == pytest.approx(loss, rel=1e-5, abs=1e-5)
        np.testing.assert_allclose(found, gradient, atol=1e-5 * max(1.0, np.abs(gradient).max()))
        assert len(metrics) == len(METRICS)
        np.testing.assert_allclose(sums[1:], metrics, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ({}, {"beta": 0.2}), ({}, {"label_smoothing": 0.1}), ({}, {"loss_type": "ipo"}), ({}, {"loss_type": "orpo"}),
        ({"loss_type": "ipo"}, {"beta": 0.2}), ({"loss_type": "orpo"}, {"beta": 0.2}),
        ({}, {"loss_type": "simpo"}), ({}, {"loss_type": "cpo"}), ({"loss_type": "simpo"}, {"simpo_gamma": 1.5}),
        ({"loss_type": "cpo"}, {"cpo_alpha": 0.5}), ({"loss_type": "cpo"}, {"beta": 0.2}),
        ({"loss_type": "simpo"}, {"label_smoothing": 0.2}),
    ],
)  # fmt: skip
def test_every_option_changes_the_gradient(base: Any, change: Any) -> None:
    before, after = (ours(DpoConfig(**settings), case())[1] for settings in (base, base | change))
    assert np.abs(after - before).max() > 1e-4


@pytest.mark.parametrize("changes", CONFIGS)
def test_the_reference_counts_where_it_is_needed(changes: Any) -> None:
    moved = case()
    moved["reference"] = moved["reference"] + np.array([1.0, 0, 0, 0, 0, 0])
    before, after = (ours(DpoConfig(**changes), one)[1] for one in (case(), moved))
    assert (before == after).all() != DpoConfig(**changes).needs_reference


def test_at_the_start_the_policy_is_the_reference() -> None:
    """By hand: the margin is 0, so the loss is log 2 a pair, 1 / (4 β²) for IPO, and no pair is ahead."""
    data = case()
    logprobs = completion_logprobs(
        mx.array((data["hidden"] @ data["head"].T)[ROWS, COLUMNS].astype(np.float32)), unfilled(data), FullLogits()
    )
    data["reference"] = np.array(logprobs, np.float64)
    for changes, expected in (({}, np.log(2)), ({"label_smoothing": 0.3}, np.log(2)), ({"loss_type": "ipo"}, 25.0)):
        sums, _ = ours(DpoConfig(**changes), data)
        assert sums[0] == pytest.approx(3 * expected, rel=1e-5)
        np.testing.assert_allclose(sums[1:4], 0, atol=1e-6)


def test_a_completion_known_by_heart_has_finite_odds() -> None:
    data = case()
    data["hidden"], data["head"] = np.zeros_like(data["hidden"]), np.eye(VOCABULARY, WIDTH)
    data["hidden"][..., 0], data["tokens"][:] = 60.0, 0  # probability 1 for every token of every row
    sums, gradient = ours(DpoConfig(loss_type="orpo"), data)
    assert np.isfinite(sums).all() and np.isfinite(gradient).all()
    assert sums[0] == pytest.approx(3 * 0.1 * np.log(2), rel=1e-4)
