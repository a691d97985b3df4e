"""Blocks that are computed again in the backward pass: the same loss, gradients and random state as without."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlxmath.data.batch import Shape, make_batch
from mlxmath.models.blocks import kinds_of
from mlxmath.models.checkpointing import checkpoint_blocks
from mlxmath.models.kernels.portable import Kernels
from mlxmath.training.gradients import choose_gradients
from mlxmath.training.sft import sft_loss
from tests.conftest import make_tiny_llama
from tests.models import architectures
from tests.models.adapted import random_adapters, rows


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("targets", [("q_proj",), ("*",)])
def test_dropout_draws_the_same_again(targets: tuple[str, ...], every: int, compiled: bool) -> None:
    data = rows(64)
    batch = make_batch(data, (0, 1, 2), Shape(4))

    def steps(every: int, dropout: float = 0.5) -> list[Any]:
        model = random_adapters(make_tiny_llama(num_hidden_layers=3), targets=targets, dropout=dropout)
        gradients = choose_gradients(model, sft_loss, Kernels(), compiled=compiled, checkpoint_every=every)
        mx.random.seed(7)
        found = []
        for _ in range(2):
            loss, tree = gradients.loss_and_gradients(batch)
            mx.eval(loss, tree, mx.random.state)
            found.append((loss.item(), dict(tree_flatten(tree)), np.array(mx.random.state[0])))
        return found

    expected = steps(0)
    assert expected[0][0] != expected[1][0]
    for (loss, gradients, state), (found_loss, found, found_state) in zip(expected, steps(every), strict=True):
        assert found_loss == pytest.approx(loss, rel=1e-6)
        assert np.array_equal(found_state, state)
        for name, array in gradients.items():
            size = mx.abs(array).max().item()
            np.testing.assert_allclose(np.array(found[name]), np.array(array), atol=1e-5 * size, err_msg=name)


def test_blocks_of_one_kind_stay_of_one_kind() -> None:
    """What is tried on one block of each kind would take all blocks otherwise."""
    model = make_tiny_llama(num_hidden_layers=3)
    checkpoint_blocks(model, 1)
    assert len(set(kinds_of(model.layers))) == 1
    checkpoint_blocks(model, 2)
    first, second, third = kinds_of(model.layers)
    assert first == third != second
    checkpoint_blocks(model, 0)
    assert kinds_of(model.layers) == kinds_of(make_tiny_llama(num_hidden_layers=3).layers)


def test_nobody_asks_for_the_gradient_of_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's attention of rows whose lengths are multiples of 128 has none. Played here: nor has an index."""
    model = random_adapters(architectures.make("llama:biased")[0])
    batch = make_batch(rows(architectures.VOCAB_SIZE), (0, 1, 2), Shape(8))
    expected = choose_gradients(model, sft_loss, Kernels(), compiled=False).loss_and_gradients(batch)
    mx.eval(expected)
    original, masks = mx.fast.scaled_dot_product_attention, []

    def played(q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Any, **more: Any) -> mx.array:
        if isinstance(mask, mx.array):
            masks.append(mask)
            mask = mx.array([-mx.inf, 0])[mask.astype(mx.int32)]
        return original(q, k, v, scale=scale, mask=mask, **more)

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", played)
    ways = choose_gradients(model, sft_loss, Kernels(), compiled=False, checkpoint_every=1)
    found = ways.loss_and_gradients(batch)
    assert masks
    for (name, array), (_, other) in zip(tree_flatten(found), tree_flatten(expected), strict=True):
        size = mx.abs(other).max().item()
        np.testing.assert_allclose(np.array(array), np.array(other), rtol=0, atol=1e-5 * size, err_msg=name)
