"""Completions with calls in GRPO: what a tool wrote is context, and neither a target nor counted."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlxmath.config.methods import GrpoConfig
from mlxmath.config.schema import LoraConfig
from mlxmath.config.training import TrainingConfig
from mlxmath.data.batch import Shape
from mlxmath.generation.engine import Completion
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.lora.inject import inject
from mlxmath.training.accumulate import Workers
from mlxmath.training.deadline import Deadline, StopRequest
from mlxmath.training.gradients import choose_gradients
from mlxmath.training.grpo.batches import RolloutRows, RolloutSampler, Trajectory
from mlxmath.training.grpo.loss import grpo_loss
from mlxmath.training.grpo.rewards import Scores
from mlxmath.training.grpo.rollouts import Rollouts
from mlxmath.training.grpo.sampling import CompletionSampler, Prompt, roll_out
from tests.conftest import make_tiny_llama
from tests.generation.spelled import SIGNS, spelled

PROMPTS = [Prompt(i, f"q{i}", "84", (16, 17, i)) for i in range(4)]
CONFIG = GrpoConfig(num_generations=6, max_completion_length=30)


@pytest.fixture(scope="module")
def tokenizer() -> TokenizerWrapper:
    return spelled()


def second_is_best(questions: Sequence[Any], *_: Any) -> Scores:
    """Rewards by a completion's place in its group."""
    totals = np.array([float(i % 6 == 1) for i in range(len(questions))])
    return Scores(totals, {"fixed": totals}, 0)


def make_model() -> Any:
    model = make_tiny_llama(vocab_size=len(SIGNS))
    mx.random.seed(5)
    inject(model, LoraConfig(rank=4))
    return model


def test_log_probabilities_and_targets_are_of_what_the_model_drew(tokenizer: TokenizerWrapper) -> None:
    model = make_model()
    drawn = roll_out(model, tokenizer, PROMPTS, CONFIG, seed=0, step=0, concurrency=8, tool="calculator")
    assert sum(any(one.by_tool) for one in drawn) > 3
    for prompt, one in zip([p for p in PROMPTS for _ in range(6)], drawn, strict=True):
        logits = model(mx.array([[*prompt.tokens, *one.drawn[:-1]]]))[0, len(prompt.tokens) - 1 :]
        scores = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        own = [scores[i, token].item() for i, token in enumerate(one.drawn) if not (one.drawn_by_tool or [0] * 99)[i]]
        np.testing.assert_allclose(one.own_logprobs, own, atol=1e-4)


def test_a_tools_tokens_have_no_weight_and_no_gradient_of_their_own(tokenizer: TokenizerWrapper) -> None:
    """The loss with a call is that of the same row with its targets alone, computed by hand from all logits."""
    model = make_model()
    drawn = roll_out(model, tokenizer, PROMPTS, CONFIG, seed=0, step=0, concurrency=8, tool="calculator")
    one = next(one for one in drawn if any(one.by_tool))
    prompt = PROMPTS[drawn.index(one) // 6]
    trajectory = Trajectory(0, prompt.tokens, one.drawn, 1.5, 0.25, one.own_logprobs, by_tool=one.drawn_by_tool)
    again = Trajectory.from_plain(trajectory.plain())
    assert again == trajectory and trajectory.num_targets == len(one.own_logprobs) < len(one.drawn)
    rows = RolloutRows([trajectory])
    tokens, mask = rows.row(0)
    assert mask.tolist() == [0, 0, 0, *(int(not given) for given in one.drawn_by_tool)]
    assert [t for t, is_target in zip(tokens, mask, strict=True) if is_target] == [
        t for t, given in zip(one.drawn, one.drawn_by_tool, strict=True) if not given
    ]
    shape, training = Shape(32), TrainingConfig(batch_size=1)
    scorer = choose_gradients(model, partial(grpo_loss, config=CONFIG), Kernels(), compiled=False)
    own = mx.array(mask[1:].astype(np.float32))

    def loss(parameters: Any) -> mx.array:
        model.update(parameters)
        logits = model(mx.array(tokens[None, :-1]))[0]
        scores = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        chosen = mx.take_along_axis(scores, mx.array(tokens[1:, None]), axis=-1)[:, 0]
        return -(mx.exp(chosen - mx.stop_gradient(chosen)) * 1.5 * own).sum() * 0.25 * rows.num_targets

    value, expected = mx.value_and_grad(loss)(model.trainable_parameters())
    for shares in (False, True):
        (batch,) = RolloutSampler(rows, training, 64, shape, shares=shares).whole(0, 0).batches()
        found, gradients = scorer.loss_and_gradients(batch)
        np.testing.assert_allclose(np.array(found)[0], value.item(), rtol=1e-4)
        for name, array in tree_flatten(gradients):
            np.testing.assert_allclose(np.array(array), np.array(dict(tree_flatten(expected))[name]), atol=2e-4)


def test_a_rollout_counts_only_what_was_drawn(tokenizer: TokenizerWrapper) -> None:
    model = make_model()
    training = TrainingConfig(batch_size=6, grad_accumulation_steps=2, num_epochs=1)
    workers = Workers(
        model, lambda m: choose_gradients(m, partial(grpo_loss, config=CONFIG), Kernels(), compiled=False)
    )
    sampler = CompletionSampler(
        workers, tokenizer, CONFIG, second_is_best, seed=0, concurrency=8,  # type: ignore[arg-type]
        deadline=Deadline(1e9), stop=StopRequest(), tool="calculator",
    )  # fmt: skip
    reports: list[Any] = []
    source = Rollouts(
        workers, sampler, PROMPTS, CONFIG, training, 64, Shape(32), reference=None, deadline=Deadline(1e9),
        stop=StopRequest(), listener=reports.append,
    )  # fmt: skip
    num_given = 0
    for step, report in zip(source.steps(), reports, strict=False):
        trajectories = step.sampler.rows.trajectories  # type: ignore[attr-defined]
        assert report.num_tokens == sum(t.num_targets for t in trajectories)
        num_given += sum(sum(t.by_tool) for t in trajectories)
        assert sum(batch.num_targets for batch in step.batches()) == report.num_tokens
        source.step_done()
    assert num_given > 10


def test_a_completion_without_calls_is_as_without_a_tool() -> None:
    one = Completion("a", (1, 2), "stop", 3, (1, 2, 9), (-1.0, -2.0, -3.0), (False, False))
    assert one.drawn_by_tool == () and one.own_logprobs == one.logprobs
