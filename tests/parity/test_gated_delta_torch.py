"""Gradients of the gated delta rule in chunks against torch's autograd of the recurrence in float64."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxmath.models.gated_delta import CHUNK, gated_delta
from tests.models.adapted import assert_close

torch = pytest.importorskip("torch")


def recurrence(q: Any, k: Any, v: Any, decay: Any, beta: Any, state: Any) -> tuple[Any, Any]:
    """Of one row and one head: (L, D), (L, D), (L, E), (L, 1 or D), (L), (E, D)."""
    outputs = []
    for t in range(len(q)):
        state = state * decay[t]
        state = state + torch.outer(beta[t] * (v[t] - state @ k[t]), k[t])
        outputs.append(state @ q[t])
    return torch.stack(outputs), state


@pytest.mark.parametrize("strength", [0.0, 0.1, 3.0, 40.0])
@pytest.mark.parametrize("channels", [False, True])
def test_gradients_are_those_of_autograd_in_float64(channels: bool, strength: float) -> None:
    length, width, value_width = 2 * CHUNK + 11, 12, 6
    rng = np.random.default_rng(3)
    q, k = (rng.normal(size=(length, width)) for _ in range(2))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    decay = np.exp(-strength * np.abs(rng.normal(size=(length, width if channels else 1))))
    v, state = rng.normal(size=(length, value_width)), rng.normal(size=(value_width, width))
    arrays = [x.astype(np.float32) for x in (q, k, v, decay, rng.uniform(size=length), state)]
    d_output, d_state = rng.normal(size=(length, value_width)), rng.normal(size=(value_width, width))

    exact = [torch.tensor(x.astype(np.float64), requires_grad=True) for x in arrays]
    outputs, after = recurrence(*exact)
    ((outputs * torch.tensor(d_output)).sum() + (after * torch.tensor(d_state)).sum()).backward()

    def total(q: mx.array, k: mx.array, v: mx.array, decay: mx.array, beta: mx.array, state: mx.array) -> mx.array:
        heads = (q[None, :, None], k[None, :, None], v[None, :, None], decay[None, :, None], beta[None, :, None])
        if not channels:
            heads = (*heads[:3], heads[3].squeeze(-1), heads[4])
        output, after = gated_delta(*heads, state[None, None])
        return (output[0, :, 0] * mx.array(d_output, mx.float32)).sum() + (
            after[0, 0] * mx.array(d_state, mx.float32)
        ).sum()

    found = mx.grad(total, argnums=range(6))(*map(mx.array, arrays))
    for name, gradient, each in zip(("q", "k", "v", "decay", "beta", "state"), found, exact, strict=True):
        assert_close(gradient, each.grad.numpy(), 1e-5, name)
