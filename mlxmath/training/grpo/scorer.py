"""A reward model as a reward: it scores the completions of a policy whose base it shares."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mlxmath.config.schema import TrainingConfig
from mlxmath.data.batch import Shape
from mlxmath.data.batching import BatchSampler, LastTokens
from mlxmath.data.cache import TokenRows
from mlxmath.data.problem import Problem
from mlxmath.data.render import encode_prompt
from mlxmath.data.templates import get_template, recorded_template
from mlxmath.models.kernels.base import Kernels
from mlxmath.models.lora.adapter import load_reward_model
from mlxmath.training.gradients import Gradients, choose_gradients
from mlxmath.training.grpo.rewards import Sample
from mlxmath.training.reward_model import scores, with_score
from mlxmath.training.workers import Workers


class RewardModel:
    """A reward model as a reward function; see `mlxmath.training.grpo.rewards`.

    Args:
        base: a replica of the base, which becomes the reward model.
        folder: of the reward model.
        base_fingerprint: of the base.
        tokenizer: of the base.
        training: the run's; its batching is used.
        max_tokens: padded tokens in a micro-batch.
        shape: of the batches.
        kernels: the device's.
        num_workers: micro-batches computed at once.

    Raises:
        MlxmathError: `folder` holds no reward model, or one of another base.
    """

    def __init__(
        self,
        base: nn.Module,
        folder: Path,
        base_fingerprint: str,
        tokenizer: Any,
        training: TrainingConfig,
        *,
        max_tokens: int,
        shape: Shape,
        kernels: Kernels,
        num_workers: int = 1,
    ) -> None:
        random_state = mx.array(mx.random.state[0])
        record = load_reward_model(base, folder, base_fingerprint)
        mx.random.state[0][:] = random_state
        base.freeze()
        base.eval()
        template = recorded_template(record, folder) or get_template("plain")
        self._template = template.for_tokenizer(tokenizer).verbatim()
        self._tokenizer, self._model = tokenizer, base
        self._training, self._max_tokens, self._shape = training, max_tokens, shape
        self._workers = Workers(base, lambda each: choose_gradients(each, scores, kernels, compiled=False), num_workers)

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """The score of each completion; one that was cut off is scored without an end."""
        tokens = [self._tokens(sample) for sample in samples]
        offsets = np.cumsum([0, *map(len, tokens)])
        flat = np.concatenate(tokens)
        rows = LastTokens(TokenRows(flat, np.zeros(len(flat), np.uint8), offsets))
        sampler = BatchSampler(rows, self._training, self._max_tokens, self._shape, self._workers.count)
        step = sampler.step(np.arange(len(rows)), 0, 0)

        def work(gradients: Gradients, share: tuple[int, ...]) -> dict[int, float]:
            found: dict[int, float] = {}
            for index in share:
                batch = step.batch(index)
                values: list[float] = gradients.loss(with_score(self._model, batch)).tolist()
                found |= zip(batch.row_ids, values, strict=False)
            return found

        parts = self._workers.run(work, step.shares(self._workers.count))
        by_row = {row: value for part in parts for row, value in part.items()}
        return [by_row[row] for row in range(len(samples))]

    def _tokens(self, sample: Sample) -> NDArray[np.uint32]:
        text = self._template.render(Problem("", sample.question, solution=sample.completion))
        ids = encode_prompt(self._tokenizer, text)
        if any(segment.is_control for segment in text):  # it has its end
            ids = ids[:-1] if sample.truncated else ids
        elif not sample.truncated:
            ids = [*ids, self._tokenizer.eos_token_id]
        return np.array(ids, np.uint32)
