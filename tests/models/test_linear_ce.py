"""One-pass linear cross-entropy against plain cross-entropy over full logits, for every kind of head."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlxmath.models import linear_ce
from mlxmath.models.kernels.cpu import CpuKernels
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.linear_ce import linear_cross_entropy
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
