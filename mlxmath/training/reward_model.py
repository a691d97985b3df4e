"""A reward model: the score of the chosen completion is to be above that of the rejected one.

A row's score is the scalar product of a vector, the score head, with the hidden state at its last token.

Shapes: N target positions, B = 2 P rows (chosen, rejected, chosen, …), P pairs, D hidden width, X likewise (see
`LossHead`).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mlxmath.config.load import Resolved
from mlxmath.config.losses import RewardModelConfig
from mlxmath.config.training import TrainingConfig
from mlxmath.data.batch import Batch, PairTargets, Shape
from mlxmath.data.batching import BatchSampler
from mlxmath.data.cache import TokenRows
from mlxmath.data.load import check_pairs, load_pairs
from mlxmath.data.pairs import LastTokens
from mlxmath.data.problem import Problem
from mlxmath.data.render import encode_prompt
from mlxmath.data.templates import get_template, recorded_template
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.linear_ce import LossHead
from mlxmath.models.lm_head import add_score_head
from mlxmath.models.lora.adapter import REWARD_MODEL, load_reward_model
from mlxmath.runtime.ranks import Ranks
from mlxmath.training.accumulate import Workers
from mlxmath.training.events import Callback, TrainResult
from mlxmath.training.gradients import Gradients, Tree, choose_gradients
from mlxmath.training.grpo.rewards import Sample
from mlxmath.training.logging import RunLogger
from mlxmath.training.pairs import REWARDS, pairs_of, reward_sums, row_sums
from mlxmath.training.setup import Run
from mlxmath.training.trainer import Trainer


def reward_model(settings: Resolved, ranks: Ranks | None = None, callback: Callback | None = None) -> TrainResult:
    """Train a model that scores completions, on pairs of a preferred and a rejected one.

    Adapters and score head are in the folder `training.adapter_path` of rank 0 afterwards. Batch sizes count pairs.

    Args:
        settings: of the sections model, data, lora, training, reward_model and runtime.
        ranks: the processes that train together (None: this one alone).
        callback: given each event of the run as it happens, on rank 0.

    Raises:
        InputError: a setting is wrong, or has no use here.
        MlxmathError: the model or the data cannot be had, do not fit into the memory, or are damaged.
    """
    check_pairs(settings)
    with Run("reward-model", settings, ranks or Ranks()) as run:
        data = run.read(partial(load_pairs, scored=True))
        run.load_base()
        run.add_adapters(**{REWARD_MODEL: True})
        add_score_head(run.model)
        scores_of = run.gradients(partial(bradley_terry_loss, config=settings.config.reward_model))
        trainer = Trainer(run, lambda model: RewardGradients(model, scores_of))
        batches, held_out = trainer.sample(data)
        log = RunLogger(REWARDS, unit="pairs", rows="pairs", callback=callback)
        with trainer.running(batches, held_out, log):
            for batch in trainer.steps():
                sums = trainer.loss_and_grads(batch)
                if sums is None:
                    break
                step = trainer.update(sums)
                log.step(step)
                trainer.validate_if_due()
                trainer.save_if_due()
        return trainer.result


def bradley_terry_loss(outputs_NX: mx.array, batch: Batch, head: LossHead, *, config: RewardModelConfig) -> mx.array:
    """Σ over pairs of −log σ(r chosen − r rejected) + c (r chosen + r rejected)²; see `Loss`.

    (Bradley and Terry 1952; Ouyang et al. 2022, arXiv:2203.02155, equation 1. The second term keeps scores around 0:
    Eisenstein et al. 2023, arXiv:2312.09244.)

    Returns:
        The loss, the sums that `REWARDS` names, and the gradient of the score head (D,).
    """
    hidden_ND = head.hidden(outputs_NX)
    scores_B = row_sums(scores(hidden_ND, batch, head), batch)
    losses_P, d_scores_B = _pair_losses(config, scores_B)
    weights_N = d_scores_B[pairs_of(batch).rows_N] * batch.weights_N
    d_score_D = (weights_N[:, None] * hidden_ND.astype(mx.float32)).sum(axis=0)
    reported = mx.stop_gradient(mx.concatenate([reward_sums(scores_B), d_score_D]))
    return mx.concatenate([losses_P.sum()[None], reported])


def scores(outputs_NX: mx.array, batch: Batch, head: LossHead) -> mx.array:
    """(N,) the score of each target position, in float32 whatever the hidden states' type."""
    score_D = pairs_of(batch).score_D
    assert score_D is not None
    return head.hidden(outputs_NX).astype(mx.float32) @ score_D


