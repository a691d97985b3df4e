"""One-pass linear cross-entropy against plain cross-entropy over full logits, for every kind of head."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlxmath.models import linear_ce
from mlxmath.models.kernels.cpu import CpuKernels
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.linear_ce import FullLogits, linear_cross_entropy, linear_entropies
from mlxmath.models.lm_head import Head
from tests.models.adapted import D, N, V, heads, weight_of


def plain(hidden: mx.array, targets: mx.array, weights: mx.array, head: Head) -> mx.array:
    layer = head.layer
    logits = head.scale * (hidden @ weight_of(layer).T + (layer.bias if "bias" in layer else 0))
    if head.soft_cap:
        logits = head.soft_cap * mx.tanh(logits / head.soft_cap)
    return (nn.losses.cross_entropy(logits, targets) * weights).sum()


@pytest.mark.parametrize("chunk_rows", [1, 7, 23, 1000])
@pytest.mark.parametrize("kernels", [CpuKernels, Kernels])
@pytest.mark.parametrize("name", list(heads()))
def test_loss_and_gradient(monkeypatch: pytest.MonkeyPatch, name: str, kernels: Any, chunk_rows: int) -> None:
    monkeypatch.setattr(linear_ce, "CHUNK_BYTES", chunk_rows * 4 * V)
    head = heads()[name]
    hidden = mx.random.normal((N, D)) * 3
    targets = mx.random.randint(0, V, (N,))
    weights = (mx.arange(N) % 5 > 0).astype(mx.float32)
    expected, d_expected = mx.value_and_grad(lambda h: plain(h, targets, weights, head))(hidden)
    found, d_found = mx.value_and_grad(lambda h: linear_cross_entropy(h, targets, weights, head, kernels()) * 1.0)(
        hidden
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(np.array(d_found), np.array(d_expected), rtol=1e-3, atol=2e-5)


def test_the_gradient_is_scaled_by_what_follows() -> None:
    head = heads()["untied"]
    hidden, targets = mx.random.normal((4, D)), mx.arange(4)
    loss = lambda h, factor: factor * linear_cross_entropy(h, targets, mx.ones(4), head, Kernels())  # noqa: E731
    np.testing.assert_allclose(
        np.array(mx.grad(loss)(hidden, 3.0)), 3 * np.array(mx.grad(loss)(hidden, 1.0)), rtol=1e-5, atol=1e-6
    )


def test_against_torch_in_16_bits() -> None:
    torch = pytest.importorskip("torch", reason="the parity extra is not installed")
    head = heads()["untied"]
    hidden = mx.random.normal((N, D)).astype(mx.bfloat16)
    targets = mx.random.randint(0, V, (N,))
    loss, gradient = mx.value_and_grad(lambda h: linear_cross_entropy(h, targets, mx.ones(N), head, Kernels()))(hidden)
    h = torch.tensor(np.array(hidden.astype(mx.float32)), dtype=torch.bfloat16).requires_grad_()
    w = torch.tensor(np.array(head.layer.weight)).to(torch.bfloat16)
    expected = torch.nn.functional.cross_entropy(
        (h @ w.T).float(), torch.tensor(np.array(targets)).long(), reduction="sum"
    )
    expected.backward()
    assert gradient.dtype == mx.bfloat16
    assert loss.item() == pytest.approx(expected.item(), rel=5e-3)
    reference = h.grad.float().numpy()
    assert np.abs(np.array(gradient.astype(mx.float32)) - reference).max() < 0.03 * np.abs(reference).max()


@pytest.mark.parametrize("way", [CpuKernels, Kernels, None])
@pytest.mark.parametrize("name", ["untied", "scale and bias", "tied", "scale and soft cap"])
def test_label_smoothing_is_that_of_torch(monkeypatch: pytest.MonkeyPatch, name: str, way: Any) -> None:
    torch = pytest.importorskip("torch", reason="the parity extra is not installed")
    monkeypatch.setattr(linear_ce, "CHUNK_BYTES", 7 * 4 * V)
    head, smoothing = heads()[name], 0.15
    hidden, targets = mx.random.normal((N, D)) * 3, mx.random.randint(0, V, (N,))
    weights = (mx.arange(N) % 5 > 0).astype(mx.float32)

    def ours(h: mx.array) -> mx.array:
        if way is not None:
            return linear_cross_entropy(h, targets, weights, head, way(), smoothing)
        logits = head.logits(h)
        logits = head.soft_cap * mx.tanh(logits / head.soft_cap) if head.soft_cap else logits
        return FullLogits().cross_entropy(logits, targets, weights, smoothing)

    loss, gradient = mx.value_and_grad(ours)(hidden)
    h = torch.tensor(np.array(hidden), dtype=torch.float64, requires_grad=True)
    bias = head.layer.bias if "bias" in head.layer else mx.zeros(V)
    logits = head.scale * (h @ torch.tensor(np.array(weight_of(head.layer))).double().T + torch.tensor(np.array(bias)))
    logits = head.soft_cap * torch.tanh(logits / head.soft_cap) if head.soft_cap else logits
    losses = torch.nn.functional.cross_entropy(
        logits, torch.tensor(np.array(targets)).long(), reduction="none", label_smoothing=smoothing
    )
    expected = (losses * torch.tensor(np.array(weights))).sum()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(np.array(gradient), h.grad.numpy(), atol=1e-5 * max(1, h.grad.abs().max().item()))


def test_the_smoothing_of_a_large_vocabulary_loses_nothing() -> None:
    """A mean over a vocabulary, added up one logit after the other, would be off in its fifth digit."""
    size, smoothing = 151_936, 0.1
    rng = np.random.default_rng(0)
    weight, hidden = rng.normal(size=(size, 4)).astype(np.float32), rng.normal(size=(3, 4)).astype(np.float32) + 2
    layer = nn.Linear(4, size, bias=False)
    layer.weight = mx.array(weight)
    targets = np.array([0, 7, size - 1])
    logits = hidden.astype(np.float64) @ weight.T.astype(np.float64) + 0.0
    log_sums = np.log(np.exp(logits).sum(-1))
    expected = log_sums - (1 - smoothing) * logits[np.arange(3), targets] - smoothing * logits.mean(-1)
    for kernels in (CpuKernels(), Kernels()):
        found = linear_cross_entropy(mx.array(hidden), mx.array(targets), mx.ones(3), Head(layer), kernels, smoothing)
        assert found.item() == pytest.approx(expected.sum(), abs=1e-5 * 3)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("kernels", [CpuKernels, Kernels])
@pytest.mark.parametrize("name", ["untied", "bias", "scale and soft cap", "4 bits"])
def test_entropies(monkeypatch: pytest.MonkeyPatch, name: str, kernels: Any, temperature: float) -> None:
    monkeypatch.setattr(linear_ce, "CHUNK_BYTES", 7 * 4 * V)
    head = heads()[name]
    hidden, targets = mx.random.normal((N, D)) * 3, mx.random.randint(0, V, (N,))
    logits = head.logits(hidden)
    capped = head.soft_cap * mx.tanh(logits / head.soft_cap) if head.soft_cap else logits
    exact = np.array(capped, np.float64) / temperature
    p = np.exp(exact - exact.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    expected = -(p * np.log(p)).sum(-1)
    np.testing.assert_allclose(
        np.array(linear_entropies(hidden, targets, head, kernels(), temperature)), expected, atol=2e-5
    )
    np.testing.assert_allclose(np.array(FullLogits().entropies(capped, targets, temperature)), expected, atol=2e-5)
