"""Does training make a model better at its task, and does a reward that says nothing leave it as it was?"""

import json
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mlxmath.config.methods import GrpoConfig
from mlxmath.config.schema import LoraConfig
from mlxmath.config.training import TrainingConfig
from mlxmath.data.batch import Shape
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.lora.inject import inject
from mlxmath.training.accumulate import Workers
from mlxmath.training.deadline import Deadline, StopRequest
from mlxmath.training.gradients import choose_gradients
from mlxmath.training.grpo.loss import grpo_loss
from mlxmath.training.grpo.report import RolloutReport
from mlxmath.training.grpo.rewards import Rewards, Sample
from mlxmath.training.grpo.rollouts import Rollouts
from mlxmath.training.grpo.sampling import CompletionSampler, Prompt, right_answers
from tests.conftest import make_tiny_llama
from tests.helpers import succeed
from tests.loop import fit

WORDS = ("2", "3", "5", "7", "say", "so", "then", "</s>")
PROMPTS = [Prompt(i, f"say {WORDS[i]}", "7", (4, i)) for i in range(4)]
"""All with the same answer, which few of the words of a random model come to."""
RATE = 0.1


def constant(samples: list[Sample]) -> list[float]:
    """The same for all."""
    return [0.7] * len(samples)


class Learner:
    """A random model of eight words, to be taught by rewards."""

    def __init__(self, *, reward: str, num_epochs: int) -> None:
        backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="say"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        self.tokenizer = TokenizerWrapper(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))
        self.model = make_tiny_llama(vocab_size=len(WORDS))
        mx.random.seed(5)
        inject(self.model, LoraConfig(rank=8, targets=("q_proj", "v_proj", "mlp.*")))
        config = GrpoConfig(num_generations=16, max_completion_length=4, num_iterations=2)
        training = TrainingConfig(batch_size=32, grad_accumulation_steps=2, num_epochs=num_epochs)
        self.reports: list[RolloutReport] = []
        self.workers = Workers(
            self.model,
            lambda m: choose_gradients(m, partial(grpo_loss, config=config), Kernels(), compiled=False),
        )
        self.drawing = CompletionSampler(
            self.workers, self.tokenizer, config, Rewards({reward: 1.0}), seed=0, concurrency=64,
            deadline=Deadline(1e9), stop=StopRequest(),
        )  # fmt: skip
        self.source = Rollouts(
            self.workers, self.drawing, PROMPTS, config, training, 1024,
            Shape(8), reference=None, deadline=Deadline(1e9), stop=StopRequest(), listener=self.reports.append,
            end=self.end,
        )  # fmt: skip

    def end(self, ending: str, reason: str) -> None:
        self.ending, self.reason = ending, reason

    def share_right(self) -> float:
        found = right_answers(self.workers, self.tokenizer, PROMPTS, 4, 64, lambda: False)
        assert found is not None
        return sum(found) / len(found)

    def arrays(self) -> dict[str, mx.array]:
        return {name: mx.array(array) for name, array in tree_flatten(self.model.trainable_parameters())}

    def learn(self) -> None:
        optimizer = optim.AdamW(RATE)
        optimizer.init(self.model.trainable_parameters())
        fit(
            self.workers, self.source.steps(), optimizer, lambda _: RATE, max_grad_norm=1.0, deadline=Deadline(1e9),
            stop=StopRequest(), hooks=(lambda _: self.source.step_done(),),
        )  # fmt: skip


def test_grpo_with_a_constant_reward_leaves_every_bit() -> None:
    learner = Learner(reward=f"{__name__}:constant", num_epochs=2)
    before = learner.arrays()
    learner.learn()
    assert len(learner.reports) == 2 and all(report.zero_variance == 1 for report in learner.reports)
    after = learner.arrays()
    assert before.keys() == after.keys() and all(mx.array_equal(before[name], after[name]) for name in before)


def test_grpo_with_the_graders_reward_gives_more_right_answers() -> None:
    learner = Learner(reward="correctness", num_epochs=16)
    before = learner.share_right()
    learner.learn()
    rewards = [report.reward for report in learner.reports]
    assert np.mean(rewards[-4:]) > np.mean(rewards[:4]) + 0.3, rewards
    assert learner.share_right() >= before + 0.5


@pytest.mark.slow
def test_fine_tuning_answers_unseen_problems_that_the_base_cannot(tmp_path: Path) -> None:
    succeed(tmp_path, "train", "--recipe", "demo")
    succeed(tmp_path, "evaluate", "--compare", "--limit", "40", "--max-tokens", "60", "--run-name", "run")
    results = json.loads((tmp_path / "evaluation_results" / "run" / "results.json").read_text())
    (found,) = results["comparisons"]
    assert found["low"] > 0.05 and found["p_value"] < 0.01 and found["fixed"] > found["broken"]
