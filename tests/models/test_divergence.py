"""The divergence from a teacher without all logits, against torch over full logits in float64: values and gradients."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxmath.models import divergence
from mlxmath.models.divergence import divergences, top_divergences, top_logprobs
from mlxmath.models.kernels.cpu import CpuKernels
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.linear_ce import FullLogits, FusedHead
from mlxmath.models.lm_head import Head
from tests.models.adapted import D, N, V, heads, weight_of

torch = pytest.importorskip("torch", reason="the parity extra is not installed")
BETAS = (0.0, 0.3, 1.0)


def expected(student: Any, teacher: Any, beta: float, temperature: float) -> tuple[Any, Any]:
    """(N,) divergence and entropy, out of logits, as the paper's equation 1 says it."""
    return of_logprobs(*(torch.log_softmax(logits / temperature, -1) for logits in (student, teacher)), beta)


def of_logprobs(log_p: Any, log_q: Any, beta: float) -> tuple[Any, Any]:
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
    student, teacher = heads()[name], heads()["scale and soft cap"]
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


def in_outcomes(logprobs: Any, ids: Any) -> Any:
    """Of the tokens `ids` of each position, and of all others together."""
    others = torch.ones_like(logprobs).scatter(-1, ids, 0.0) * logprobs.exp()
    return torch.cat([logprobs.gather(-1, ids), torch.log(others.sum(-1, keepdim=True))], -1)


@pytest.mark.parametrize(("temperature", "chunk_rows"), [(1.0, 7), (0.7, 1000)])
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("kernels", [CpuKernels, Kernels])
@pytest.mark.parametrize("name", ["untied", "scale and soft cap"])
def test_of_the_most_likely_tokens_and_the_rest(
    monkeypatch: pytest.MonkeyPatch, name: str, kernels: Any, beta: float, temperature: float, chunk_rows: int
) -> None:
    monkeypatch.setattr(divergence, "CHUNK_BYTES", chunk_rows * 12 * V)
    student, teacher = heads()[name], heads()["tied"]
    mx.random.seed(3)
    hidden, other = mx.random.normal((N, D)), mx.random.normal((N, D)) * 2
    ids, logprobs = top_logprobs(other, FusedHead(teacher, kernels()), 5, temperature, most=V)
    log_q = torch.log_softmax(in_torch(other, teacher)[1] / temperature, -1)
    best = log_q.topk(5)
    chosen = torch.tensor(np.array(ids)).long()
    assert (chosen.sort(-1).values == best.indices.sort(-1).values).all()
    wanted = in_outcomes(log_q, chosen)
    np.testing.assert_allclose(np.array(logprobs), wanted.detach().numpy(), rtol=1e-4, atol=1e-5)

    def loss(hidden: mx.array) -> Any:
        found = top_divergences(
            hidden, FusedHead(student, kernels()), ids, logprobs, beta=beta, temperature=temperature
        )
        return found.divergences_N.sum(), found

    (_, found), gradient = mx.value_and_grad(loss)(hidden)
    given, logits = in_torch(hidden, student)
    of_rows, entropies = of_logprobs(in_outcomes(torch.log_softmax(logits / temperature, -1), chosen), wanted, beta)
    of_rows.sum().backward()
    np.testing.assert_allclose(np.array(found.divergences_N), of_rows.detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.array(found.entropies_N), entropies.detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.array(gradient), given.grad.numpy(), rtol=1e-4, atol=1e-5)
    whole = expected(logits, in_torch(other, teacher)[1], beta, temperature)[0]
    assert (of_rows <= whole + 1e-9).all() and of_rows.sum() < whole.sum()


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("kernels", [CpuKernels, Kernels])
def test_of_all_tokens_and_no_rest_it_is_the_whole(kernels: Any, beta: float) -> None:
    student, teacher = (FusedHead(heads()[name], kernels()) for name in ("untied", "tied"))
    mx.random.seed(3)
    hidden, other = mx.random.normal((N, D)), mx.random.normal((N, D)) * 2
    ids, logprobs = top_logprobs(other, teacher, V, 0.8, most=None)
    top = lambda h: top_divergences(h, student, ids, logprobs, beta=beta, temperature=0.8).divergences_N  # noqa: E731
    whole = lambda h: divergences(h, student, other, teacher, beta=beta, temperature=0.8).divergences_N  # noqa: E731
    np.testing.assert_allclose(np.array(top(hidden)), np.array(whole(hidden)), rtol=1e-4, atol=1e-5)
    gradients = [np.array(mx.grad(lambda h, of=of: of(h).sum())(hidden)) for of in (top, whole)]
    np.testing.assert_allclose(*gradients, rtol=1e-3, atol=2e-5)


def test_logits_are_not_written_over() -> None:
    mx.random.seed(3)
    logits, other = mx.random.normal((N, V)), mx.random.normal((N, V))
    before = [np.array(each) for each in (logits, other)]
    mx.eval(divergences(logits, FullLogits(), other, FullLogits(), beta=1.0, temperature=1.0))
    hidden, fused = mx.random.normal((N, D)), FusedHead(heads()["untied"], CpuKernels())
    mx.eval(divergences(hidden, fused, other, FullLogits(), beta=1.0, temperature=1.0))
    ids, logprobs = top_logprobs(other, FullLogits(), 3, 1.0, most=V)
    kept = np.array(logprobs)
    mx.eval(top_divergences(hidden, fused, ids, logprobs, beta=0.5, temperature=1.0))
    for array, copy in zip((logits, other, logprobs), (*before, kept), strict=True):
        np.testing.assert_array_equal(np.array(array), copy)


def test_in_16_bits_the_gradient_has_the_outputs_type() -> None:
    head, teacher = FusedHead(heads()["untied"], Kernels()), FusedHead(heads()["tied"], Kernels())
    mx.random.seed(3)
    hidden, other = mx.random.normal((N, D)), mx.random.normal((N, D))
    loss = lambda h, t: divergences(h, head, t, teacher, beta=1.0, temperature=1.0).divergences_N.sum()  # noqa: E731
    wanted_total, wanted = mx.value_and_grad(loss)(hidden, other)
    total, found = mx.value_and_grad(loss)(hidden.astype(mx.bfloat16), other.astype(mx.bfloat16))
    assert found.dtype == mx.bfloat16 and total.dtype == mx.float32
    assert total.item() == pytest.approx(wanted_total.item(), rel=0.03)
    assert mx.abs(found.astype(mx.float32) - wanted).max().item() < 0.05 * mx.abs(wanted).max().item()
