"""Block by block against autodiff through the whole model: the same hidden states, the same gradients."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from mlxmath.config.schema import LoraConfig
from mlxmath.models import linear
from mlxmath.models.blockwise import Blockwise
from mlxmath.models.kernels.cpu import CpuKernels
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.layouts import Rows
from mlxmath.models.linear import use_numpy
from mlxmath.models.lora.inject import inject
from tests.conftest import make_tiny_llama
from tests.models.adapted import adapted, assert_close

TOKENS = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [9, 8, 7, 6, 5, 4, 3, 2, 1]]


def autodiff(model: nn.Module, cotangent: mx.array) -> tuple[mx.array, dict[str, mx.array]]:
    tokens = mx.array(TOKENS)
    _, gradients = nn.value_and_grad(model, lambda m: (m.model(tokens) * cotangent).sum())(model)
    return model.model(tokens), dict(tree_flatten(gradients))


def same(found: dict[str, mx.array], expected: dict[str, mx.array]) -> None:
    assert set(found) == set(expected) and found
    for name, array in expected.items():
        assert_close(found[name], array, 3e-4, name)


def assert_right(model: nn.Module, blocks: Blockwise) -> None:
    cotangent = mx.random.normal((2, 9, model.args.hidden_size))
    hidden, expected = autodiff(model, cotangent)
    found, tape = blocks.forward(Rows(mx.array(TOKENS)))
    np.testing.assert_allclose(np.array(found), np.array(hidden), rtol=1e-5, atol=1e-5)
    same(blocks.backward(tape, cotangent), expected)


@pytest.mark.parametrize("kernels", [CpuKernels, Kernels])
@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("*",), ("down_proj",)])
@pytest.mark.parametrize("checkpoint_every", [0, 1, 2])
def test_gradients(kernels: Any, targets: tuple[str, ...], checkpoint_every: int) -> None:
    model = adapted(targets=targets)
    assert_right(model, Blockwise(model, kernels(), checkpoint_every))


def quantized() -> nn.Module:
    model = make_tiny_llama(hidden_size=64, intermediate_size=96)
    nn.quantize(model, group_size=32, bits=4)
    inject(model, LoraConfig(rank=4, targets=("*",)))
    model.update(tree_map(lambda a: a + 0.05, model.trainable_parameters()))
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "qwen2": lambda: adapted("qwen2"),
    "qwen3": lambda: adapted("qwen3"),
    "fused projections": lambda: adapted("phi3", targets=("qkv_proj", "down_proj")),
    "no gradient before the first adapter": lambda: adapted(num_layers=1),
    "quantized": quantized,
}


@pytest.mark.parametrize("name", MODELS)
def test_other_models(name: str) -> None:
    model = MODELS[name]()
    assert Blockwise.unsupported(model) is None
    assert_right(model, Blockwise(model, CpuKernels()))


@pytest.mark.parametrize("checkpoint_every", [0, 1])
def test_numpy_products_and_only_those_that_are_needed(monkeypatch: pytest.MonkeyPatch, checkpoint_every: int) -> None:
    model = adapted(targets=("*",))
    cotangent = mx.random.normal((2, 9, 32))
    hidden, expected = autodiff(model, cotangent)
    use_numpy(model)
    blocks = Blockwise(model, CpuKernels(), checkpoint_every)
    counts = []
    monkeypatch.setattr(linear, "np", SimpleNamespace(matmul=lambda a, b: counts.append(1) or a @ b))
    found, tape = blocks.forward(Rows(mx.array(TOKENS)))
    np.testing.assert_allclose(np.array(found), np.array(hidden), rtol=1e-5, atol=1e-5)
    assert len(counts) == 3 * 7  # blocks, linear layers
    same(blocks.backward(tape, cotangent), expected)
    assert len(counts) == 3 * 7 * (3 if checkpoint_every else 2)  # forward, backward, and the block recomputed


@pytest.mark.parametrize("checkpoint_every", [0, 1])
def test_dropout_is_the_same_in_both_passes(monkeypatch: pytest.MonkeyPatch, checkpoint_every: int) -> None:
    """Against autodiff through this very forward pass, from the same random state."""
    model = adapted(targets=("*",), dropout=0.4)
    cotangent = mx.random.normal((2, 9, 32))
    blocks = Blockwise(model, Kernels(), checkpoint_every)
    mx.random.seed(11)
    with monkeypatch.context() as patch:
        patch.setattr(mx, "async_eval", mx.eval)  # which autodiff allows
        _, expected = nn.value_and_grad(model, lambda _: (blocks.forward(Rows(mx.array(TOKENS)))[0] * cotangent).sum())(
            model
        )
    mx.eval(expected)
    mx.random.seed(11)
    hidden, tape = blocks.forward(Rows(mx.array(TOKENS)))
    after = np.array(mx.random.state[0])
    same(blocks.backward(tape, cotangent), dict(tree_flatten(expected)))
    assert np.array_equal(after, np.array(mx.random.state[0]))
    mx.random.seed(12)
    assert not mx.allclose(blocks.forward(Rows(mx.array(TOKENS)))[0], hidden)


def test_what_it_cannot_do_it_says() -> None:
    gemma = adapted("gemma2")
    assert Blockwise.unsupported(gemma)
    whole = make_tiny_llama()
    assert "more than its blocks" in (Blockwise.unsupported(whole) or "")


def test_the_models_own_functions_are_back_in_place() -> None:
    from mlx_lm.models import llama

    before = (llama.scaled_dot_product_attention, llama.swiglu)
    model = adapted()
    blocks = Blockwise(model, CpuKernels())
    _, tape = blocks.forward(Rows(mx.array(TOKENS)))
    blocks.backward(tape, mx.ones((2, 9, 32)))
    assert (llama.scaled_dot_product_attention, llama.swiglu) == before
