"""GRPO's advantages, losses and gradients against an independent implementation in torch, off-policy."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxmath.config.methods import GrpoConfig
from mlxmath.models import linear_ce
from mlxmath.models.kernels.cpu import CpuKernels
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.linear_ce import linear_logprobs
from mlxmath.training.grpo.loss import group_advantages
from tests.models.adapted import D, N, V, heads
from tests.training.grpo_case import BATCH_SIZE, LENGTH, LENGTHS, LOSSES, ROWS, TRUNCATED, VOCABULARY, case, ours


def in_torch(config: GrpoConfig, case: dict[str, np.ndarray]) -> tuple[float, np.ndarray]:
    """Loss and gradient of the logits, on padded rows with a mask, as the papers and TRL's manual write them."""
    torch = pytest.importorskip("torch", reason="the parity extra is not installed")
    logits = torch.tensor(case["logits"], requires_grad=True)
    logprobs = torch.log_softmax(logits / config.temperature, -1)
    logprobs = logprobs.gather(-1, torch.tensor(case["tokens"])[..., None])[..., 0]
    mask = (torch.arange(LENGTH)[None] < torch.tensor(LENGTHS)[:, None]).double()
    if config.mask_truncated_completions:
        mask = mask * torch.tensor(~TRUNCATED)[:, None]
    advantage = torch.tensor(case["advantages"])[:, None]
    log_ratio = logprobs - torch.tensor(case["old"])
    if config.importance_sampling_level == "sequence":
        log_ratio = ((log_ratio * mask).sum(-1) / mask.sum(-1).clamp(min=1))[:, None]
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - config.epsilon, 1 + (config.epsilon_high or config.epsilon))
    if config.loss_type == "cispo":
        loss = -ratio.clamp(max=config.epsilon_high or 5.0).detach() * advantage * logprobs
    elif config.loss_type == "sapo":
        tau = torch.where(advantage > 0, config.sapo_temperature_pos, config.sapo_temperature_neg)
        loss = (-torch.sigmoid(tau * (ratio - 1)) * 4 / tau * advantage).expand(ROWS, LENGTH)
    else:
        loss = -torch.min(ratio * advantage, clipped * advantage).expand(ROWS, LENGTH)
    if config.top_entropy_quantile < 1:
        found = torch.distributions.Categorical(logits=(logits / config.temperature).detach()).entropy()
        loss = loss * (found >= torch.quantile(found[mask > 0], 1 - config.top_entropy_quantile))
    if config.beta:
        d = torch.tensor(case["reference"]) - logprobs
        loss = loss + config.beta * (d.exp() - d - 1)
    if config.loss_type in ("grpo", "sapo"):
        total = ((loss * mask).sum(-1) / mask.sum(-1).clamp(min=1)).mean()
    elif config.loss_type == "dr_grpo":
        total = (loss * mask).sum() / (ROWS * config.max_completion_length)
    elif config.loss_type == "bnpo":
        batches = zip((loss * mask).split(BATCH_SIZE), mask.split(BATCH_SIZE), strict=True)
        total = torch.stack([losses.sum() / counted.sum().clamp(min=1) for losses, counted in batches]).mean()
    else:
        total = (loss * mask).sum() / mask.sum()
    total.backward()
    return total.item(), logits.grad.numpy()


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize(
    "more",
    [
        {}, {"beta": 0.3}, {"epsilon_high": 0.35, "temperature": 0.7},
        {"mask_truncated_completions": True, "beta": 0.1}, {"top_entropy_quantile": 0.4, "beta": 0.1},
    ],
)  # fmt: skip
def test_loss_and_gradient_equal_torch(loss_type: Any, level: Any, more: Any) -> None:
    config = GrpoConfig(loss_type=loss_type, importance_sampling_level=level, max_completion_length=LENGTH + 2, **more)
    clipped = 0.0
    for seed in range(3):
        loss, gradient = in_torch(config, case(seed))
        sums, found = ours(config, case(seed))
        assert sums[0] == pytest.approx(loss, abs=1e-5)
        np.testing.assert_allclose(found, gradient, atol=1e-5)
        clipped += float(sums[1])
    clips = loss_type != "sapo" and (loss_type != "cispo" or "epsilon_high" in more)
    assert (clipped > 0) == clips  # ratios beyond the bounds occur


