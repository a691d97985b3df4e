"""A model in two parts: in any shell, under any names, with scaled and capped logits."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map

from mlxmath.config.schema import LoraConfig
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.linear_ce import linear_cross_entropy
from mlxmath.models.lm_head import Split, add_score_head, split
from mlxmath.models.lora.inject import inject
from mlxmath.training.gradients import choose_gradients
from mlxmath.training.sft import sft_loss
from tests.models import architectures
from tests.models.adapted import adapted

TOKENS = np.random.default_rng(2).integers(architectures.FIRST_PIECE, architectures.VOCAB_SIZE, (2, 19))
"""More than a window of `architectures` has."""


def made(model_type: str, **changes: Any) -> nn.Module:
    """Adapters in place, B not zero."""
    model, _ = architectures.make(model_type)
    mx.random.seed(1)
    inject(model, LoraConfig(**({"rank": 2} | changes)))
    model.update(tree_map(lambda a: a + 0.05, model.trainable_parameters()))
    model.train()
    return model


def logits_of(parts: Split) -> mx.array:
    hidden_BLD = parts.hidden(mx.array(TOKENS))
    logits = parts.head.logits(hidden_BLD.reshape(-1, hidden_BLD.shape[-1]))
    cap = parts.head.soft_cap
    return logits if cap is None else cap * mx.tanh(logits / cap)


@pytest.mark.parametrize(
    ("model_type", "scale", "cap"),
    [
        ("llama", 1, None),
        ("phi3", 1, None),
        ("qwen3", 1, None),
        ("granite", 1 / 4, None),
        ("cohere", 1 / 4, None),
        ("muse_glimmer", 1 / 2, 5.0),
        ("gemma2", 1, 5.0),
        ("gemma3", 1, None),
        ("gemma3n", 1, 5.0),
        ("mistral3", 1, None),
        ("llama4", 1, None),
        ("qwen3_5", 1, None),
        ("qwen3_vl", 1, None),
        ("falcon_h1", 1, None),
        ("minicpm", 1, None),
        ("internlm2", 1, None),
        ("gpt2", 1, None),
        ("gpt_neox", 1, None),
        ("phi", 1, None),
        ("rwkv7", 1, None),
        ("seed_oss", 1, None),
    ],
)
def test_the_head_makes_the_models_own_logits(model_type: str, scale: float, cap: float | None) -> None:
    model = made(model_type)
    parts = split(model)
    assert isinstance(parts, Split), parts
    assert parts.head.scale == pytest.approx(scale, rel=1e-6)
    assert parts.head.soft_cap == (None if cap is None else pytest.approx(cap))
    expected = np.array(model(mx.array(TOKENS))).reshape(-1, architectures.VOCAB_SIZE)
    np.testing.assert_allclose(np.array(logits_of(parts)), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("model_type", ["granite", "muse_glimmer"])
def test_gradients_of_hidden_states_are_those_through_the_models_own_logits(model_type: str) -> None:
    model = made(model_type)
    parts = split(model)
    assert isinstance(parts, Split)
    hidden_ND = parts.hidden(mx.array(TOKENS))[0]
    targets_N, weights_N = mx.array(TOKENS[1]), mx.ones(TOKENS.shape[1])

    def by_the_model(hidden_ND: mx.array) -> mx.array:
        layer = model.lm_head if "lm_head" in model else None
        raw = layer(hidden_ND) if layer else model.model.embed_tokens.as_linear(hidden_ND)
        if model_type == "granite":
            logits = raw / model.logits_scaling
        else:
            cap = model.args.final_logit_softcapping
            logits = mx.tanh(raw * model.args.output_multiplier / cap) * cap
        return nn.losses.cross_entropy(logits, targets_N).sum()

    expected, expected_gradient = mx.value_and_grad(by_the_model)(hidden_ND)
    found, gradient = mx.value_and_grad(
        lambda hidden: linear_cross_entropy(hidden, targets_N, weights_N, parts.head, Kernels())
    )(hidden_ND)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    size = mx.abs(expected_gradient).max().item()
    np.testing.assert_allclose(np.array(gradient), np.array(expected_gradient), atol=1e-4 * size)


def test_quantized_parts_in_a_shell() -> None:
    model, _ = architectures.make("gemma3")
    nn.quantize(model, group_size=32, bits=4)
    parts = split(model)
    assert isinstance(parts, Split)
    expected = np.array(model(mx.array(TOKENS))).reshape(-1, architectures.VOCAB_SIZE)
    np.testing.assert_allclose(np.array(logits_of(parts)), expected, atol=1e-3 * np.abs(expected).max())


def test_a_head_that_is_no_layer_leaves_full_logits_and_says_so() -> None:
    model = made("talkie")
    assert "not a scaled and capped product" in str(split(model))
    gradients = choose_gradients(model, sft_loss, Kernels(), compiled=False)
    assert gradients.how.startswith("full logits, since")


@pytest.mark.parametrize("model_type", ["llama", "mistral3"])
def test_a_trained_head_is_not_split_off(model_type: str) -> None:
    path = "lm_head" if model_type == "llama" else "language_model.lm_head"
    model = made(model_type, targets=("q_proj", path))
    assert "LoRALinear" in str(split(model)) and "is trained" in str(split(model))


def test_splitting_draws_no_random_numbers_and_leaves_the_model_as_it_was() -> None:
    model = adapted(targets=("*",), dropout=0.4)
    state, kinds = np.array(mx.random.state[0]), [type(module) for module in model.modules()]
    parts = split(model)
    assert isinstance(parts, Split)
    parts.hidden(mx.array(TOKENS % 64))
    model.eval()
    split(model)
    assert [type(module) for module in model.modules()] == kinds
    assert not any(module.training for module in model.modules())
    model.train()
    mx.random.state[0][:] = mx.array(state)
    split(model)
    assert np.array_equal(np.array(mx.random.state[0]), state) and all(module.training for module in model.modules())


def test_a_score_head_in_a_shell() -> None:
    model = made("gemma3")
    add_score_head(model)
    assert model.score.weight.shape == (1, 64)
