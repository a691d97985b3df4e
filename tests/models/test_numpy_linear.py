"""NumPy's products in place of MLX's: the same values and gradients."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlxmath.config.schema import LoraConfig
from mlxmath.models.linear import NumpyLinear, use_numpy
from mlxmath.models.load import load_model
from mlxmath.models.lora.inject import inject
from mlxmath.weights.hub import DEMO_FOLDER
from tests.conftest import make_tiny_llama


@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients(bias: bool) -> None:
    plain = nn.Linear(6, 5, bias=bias)
    ours = nn.Linear(6, 5, bias=bias)
    ours.update(plain.parameters())
    use_numpy(ours)
    assert type(ours) is NumpyLinear
    x, cotangent = mx.random.normal((2, 3, 6)), mx.random.normal((2, 3, 5))
    np.testing.assert_allclose(np.array(ours(x)), np.array(plain(x)), rtol=1e-5, atol=1e-6)

    def gradients(layer: nn.Module) -> list[mx.array]:
        def loss(x: mx.array, weight: mx.array) -> mx.array:
            layer.weight = weight
            return (layer(x) * cotangent).sum()

        return list(mx.grad(loss, argnums=(0, 1))(x, plain.weight))

    for one, other in zip(gradients(ours), gradients(plain), strict=True):
        np.testing.assert_allclose(np.array(one), np.array(other), rtol=1e-5, atol=1e-6)


def test_a_whole_model_with_adapters() -> None:
    plain, ours = make_tiny_llama(), make_tiny_llama()
    use_numpy(ours)
    for model in (plain, ours):
        mx.random.seed(2)
        inject(model, LoraConfig(rank=4, targets=("*",)))
    tokens = mx.array([[1, 2, 3, 4]])
    np.testing.assert_allclose(np.array(ours(tokens)), np.array(plain(tokens)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("missing", [False, True])
def test_only_where_the_blas_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: bool) -> None:
    from mlxmath.config.schema import ModelConfig
    from mlxmath.weights.convert import ensure_model

    assert DEMO_FOLDER.is_dir()
    ensure_model(ModelConfig(model="demo", mlx_path=str(tmp_path / "m"), dtype="float32"))
    monkeypatch.setattr("mlxmath.models.load.blas_is_missing", lambda: missing)
    model = load_model(tmp_path / "m", "float32").model
    assert any(isinstance(m, NumpyLinear) for m in model.modules()) == missing