@pytest.mark.parametrize(
    "change",
    [
        {"beta": 0.1}, {"epsilon": 0.05}, {"epsilon_high": 0.5}, {"temperature": 0.5},
        {"importance_sampling_level": "sequence"}, {"mask_truncated_completions": True}, {"loss_type": "grpo"},
        {"loss_type": "dr_grpo"}, {"loss_type": "bnpo"}, {"loss_type": "cispo"}, {"loss_type": "sapo"},
        {"loss_type": "dr_grpo", "max_completion_length": 20}, {"loss_type": "cispo", "epsilon_high": 0.9},
        {"loss_type": "sapo", "sapo_temperature_pos": 2.0}, {"loss_type": "sapo", "sapo_temperature_neg": 2.0},
        {"top_entropy_quantile": 0.5}, {"top_entropy_quantile": 0.0},
    ],
)  # fmt: skip
def test_every_option_changes_the_gradient(change: Any) -> None:
    base = {"max_completion_length": LENGTH + 2}
    if len(change) == 2:
        base["loss_type"] = change["loss_type"]
    changes = [
        np.abs(ours(GrpoConfig(**base | change), case(seed))[1] - ours(GrpoConfig(**base), case(seed))[1]).max()
        for seed in range(6)
    ]
    assert max(changes) > 1e-4


def test_advantages_by_hand() -> None:
    rewards = np.array([1.0, 0, 0, 1, 1, 1, 1, 1])
    by_group = group_advantages(rewards, 4, "group")
    np.testing.assert_allclose(by_group[:2], [0.5 / (np.sqrt(1 / 3) + 1e-4), -0.5 / (np.sqrt(1 / 3) + 1e-4)])
    assert not by_group[4:].any()
    np.testing.assert_allclose(group_advantages(rewards, 4, "none")[:4], [0.5, -0.5, -0.5, 0.5])
    deviation = rewards.std(ddof=1)
    np.testing.assert_allclose(group_advantages(rewards, 4, "batch")[0], 0.5 / (deviation + 1e-4))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_have_no_advantage_however_their_mean_is_rounded(scale: Any) -> None:
    rewards = np.array([0.7] * 6 + [0.1, 0.1, 0.1, 0.1, 0.1, 0.2])
    found = group_advantages(rewards, 6, scale)
    assert rewards[:6].mean() != 0.7 and not found[:6].any() and found[6:].all()


def test_on_policy_the_gradient_is_that_of_the_weighted_log_likelihood() -> None:
    data = case()
    log_sum = np.log(np.exp(data["logits"]).sum(-1))
    data["old"] = np.take_along_axis(data["logits"], data["tokens"][..., None], -1)[..., 0] - log_sum
    sums, gradient = ours(GrpoConfig(loss_type="dapo"), data)
    onehot = np.eye(VOCABULARY)[data["tokens"]]
    softmax = np.exp(data["logits"] - log_sum[..., None])
    mask = np.arange(LENGTH)[None] < LENGTHS[:, None]
    expected = -(onehot - softmax) * (data["advantages"][:, None] * mask)[..., None] / LENGTHS.sum()
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    assert sums[1] == 0


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("kernels", [CpuKernels, Kernels])
@pytest.mark.parametrize("name", ["untied", "bias", "soft cap", "4 bits"])
def test_logprobs_of_a_head(monkeypatch: pytest.MonkeyPatch, name: str, kernels: Any, temperature: float) -> None:
    monkeypatch.setattr(linear_ce, "CHUNK_BYTES", 7 * 4 * V)
    head = heads()[name]
    hidden, targets, factors = mx.random.normal((N, D)), mx.random.randint(0, V, (N,)), mx.random.normal((N,))

    def plain(hidden: mx.array) -> mx.array:
        logits = head.logits(hidden)
        logits = head.soft_cap * mx.tanh(logits / head.soft_cap) if head.soft_cap else logits
        logits = logits / temperature
        chosen = mx.take_along_axis(logits, targets[:, None], axis=-1).squeeze(-1)
        return chosen - mx.logsumexp(logits, axis=-1)

    found = lambda h: linear_logprobs(h, targets, head, kernels(), temperature)  # noqa: E731
    np.testing.assert_allclose(np.array(found(hidden)), np.array(plain(hidden)), atol=2e-5)
    weigh = lambda of: lambda h: (of(h) * factors).sum()  # noqa: E731
    if name != "4 bits":  # quantized products on a CPU have no gradient of their own
        np.testing.assert_allclose(
            np.array(mx.grad(weigh(found))(hidden)), np.array(mx.grad(weigh(plain))(hidden)), atol=5e-5
        )