def _pair_losses(config: RewardModelConfig, scores_B: mx.array) -> tuple[mx.array, mx.array]:
    """Of each pair (P,), and their sum's gradient (B,)."""
    chosen_P, rejected_P = scores_B[0::2], scores_B[1::2]
    losses_P = -nn.log_sigmoid(chosen_P - rejected_P)
    d_margin_P = -mx.sigmoid(rejected_P - chosen_P)
    d_scores_P2 = mx.stack([d_margin_P, -d_margin_P], axis=1)
    if coefficient := config.center_rewards_coefficient:
        sums_P = chosen_P + rejected_P
        losses_P = losses_P + coefficient * mx.square(sums_P)
        d_scores_P2 = d_scores_P2 + 2 * coefficient * sums_P[:, None]
    return losses_P, d_scores_P2.reshape(-1)


class RewardGradients:
    """Loss sums and gradients of a reward model; see `Gradients`.

    The gradient of the score head comes out of the loss itself, so that the rest of the model is computed the way that
    is best for the device, which may know of nothing outside the blocks.

    Args:
        model: with a score head.
        scores_of: makes the loss and gradients of `bradley_terry_loss`, for a model whose
            score head is frozen.
    """

    def __init__(self, model: nn.Module, scores_of: Callable[[nn.Module], Gradients]) -> None:
        model.score.freeze()
        self._inner = scores_of(model)
        model.score.unfreeze()
        self._model = model
        self.how, self.takes_parts = self._inner.how, self._inner.takes_parts
        self.cannot_share, self.cannot_pack = self._inner.cannot_share, self._inner.cannot_pack

    def loss(self, batch: Batch) -> mx.array:
        """See `Gradients`."""
        return self._inner.loss(with_score(self._model, batch))[: 1 + len(REWARDS)]

    def loss_and_gradients(self, batch: Batch) -> tuple[mx.array, Tree]:
        """See `Gradients`."""
        sums, gradients = self._inner.loss_and_gradients(with_score(self._model, batch))
        reported, d_score_D = sums[: 1 + len(REWARDS)], sums[1 + len(REWARDS) :]
        return reported, {**gradients, "score": {"weight": d_score_D[None]}}


def with_score(model: nn.Module, batch: Batch) -> Batch:
    """The batch with the model's score head as `score_D`."""
    rows = mx.arange(batch.targets_N.size)  # of rows that are not pairs, each with one target
    pairs = batch.extra if isinstance(batch.extra, PairTargets) else PairTargets(rows, mx.ones_like(rows), rows)
    return replace(batch, extra=pairs._replace(score_D=model.score.weight[0]))


class RewardModel:
    """A reward model as a reward function; see `mlxmath.training.grpo.rewards`.

    Args:
        base: a replica of the base, which becomes the reward model.
        folder: of the reward model.
        base_fingerprint: of the base.
        tokenizer: of the base.
        training: the run's; its batching is used, but for packed rows, whose place buckets take.
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
        self._training, self._max_tokens, self._shape = training.unpacked(), max_tokens, shape
        self.workers = Workers(base, lambda each: choose_gradients(each, scores, kernels, compiled=False), num_workers)

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """The score of each completion; one that was cut off is scored without an end."""
        tokens = [self._tokens(sample) for sample in samples]
        offsets = np.cumsum([0, *map(len, tokens)])
        flat = np.concatenate(tokens)
        rows = LastTokens(TokenRows(flat, np.zeros(len(flat), np.uint8), offsets))
        sampler = BatchSampler(rows, self._training, self._max_tokens, self._shape, self.workers.count)
        step = sampler.step(np.arange(len(rows)), 0, 0)

        def work(gradients: Gradients, share: tuple[int, ...]) -> dict[int, float]:
            found: dict[int, float] = {}
            for index in share:
                batch = step.batch(index)
                values: list[float] = gradients.loss(with_score(self._model, batch)).tolist()
                found |= zip(batch.row_ids, values, strict=False)
            return found

        parts = self.workers.run(work, step.shares(self.workers.count))
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
