"""What packing a layer is expected to change, against what it does change."""

import importlib
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlxmath.models.sensitivity import _drawn, error_of, sensitivities
from mlxmath.weights.packing import CANDIDATES, Packing
from mlxmath.weights.quantize import packable
from tests.conftest import make_tiny_llama
from tests.models import architectures

TOKENS_BL = mx.array(np.random.default_rng(0).integers(1, 60, (24, 32)))
MASK_BL = mx.array(np.random.default_rng(1).random((24, 32)) < 0.8)


def measured(model: Any, forms: dict[str, Packing]) -> float:
    """Mean KL of the targets, with these layers packed."""
    layers = dict(packable(model))
    before = nn.log_softmax(model(TOKENS_BL[:, :-1]).astype(mx.float32))
    kept = {path: layers[path].weight for path in forms}
    for path, form in forms.items():
        layers[path].weight = kept[path] + error_of(kept[path], form, mx.float32)
    after = nn.log_softmax(model(TOKENS_BL[:, :-1]).astype(mx.float32))
    for path, weight in kept.items():
        layers[path].weight = weight
    mask = MASK_BL[:, 1:]
    return (((mx.exp(before) * (before - after)).sum(-1) * mask).sum() / mask.sum()).item()


class Fixed(nn.Module):
    """Gives these logits, whatever the tokens."""

    def __init__(self, logits_BLV: mx.array) -> None:
        super().__init__()
        self.logits_BLV = logits_BLV

    def __call__(self, tokens_BL: mx.array) -> mx.array:
        return self.logits_BLV[:, : tokens_BL.shape[1]]


def test_gradients_of_logits_have_the_covariance_of_the_fisher_matrix() -> None:
    logits_V = np.array([2.0, 1.5, 0.0, -1.0, -4.0])
    p_V = np.exp(logits_V) / np.exp(logits_V).sum()
    model = Fixed(mx.broadcast_to(mx.array(logits_V, mx.float32), (40, 1000, 5)))
    tokens_BL, mask_BL = mx.zeros((40, 1001), mx.int32), mx.ones((40, 1001), mx.bool_)
    gradient = nn.value_and_grad(model, _drawn)(model, tokens_BL, mask_BL, mx.random.key(0))[1]["logits_BLV"]
    v_NV = np.array(gradient).reshape(-1, 5)
    np.testing.assert_allclose(v_NV.T @ v_NV / len(v_NV), np.diag(p_V) - np.outer(p_V, p_V), atol=0.005)


class Noted(nn.Module):
    """A head whose calls note in which mode it is, with a dropout that would change every number."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head, self.dropout = nn.Embedding(60, 32), nn.Linear(32, 60), nn.Dropout(0.9)
        self.modes: set[tuple[bool, bool]] = set()

    def __call__(self, tokens_BL: mx.array) -> mx.array:
        self.modes.add((self.training, self.dropout.training))
        return self.head(self.dropout(self.embed(tokens_BL)))


def test_it_is_measured_in_training_mode() -> None:
    """mlx_lm computes answers with kernels that have no gradients, on Metal."""
    model = Noted()
    model.eval()
    sensitivities(model, [(TOKENS_BL, MASK_BL)], {"head": [Packing(3, 32)]}, mx.float32)
    assert model.modes == {(True, False)}
    assert not any(module.training for module in model.modules())


def test_the_head_is_exact_but_for_what_is_drawn() -> None:
    model = make_tiny_llama(tie_word_embeddings=False)
    model.lm_head.weight = model.lm_head.weight * 30  # some tokens are likely, most are not
    form = Packing(3, 32)
    found = sensitivities(model, [(TOKENS_BL, MASK_BL)] * 20, {"lm_head": [form]}, mx.float32)["lm_head"][0]
    # ½ δᵀ (diag p - p pᵀ) δ with δ = E h, in NumPy
    hidden = np.array(model.model(TOKENS_BL[:, :-1]), np.float64)
    weight = np.array(model.lm_head.weight, np.float64)
    logits = hidden @ weight.T
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    delta = hidden @ np.array(error_of(model.lm_head.weight, form, mx.float32), np.float64).T
    expected = 0.5 * ((p * delta**2).sum(-1) - (p * delta).sum(-1) ** 2)
    mask = np.array(MASK_BL[:, 1:])
    assert found == pytest.approx((expected * mask).sum() / mask.sum(), rel=0.05)


@pytest.mark.parametrize(("model_type", "least"), [("llama", 0.4), ("gemma3_text", 0.4), ("qwen3_moe", 0.25)])
def test_layers_cost_about_what_is_measured(model_type: str, least: float) -> None:
    """Of a mixture less is expected than is measured: that a token is given to other experts has no gradient."""
    model, _ = architectures.make(model_type)
    forms = {
        path: [form for form in CANDIDATES if layer.weight.shape[-1] % form.group_size == 0]
        for path, layer in packable(model)
    }
    before = {name: mx.array(array) for name, array in tree_flatten(model.parameters())}
    trained = {name for name, _ in tree_flatten(model.trainable_parameters())}
    kinds = {path: type(layer) for path, layer in packable(model)}
    found = sensitivities(model, [(TOKENS_BL[:8], MASK_BL[:8]), (TOKENS_BL[8:], MASK_BL[8:])], forms, mx.float32)
    assert {name for name, _ in tree_flatten(model.trainable_parameters())} == trained  # the model is as it was
    assert {path: type(layer) for path, layer in packable(model)} == kinds
    after = dict(tree_flatten(model.parameters()))
    assert after.keys() == before.keys()
    assert all(mx.array_equal(after[name], before[name]) for name in before)
    ratios = []
    for path, own in forms.items():
        number = own.index(Packing(4, 32))
        truth = measured(model, {path: own[number]})
        assert found[path][number] >= 0
        if truth > 1e-6:  # above the rounding of float32
            ratios.append(found[path][number] / truth)
        if not path.endswith("gate"):  # finer forms cost less
            assert found[path][own.index(Packing(8, 32))] <= found[path][number] <= found[path][0] * 1.001
    assert len(ratios) > len(forms) / 3
    assert least < np.exp(np.mean(np.log(ratios))) < 2.5


def test_kernels_that_only_answer_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Metal's of linear attention, which models in evaluation mode, as they are loaded, call."""
    home = importlib.import_module("mlx_lm.models.qwen3_5")
    model, original = architectures.make("qwen3_5")[0], home.gated_delta_update

    def played(*given: Any, use_kernel: bool = True, **more: Any) -> tuple[mx.array, mx.array]:
        @mx.custom_function
        def kernel(q: mx.array) -> tuple[mx.array, mx.array]:
            return original(q, *given[1:], use_kernel=False, **more)

        @kernel.vjp
        def kernel_vjp(*_: Any) -> Any:
            raise ValueError("[Primitive::vjp] Not implemented for CustomKernel.")

        return kernel(given[0]) if use_kernel else original(*given, use_kernel=False, **more)

    monkeypatch.setattr(home, "gated_delta_update", played)
    model.eval()
    forms = {path: [Packing(4, 32)] for path, _ in packable(model) if path.endswith("in_proj_qkv")}
    assert all(cost > 0 for (cost,) in sensitivities(model, [(TOKENS_BL[:2], MASK_BL[:2])], forms, mx.float32).values())
    assert not any(module.training for module in model.modules())
