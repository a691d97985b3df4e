"""A pair's prompt computed once: the same losses and gradients as with each completion's own, by plain autodiff."""

from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlxmath.config.losses import DpoConfig, RewardModelConfig
from mlxmath.config.training import TrainingConfig
from mlxmath.data.batch import Batch, Shape
from mlxmath.data.pairs import Pairs, PairSampler
from mlxmath.models.kernels.cpu import CpuKernels
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.lm_head import add_score_head
from mlxmath.training.accumulate import Workers, replica
from mlxmath.training.dpo import ReferenceLogprobs, WithReference, dpo_loss, frozen
from mlxmath.training.gradients import Gradients, choose_gradients
from mlxmath.training.held_out import mean_loss
from mlxmath.training.pairs import completion_logprobs
from mlxmath.training.reward_model import RewardGradients, bradley_terry_loss
from tests.conftest import FakeRows
from tests.loop import summed
from tests.models.adapted import adapted, make

OBJECTIVES: dict[str, Any] = {
    "sigmoid": {}, "ipo": {"loss_type": "ipo"}, "orpo": {"loss_type": "orpo"}, "reward-model": None,
}  # fmt: skip
COMMON = (9, 0, 7, 5, 20, 1, 9)
"""Tokens that the rows of each pair begin with; the first and the last pair have the same prompt."""


def pairs_of(*, scored: bool = False) -> Pairs:
    """Of unequal lengths. The third pair differs in its last token alone, the fourth begins alike beyond its prompt."""
    rng = np.random.default_rng(3)

    def drawn(count: int) -> list[int]:
        found: list[int] = rng.integers(4, 64, count).tolist()
        return found

    tokens, masks = [], []
    for number, common in enumerate(COMMON):
        prompt = tokens[0][: COMMON[0]] if number == len(COMMON) - 1 else drawn(common)
        sides = [drawn(int(length)) for length in rng.integers(4, 14, 2)]
        if number == 1:  # prompts of their own
            prompt = []
        if number == 2:
            sides[1] = [*sides[0][:-1], (sides[0][-1] + 1) % 64]
        if number == 3:
            sides[1][:3] = sides[0][:3]
        for side, completion in enumerate(sides):
            tokens.append([*prompt, 2 + side if common < 2 else 1, *completion])
            masks.append((np.arange(len(tokens[-1])) > len(prompt)).astype(np.uint8))
    return Pairs(FakeRows([np.array(row) for row in tokens], masks), scored=scored)


def sampler(pairs: Pairs, *, shares: bool, tokens: int = 60, batching: Any = "bucket") -> PairSampler:
    return PairSampler(pairs, TrainingConfig(batch_size=9, batching=batching), tokens, Shape(2), shares=shares)


def gradients_of(model: nn.Module, objective: str, kernels: Any, **more: Any) -> Gradients:
    more = {"compiled": False} | more
    if objective == "reward-model":
        loss = partial(bradley_terry_loss, config=RewardModelConfig(center_rewards_coefficient=0.1))
        return RewardGradients(model, lambda each: choose_gradients(each, loss, kernels(), **more))
    policy = choose_gradients(model, partial(dpo_loss, config=DpoConfig(**OBJECTIVES[objective])), kernels(), **more)
    if objective == "orpo":
        return policy
    reference = choose_gradients(replica(frozen(make("llama"))), completion_logprobs, kernels(), compiled=False)
    return WithReference(policy, reference, ReferenceLogprobs())


def model_of(objective: str, family: str = "llama") -> nn.Module:
    model = adapted(family, targets=("*",))
    if objective == "reward-model":
        mx.random.seed(2)
        add_score_head(model)
        model.score.weight = mx.random.normal(model.score.weight.shape)
    return model


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    ("kernels", "more"), [(CpuKernels, {}), (CpuKernels, {"checkpoint_every": 2}), (Kernels, {})],
    ids=["blockwise", "checkpointed", "autodiff"],
)  # fmt: skip
def test_the_losses_and_gradients_are_the_same(objective: str, kernels: Any, more: Any) -> None:
    pairs, model = pairs_of(scored=objective == "reward-model"), model_of(objective)
    whole, shared = sampler(pairs, shares=False), sampler(pairs, shares=True)
    plain, gradients = gradients_of(model, objective, Kernels), gradients_of(model, objective, kernels, **more)
    assert gradients.cannot_share() is None
    steps = [each.step(np.arange(len(pairs)), 0, 0) for each in (whole, shared)]
    assert steps[0].micro_batches == steps[1].micro_batches and len(steps[0].micro_batches) > 1
    of_whole, of_shared = (list(step.batches()) for step in steps)
    assert not any(batch.prompts for batch in of_whole) and sum(batch.prompts is not None for batch in of_shared) > 1
    for one, other in zip(of_whole, of_shared, strict=True):
        assert (one.row_ids, one.num_tokens, one.num_targets) == (other.row_ids, other.num_tokens, other.num_targets)
        assert one.targets_N.tolist() == other.targets_N.tolist()
    apart = gradients_of(model, objective, kernels, **more)
    autodiff, not_shared, found = (
        summed(Workers(model, lambda _: each), step)  # noqa: B023
        for each, step in ((plain, steps[0]), (apart, steps[0]), (gradients, steps[1]))
    )
    arrays = dict(tree_flatten(found.grad_sum))
    for expected, closeness in ((not_shared, 2e-5), (autodiff, 1e-4)):  # a margin is a small difference of long sums
        assert found.loss_sum == pytest.approx(expected.loss_sum, rel=1e-5)
        np.testing.assert_allclose(found.metric_sums, expected.metric_sums, rtol=1e-5, atol=1e-5)
        wanted = dict(tree_flatten(expected.grad_sum))
        assert arrays.keys() == wanted.keys()
        sizes = {name: mx.abs(array).max().item() for name, array in wanted.items()}
        for name, array in wanted.items():
            assert sizes[name] > 0, name
            tolerance = closeness * max(sizes[name], 0.01 * max(sizes.values()))
            np.testing.assert_allclose(arrays[name], array, rtol=0, atol=tolerance, err_msg=name)
    alone = mean_loss(Workers(model, lambda _: gradients), [steps[1]])
    before = mean_loss(Workers(model, lambda _: plain), [steps[0]])
    assert alone is not None and before is not None
    np.testing.assert_allclose(alone, before, rtol=1e-5, atol=1e-5)


