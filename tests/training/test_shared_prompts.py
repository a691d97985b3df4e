"""A group's prompt computed once: the same loss and gradients as with each completion's own."""

from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import mamba

from mlxmath.config.methods import GrpoConfig
from mlxmath.config.schema import LoraConfig
from mlxmath.config.training import TrainingConfig
from mlxmath.data.batch import Shape
from mlxmath.models.kernels.cpu import CpuKernels
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.lora.inject import inject
from mlxmath.training.accumulate import Workers
from mlxmath.training.gradients import Gradients, choose_gradients
from mlxmath.training.grpo.batches import RolloutRows, RolloutSampler, Trajectory
from mlxmath.training.grpo.loss import Reference, grpo_loss, target_logprobs
from tests.conftest import make_tiny_llama
from tests.loop import summed
from tests.models.adapted import adapted

CONFIG = GrpoConfig(importance_sampling_level="sequence", temperature=0.9)
TRAINING = TrainingConfig(batch_size=32)


def trajectories() -> list[Trajectory]:
    """Three prompts, one of a single token, with completions of different lengths and ratios that are not one."""
    random = np.random.default_rng(3)
    found = []
    for number, (prompt_length, count) in enumerate(((7, 4), (1, 2), (5, 3))):
        prompt = tuple(random.integers(1, 64, prompt_length).tolist())
        for _ in range(count):
            drawn = tuple(random.integers(1, 64, int(random.integers(1, 12))).tolist())
            logprobs = tuple((-4 + 0.3 * random.standard_normal(len(drawn))).tolist())
            found.append(Trajectory(number, prompt, drawn, float(random.standard_normal()), 1 / 300, logprobs))
    return found


def plan(max_tokens: int, **sharing: bool) -> RolloutSampler:
    return RolloutSampler(RolloutRows(trajectories()), TRAINING, max_tokens, Shape(4), **sharing)


def of_window(model: nn.Module, gradients: Gradients, made: RolloutSampler) -> tuple[float, dict[str, np.ndarray]]:
    sums = summed(Workers(model, lambda _: gradients), made.whole(0, 0))
    return sums.loss_sum, {name: np.array(array) / sums.num_targets for name, array in tree_flatten(sums.grad_sum)}


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(("kernels", "compiled"), [(CpuKernels, False), (Kernels, False), (Kernels, True)])
def test_the_gradient_is_the_same(family: str, kernels: Any, compiled: bool) -> None:
    model = adapted(family, targets=("*",))
    every = 2 if kernels is CpuKernels else 0
    gradients = choose_gradients(
        model, partial(grpo_loss, config=CONFIG), kernels(), compiled=compiled, checkpoint_every=every
    )
    assert gradients.cannot_share() is None
    loss, expected = of_window(model, gradients, plan(64))
    shared = plan(64, shares=True, in_parts=gradients.takes_parts)
    batches = list(shared.whole(0, 0).batches())
    assert max(len(batch.parts) for batch in batches) > 1 if gradients.takes_parts else len(batches) > 1
    found_loss, found = of_window(model, gradients, shared)
    assert found_loss == pytest.approx(loss, rel=1e-5) and loss != 0
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name], gradient, atol=5e-6, err_msg=name)
    assert max(np.abs(gradient).max() for gradient in expected.values()) > 1e-2


def test_each_prompt_is_computed_once_in_a_micro_batch() -> None:
    made = plan(40, shares=True)
    window = made.whole(0, 0)
    assert sorted(window.row_ids) == list(range(9))
    for ids, batch in zip(window.micro_batches, window.batches(), strict=True):
        assert batch.prompts is not None and len(batch.prompts.lengths_G) == len({made.rows.row(i)[0][0] for i in ids})
        assert len(ids) == 1 or batch.prompts.tokens_GP.size + batch.inputs_BL.size == made.size(ids) <= 40
    tokens = [
        sum(batch.num_tokens for batch in each.whole(0, 0).batches()) for each in (plan(1000, shares=True), plan(1000))
    ]
    assert tokens[0] == tokens[1] - 3 * 6 - 2 * 4


@pytest.mark.parametrize(("most", "expected"), [(16, [(1, 4), (2, 8)]), (24, [(3, 8)])])
def test_what_is_computed_at_a_time_is_bounded(most: int, expected: list[tuple[int, int]]) -> None:
    batches = list(plan(most, shares=True, in_parts=True).whole(0, 0).batches())
    assert sorted(batch.prompts.tokens_GP.shape for batch in batches if batch.prompts) == expected
    parts = [part for batch in batches for part in batch.parts]
    assert all(part.inputs_BL.size <= most for part in parts)
    assert max(len(part.row_ids) for part in parts) == 1


def test_the_same_reference_log_probabilities() -> None:
    model = adapted()
    found = []
    for sharing in (False, True):
        scorer = choose_gradients(model, partial(target_logprobs, temperature=0.9), CpuKernels(), compiled=False)
        by_row = Reference(model, scorer)(plan(48, shares=sharing, in_parts=sharing).whole(0, 0))
        found.append([by_row[i] for i in range(9)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_windowed_model_shares_too() -> None:
    """One layer sees the last four positions only, fewer than a prompt has."""
    model = make_tiny_llama(layer_types=["full_attention", "sliding_attention"], sliding_window=4)
    inject(model, LoraConfig(rank=4))
    model.update(tree_map(lambda a: a + 0.05, model.trainable_parameters()))
    gradients = choose_gradients(model, partial(grpo_loss, config=CONFIG), CpuKernels(), compiled=False)
    assert "windowed" in gradients.how and gradients.cannot_share() is None
    _, expected = of_window(model, gradients, plan(64))
    _, found = of_window(model, gradients, plan(64, shares=True))
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name], gradient, atol=5e-6)


def test_what_cannot_share_says_why() -> None:
    mx.random.seed(0)
    model = mamba.Model(
        mamba.ModelArgs(
            model_type="mamba", vocab_size=64, hidden_size=16, intermediate_size=32, state_size=4, num_hidden_layers=1,
            conv_kernel=2, use_bias=False, use_conv_bias=True, time_step_rank=2,
        )
    )  # fmt: skip
    model.freeze()
    assert "cache" in (reason_not_to_share(model) or "")
    assert "cache" in (reason_not_to_share(adapted("gemma2")) or "")  # its attention takes one mask for all rows
    assert "again" in (reason_not_to_share(adapted(), checkpoint_every=1) or "")


def reason_not_to_share(model: nn.Module, **more: Any) -> str | None:
    gradients = choose_gradients(model, partial(grpo_loss, config=CONFIG), Kernels(), compiled=False, **more)
    return gradients.cannot_share()


def test_completions_are_not_packed_but_fit() -> None:
    training = TRAINING.model_copy(update={"batching": "pack"})
    step = RolloutSampler(RolloutRows(trajectories()), training, 64, Shape(4), shares=True).whole(0, 0)
    assert sorted(step.row_ids) == list(range(9))
    assert all(batch.texts_BL is None and batch.inputs_BL.size <= 64 for batch in step.batches())
