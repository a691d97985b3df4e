"""On-policy distillation's loss and its gradient against TRL's own `generalized_jsd_loss`, with masks."""

import warnings
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxmath.config.gkd import GkdConfig
from mlxmath.data.batch import Batch, TeacherTargets
from mlxmath.models.linear_ce import FullLogits
from mlxmath.training.gkd.loss import gkd_loss

torch = pytest.importorskip("torch", reason="the parity extra is not installed")
B, L, V = 3, 9, 37


@pytest.fixture(scope="module")
def loss_of_trl() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gkd = pytest.importorskip("trl.experimental.gkd", reason="the parity extra is not installed")
    return gkd.GKDTrainer.generalized_jsd_loss


@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_loss_and_gradient_equal_trl(loss_of_trl: Any, beta: float, temperature: float) -> None:
    rng = np.random.default_rng(4)
    student, teacher = rng.normal(size=(2, B, L, V)) * 3
    mask = rng.random((B, L)) < 0.6
    theirs = torch.tensor(student, requires_grad=True)
    labels = torch.tensor(np.where(mask, 1, -100))
    expected = loss_of_trl(theirs, torch.tensor(teacher), labels=labels, beta=beta, temperature=temperature)
    expected.backward()

    at = np.nonzero(mask.reshape(-1))[0]
    positions, num = np.concatenate([at, [0, 0]]), len(at)  # two that only fill up
    weights = mx.array((np.arange(num + 2) < num).astype(np.float32))
    other = mx.array(teacher.reshape(-1, V)[positions].astype(np.float32))
    batch = Batch(
        mx.zeros((B, L), mx.int32), mx.array(positions), mx.zeros(num + 2, mx.int32), weights, (), 0, num,
        TeacherTargets(other),
    )  # fmt: skip
    config = GkdConfig(beta=beta, temperature=temperature)

    def loss(logits: mx.array) -> mx.array:
        chosen = logits.reshape(-1, V)[mx.array(positions)]
        return partial(gkd_loss, config=config, teacher=FullLogits())(chosen, batch, FullLogits())[0] / num

    found, gradient = mx.value_and_grad(loss)(mx.array(student.astype(np.float32)))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(np.array(gradient), theirs.grad.numpy(), rtol=1e-4, atol=1e-5 / num)
    assert not np.array(gradient)[~mask].any()
