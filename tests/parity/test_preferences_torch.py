"""Preference losses and a reward model through a whole Llama with LoRA, against torch and peft."""

from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlxmath.config.losses import DpoConfig, RewardModelConfig
from mlxmath.config.training import TrainingConfig
from mlxmath.data.batch import Shape
from mlxmath.data.batching import StepBatch
from mlxmath.data.pairs import Pairs, PairSampler
from mlxmath.models.kernels.cpu import CpuKernels
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.lm_head import add_score_head
from mlxmath.models.load import load_model
from mlxmath.training.accumulate import StepSums, Workers, accumulate
from mlxmath.training.dpo import ReferenceLogprobs, WithReference, dpo_loss, frozen
from mlxmath.training.gradients import choose_gradients
from mlxmath.training.pairs import completion_logprobs
from mlxmath.training.reward_model import RewardGradients, bradley_terry_loss
from tests.conftest import FakeRows
from tests.parity.both_models import both_models, our_name

torch = pytest.importorskip("torch")
TARGETS = ("q_proj", "o_proj", "down_proj")
NUM = 5


@pytest.fixture
def rows() -> FakeRows:
    rng = np.random.default_rng(5)
    tokens = [rng.integers(1, 64, rng.integers(4, 20)) for _ in range(2 * NUM)]
    return FakeRows(tokens, [(np.arange(len(t)) >= len(t) // 3).astype(np.uint8) for t in tokens])


def window_of(rows: FakeRows, *, scored: bool = False) -> StepBatch:
    plan = PairSampler(Pairs(rows, scored=scored), TrainingConfig(batch_size=NUM), 100, Shape(8))
    return plan.step(np.arange(NUM), 0, 0)


def compare(sums: StepSums | None, loss: Any, theirs: Any) -> None:
    """The sums equal torch's loss and gradients, to 1e-5 of the largest."""
    assert sums is not None
    loss.backward()
    assert sums.loss_sum == pytest.approx(loss.item(), rel=1e-5)
    gradients = dict(tree_flatten(sums.grad_sum))
    compared = 0
    for name, parameter in theirs.named_parameters():
        if parameter.grad is not None:
            expected = parameter.grad.numpy().T
            np.testing.assert_allclose(
                np.array(gradients[our_name(name)]), expected, atol=1e-5 * max(1, np.abs(expected).max()), err_msg=name
            )
            compared += 1
    assert compared == 2 * 2 * len(TARGETS)


def row_logprobs(model: Any, rows: FakeRows) -> tuple[Any, Any]:
    """The summed log-probability of each row, a row at a time, and its number of targets."""
    sums, counts = [], []
    for tokens, mask in zip(rows.tokens, rows.masks, strict=True):
        ids, counted = torch.tensor(tokens.astype(np.int64)), torch.tensor(mask[1:].astype(np.float32))
        logprobs = torch.log_softmax(model(ids[None, :-1]).logits[0], -1).gather(-1, ids[1:, None])[:, 0]
        sums.append((logprobs * counted).sum())
        counts.append(counted.sum())
    return torch.stack(sums), torch.stack(counts)


@pytest.mark.parametrize("kernels", [CpuKernels(), Kernels()], ids=["cpu", "portable"])
@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "orpo", "cpo"])
def test_preference_losses_on_a_model(tmp_path: Path, rows: FakeRows, loss_type: Any, kernels: Any) -> None:
    ours, theirs = both_models(tmp_path, TARGETS)
    base = frozen(load_model(tmp_path, "float32").model)
    config = DpoConfig(loss_type=loss_type, beta=0.3, label_smoothing=0.0 if loss_type in ("ipo", "orpo") else 0.1)

    def gradients_of(model: Any) -> WithReference:
        policy = choose_gradients(model, partial(dpo_loss, config=config), kernels, compiled=False)
        reference = choose_gradients(base, completion_logprobs, kernels, compiled=False)
        return WithReference(policy, reference, ReferenceLogprobs())

    found = accumulate(Workers(ours, gradients_of), window_of(rows))

    log_sigmoid = torch.nn.functional.logsigmoid
    sums, counts = row_logprobs(theirs, rows)
    with torch.no_grad(), theirs.disable_adapter():
        reference, _ = row_logprobs(theirs, rows)
    if loss_type == "orpo":
        average = sums / counts
        odds = torch.log(average.exp() / (1 - average.exp()))
        losses = -average[::2] - 0.3 * log_sigmoid(odds[::2] - odds[1::2])
    elif loss_type == "ipo":
        ratio = (sums - reference) / counts
        losses = (ratio[::2] - ratio[1::2] - 1 / 0.6) ** 2
    elif loss_type == "cpo":
        margin = 0.3 * (sums[::2] - sums[1::2])
        losses = -0.9 * log_sigmoid(margin) - 0.1 * log_sigmoid(-margin) - sums[::2].sum() / counts[::2].sum()
    else:
        margin = 0.3 * ((sums - reference)[::2] - (sums - reference)[1::2])
        losses = -0.9 * log_sigmoid(margin) - 0.1 * log_sigmoid(-margin)
    compare(found, losses.sum(), theirs)


def test_reward_model(tmp_path: Path, rows: FakeRows) -> None:
    ours, theirs = both_models(tmp_path, TARGETS)
    add_score_head(ours)
    score = torch.tensor(np.array(ours.score.weight[0]), requires_grad=True)
    objective = partial(bradley_terry_loss, config=RewardModelConfig(center_rewards_coefficient=0.02))
    scores_of = partial(choose_gradients, loss=objective, kernels=CpuKernels(), compiled=False)
    workers = Workers(ours, lambda model: RewardGradients(model, scores_of))
    found = accumulate(workers, window_of(rows, scored=True))
    hidden = [
        theirs.base_model.model.model(torch.tensor(tokens.astype(np.int64))[None]).last_hidden_state[0, -1]
        for tokens in rows.tokens
    ]
    scores = torch.stack(hidden) @ score
    chosen, rejected = scores[::2], scores[1::2]
    loss = -torch.nn.functional.logsigmoid(chosen - rejected).sum() + 0.02 * ((chosen + rejected) ** 2).sum()
    compare(found, loss, theirs)
    assert found is not None
    np.testing.assert_allclose(np.array(found.grad_sum["score"]["weight"][0]), score.grad.numpy(), atol=1e-5)
    assert mx.isfinite(found.grad_sum["score"]["weight"]).all()