def inputs_of(batch: Batch) -> list[list[int]]:
    """Each row's inputs: those of its prompt, and its own."""
    shared = batch.prompts
    assert shared is not None
    tokens, lengths = shared.tokens_GP.tolist(), shared.lengths_G.tolist()
    return [
        tokens[group][: lengths[group]] + own
        for group, own in zip(shared.groups_B.tolist(), batch.inputs_BL.tolist(), strict=True)
    ]


def test_what_is_shared_is_what_comes_before_the_predictor_of_the_first_target() -> None:
    pairs, scored = pairs_of(), pairs_of(scored=True)
    assert [pairs.shared(i) for i in range(len(pairs))] == [9, 0, 7, 5, 20, 1, 9]
    rows = [pairs.row(i)[0] for i in range(2 * len(pairs))]
    same = [sum(np.cumprod(a[:n] == b[:n])) for a, b in zip(rows[::2], rows[1::2], strict=True)
            for n in [min(len(a), len(b))]]  # fmt: skip
    assert [scored.shared(i) for i in range(len(pairs))] == same
    assert same[2] == len(rows[4]) - 1 and same[3] >= 5 + 1 + 3, "completions that begin alike"


def test_equal_prompts_are_computed_once() -> None:
    pairs = pairs_of()
    (batch,) = sampler(pairs, shares=True, tokens=1000).step(np.array([0, 4, 6]), 0, 0).batches()
    assert batch.prompts is not None and sorted(batch.prompts.lengths_G.tolist()) == [9, 20]
    for tokens, (row, _) in zip(inputs_of(batch), (pairs.row(2 * i + side) for i in batch.row_ids for side in (0, 1)),
                                strict=True):  # fmt: skip
        assert tokens[: len(row) - 1] == row[:-1].tolist()


def test_only_what_saves_is_shared() -> None:
    pairs = pairs_of()
    for chosen, is_shared in (([1], False), ([5], False), ([1, 5], False), ([4], True), ([0, 6], True)):
        (batch,) = sampler(pairs, shares=True, tokens=1000).step(np.array(chosen), 0, 0).batches()
        assert (batch.prompts is not None) == is_shared
        if batch.prompts is not None:
            rows = [len(pairs.row(2 * i + side)[0]) for i in chosen for side in (0, 1)]
            assert batch.prompts.tokens_GP.size + batch.inputs_BL.size < len(rows) * max(rows)
    packed = Pairs(pairs.rows, packed=True)
    for step in sampler(packed, shares=True, batching="pack").epoch(0):
        assert all(batch.prompts is None and batch.texts_BL is not None for batch in step.batches())


def test_neither_model_may_be_unable_to_share() -> None:
    fine = gradients_of(adapted(), "orpo", CpuKernels)
    unable = gradients_of(adapted("gemma2"), "orpo", CpuKernels)
    assert fine.cannot_share() is None
    for one, other in ((fine, unable), (unable, fine)):
        assert "cache" in (WithReference(one, other, ReferenceLogprobs()).cannot_share() or "")
    assert Workers(adapted(), lambda _: unable).cannot_share


def test_a_frozen_model_is_tried_by_its_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference has no gradients to be compared."""
    from mlxmath.models import layouts

    reference = choose_gradients(frozen(make("llama")), completion_logprobs, CpuKernels(), compiled=False)
    assert reference.cannot_share() is None
    monkeypatch.setattr(layouts.SharedPrompts, "offsets", property(lambda self: self.lengths_G[self.groups_B] + 1))
    wrong = choose_gradients(frozen(make("qwen2")), completion_logprobs, CpuKernels(), compiled=False)
    assert "outputs" in (wrong.cannot_share() or "")
