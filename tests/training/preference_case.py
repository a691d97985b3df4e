"""Pairs of completions under a head of their own, and our preference losses of them."""

from dataclasses import replace
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxmath.config.losses import DpoConfig
from mlxmath.data.batch import Batch, PairTargets
from mlxmath.models.linear_ce import FullLogits, FusedHead
from mlxmath.models.lm_head import Head
from mlxmath.training.dpo import dpo_loss
from mlxmath.training.kto import kto_loss

LENGTH, VOCABULARY, WIDTH, FILL = 7, 11, 5, 3
LENGTHS = np.array([7, 3, 5, 1, 4, 6])
"""Of the rows: chosen, rejected, chosen …"""
ROWS, COLUMNS = np.nonzero(np.arange(LENGTH) < LENGTHS[:, None])


def case(seed: int = 0) -> dict[str, np.ndarray]:
    """Hidden states, a head, tokens, and a reference that differs by some tenths a token."""
    rng = np.random.default_rng(seed)
    hidden, head = rng.normal(size=(len(LENGTHS), LENGTH, WIDTH)), rng.normal(size=(VOCABULARY, WIDTH)) / 2
    tokens = rng.integers(0, VOCABULARY, (len(LENGTHS), LENGTH))
    logits = hidden @ head.T
    chosen = np.take_along_axis(logits, tokens[..., None], -1)[..., 0] - np.log(np.exp(logits).sum(-1))
    reference = chosen + rng.normal(size=chosen.shape) * 0.4
    reference = np.where(np.arange(LENGTH) < LENGTHS[:, None], reference, 0).sum(-1)
    return {"hidden": hidden, "head": head, "tokens": tokens, "reference": reference}


def batch_of(case: dict[str, np.ndarray]) -> Batch:
    """The positions that count, and some that fill up a shape."""
    rows = np.concatenate([ROWS, np.zeros(FILL, np.int64)])
    columns = np.concatenate([COLUMNS, np.zeros(FILL, np.int64)])
    return Batch(
        mx.zeros((len(LENGTHS), LENGTH), mx.int32), mx.array(rows * LENGTH + columns),
        mx.array(case["tokens"][rows, columns]), mx.array((np.arange(len(rows)) < len(ROWS)).astype(np.float32)),
        (0, 1, 2), 0, 3,
        PairTargets(
            mx.array(rows.astype(np.int32)), mx.array(LENGTHS.astype(np.int32)), mx.arange(3),
            mx.array(case["reference"].astype(np.float32)), mean_chosen=mx.array(LENGTHS[::2].mean(), mx.float32),
        ),
    )  # fmt: skip


def labelled(batch: Batch, is_desirable: np.ndarray, kl: float) -> Batch:
    """The rows as completions with labels, which are a whole step."""
    rows, extra = len(LENGTHS), batch.extra
    assert isinstance(extra, PairTargets)
    scales = rows / np.where(is_desirable, is_desirable.sum(), (~is_desirable).sum())
    of_rows = {"desirable_B": is_desirable, "scales_B": scales, "kl": np.array(kl)}
    arrays = {name: mx.array(values.astype(np.float32)) for name, values in of_rows.items()}
    return replace(batch, num_targets=rows, extra=extra._replace(numbers_P=mx.arange(rows), **arrays))


def ours(
    config: DpoConfig, case: dict[str, np.ndarray], kernels: Any = None, **labels: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Sums and gradient; with kernels in one pass over the head, else by the logits; `labels`: see `labelled`."""
    batch, objective = batch_of(case), partial(kto_loss if labels else dpo_loss, config=config)
    if labels:
        batch = labelled(batch, **labels)
    linear = nn.Linear(WIDTH, VOCABULARY, bias=False)
    linear.weight = mx.array(case["head"].astype(np.float32))

    def loss(hidden: mx.array) -> Any:
        hidden_ND = hidden.reshape(-1, WIDTH)[batch.positions_N]
        if kernels is None:
            sums = objective(linear(hidden_ND), batch, FullLogits())
        else:
            sums = objective(hidden_ND, batch, FusedHead(Head(linear), kernels))
        return sums[0], sums

    (_, sums), gradient = mx.value_and_grad(loss)(mx.array(case["hidden"].astype(np.float32)))
    return np.array(sums), np.array(gradient)
