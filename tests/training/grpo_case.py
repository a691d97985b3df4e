"""Completions whose log-probabilities have moved since they were drawn, and our loss of them."""

from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from mlxmath.config.methods import GrpoConfig
from mlxmath.data.batch import Batch, RolloutTargets
from mlxmath.models.linear_ce import FullLogits
from mlxmath.training.grpo.loss import group_advantages, grpo_loss, token_weights

ROWS, LENGTH, HIDDEN, VOCABULARY = 6, 7, 8, 11
BATCH_SIZE = 3
LENGTHS = np.array([7, 3, 5, 1, 7, 4])
TRUNCATED = LENGTHS == LENGTH
LOSSES = ("grpo", "dr_grpo", "bnpo", "dapo", "cispo", "sapo")


def case(seed: int = 0) -> dict[str, np.ndarray]:
    """Completions of 1 to 7 tokens whose log-probabilities have moved by some tenths since they were drawn."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(ROWS, LENGTH, VOCABULARY))
    tokens = rng.integers(0, VOCABULARY, (ROWS, LENGTH))
    chosen = np.take_along_axis(logits, tokens[..., None], -1)[..., 0] - np.log(np.exp(logits).sum(-1))
    return {
        "logits": logits, "tokens": tokens,
        "advantages": group_advantages(rng.normal(size=ROWS), 3, "group"),
        "old": chosen + rng.normal(size=chosen.shape) * 0.3 + rng.normal(size=(ROWS, 1)) * 0.5,
        "reference": chosen + rng.normal(size=chosen.shape) * 0.4,
    }  # fmt: skip


def entropies(case: dict[str, np.ndarray], temperature: float) -> np.ndarray:
    """(ROWS, LENGTH) in nats."""
    logits = case["logits"] / temperature
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return -(probabilities * np.log(probabilities)).sum(-1)


def ours(config: GrpoConfig, case: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The same of the positions that count, with two filling positions at the end."""
    counted = ~TRUNCATED if config.mask_truncated_completions else np.ones(ROWS, bool)
    weights = token_weights(config, LENGTHS, counted, BATCH_SIZE)
    rows, columns = np.nonzero((np.arange(LENGTH)[None] < LENGTHS[:, None]) & counted[:, None])
    fill = np.zeros(2, np.int64)
    at = (np.concatenate([rows, fill]), np.concatenate([columns, fill]))
    present = np.arange(len(at[0])) < len(rows)
    of_tokens = entropies(case, config.temperature)
    highest = of_tokens >= np.quantile(of_tokens[rows, columns], 1 - config.top_entropy_quantile)
    batch = Batch(
        mx.zeros((ROWS, LENGTH), mx.int32), mx.array(at[0]), mx.array(case["tokens"][at]),
        mx.array((weights[at[0]] * present).astype(np.float32)), (), 0, len(rows),
        RolloutTargets(
            mx.array(case["advantages"][at[0]].astype(np.float32)), mx.array(case["old"][at].astype(np.float32)),
            mx.array(case["reference"][at].astype(np.float32)), mx.array(at[0].astype(np.int32)),
            None if config.top_entropy_quantile == 1 else mx.array((highest[at] * present).astype(np.float32)),
        ),
    )  # fmt: skip
    logits = mx.array(case["logits"].astype(np.float32))

    def loss(logits: mx.array) -> Any:
        sums = partial(grpo_loss, config=config)(logits[mx.array(at[0]), mx.array(at[1])], batch, FullLogits())
        return sums[0], sums

    (_, sums), gradient = mx.value_and_grad(loss)(logits)
    return np.array(sums), np.array(gradient)
