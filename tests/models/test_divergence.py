"""The divergence from a teacher without all logits, against torch over full logits in float64: values and gradients."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxmath.models import divergence
from mlxmath.models.divergence import divergences
from mlxmath.models.kernels.cpu import CpuKernels
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.linear_ce import FusedHead
from mlxmath.models.lm_head import Head
from tests.models.adapted import D, N, V, heads, weight_of

torch = pytest.importorskip("torch", reason="the parity extra is not installed")
BETAS = (0.0, 0.3, 1.0)


def expected(
    student: Any, teacher: Any, beta: float, temperature: float
) -> tuple[Any, Any]:  # fmt: skip
    """(N,) divergence and entropy, out of logits, as the paper's equation 1 says it."""
    log_p, log_q = (torch.log_softmax(logits / temperature, -1) for logits in (student, teacher))
    p, q = log_p.exp(), log_q.exp()
    kl = lambda a, log_a, log_b: (a * (log_a - log_b)).sum(-1)  # noqa: E731
    entropy = -(p * log_p).sum(-1)
    if beta in (0, 1):
        return (kl(p, log_p, log_q) if beta else kl(q, log_q, log_p)), entropy
    log_m = torch.log((1 - beta) * p + beta * q)
    return beta * kl(q, log_q, log_m) + (1 - beta) * kl(p, log_p, log_m), entropy


def in_torch(hidden: mx.array, head: Head) -> tuple[Any, Any]:
    """Hidden states that take a gradient, and their logits."""
    given = torch.tensor(np.array(hidden), dtype=torch.float64, requires_grad=True)
    logits = head.scale * (given @ torch.tensor(np.array(weight_of(head.layer)), dtype=torch.float64).T)
    if "bias" in head.layer:
        logits = logits + head.scale * torch.tensor(np.array(head.layer.bias), dtype=torch.float64)
    return given, head.soft_cap * torch.tanh(logits / head.soft_cap) if head.soft_cap else logits


@pytest.mark.parametrize(("temperature", "chunk_rows"), [(1.0, 7), (0.7, 1000)])
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("kernels", [CpuKernels, Kernels])
@pytest.mark.parametrize("name", list(heads()))
def test_values_and_gradients_equal_torch(
    monkeypatch: pytest.MonkeyPatch, name: str, kernels: Any, beta: float, temperature: float, chunk_rows: int
) -> None:
    monkeypatch.setattr(divergence, "CHUNK_BYTES", chunk_rows * 8 * V)
    student, teacher = heads()[name], heads()["capped"] if "capped" in heads() else heads()["untied"]
    mx.random.seed(3)
    hidden, other = mx.random.normal((N, D)), mx.random.normal((N, D)) * 2
    weights = (mx.arange(N) % 5 > 0).astype(mx.float32)  # a mask

    def loss(hidden: mx.array) -> Any:
        found = divergences(
            hidden, FusedHead(student, kernels()), other, FusedHead(teacher, kernels()), beta=beta,
            temperature=temperature,
        )  # fmt: skip
        return (found.divergences_N * weights).sum(), found

    (total, found), gradient = mx.value_and_grad(loss)(hidden)
    given, logits = in_torch(hidden, student)
    of_rows, entropies = expected(logits, in_torch(other, teacher)[1], beta, temperature)
    summed = (of_rows * torch.tensor(np.array(weights))).sum()
    summed.backward()
    assert total.item() == pytest.approx(summed.item(), rel=1e-5)
    np.testing.assert_allclose(np.array(found.divergences_N), of_rows.detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.array(found.entropies_N), entropies.detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.array(gradient), given.grad.numpy(), rtol=1e-4, atol=1e-5)
