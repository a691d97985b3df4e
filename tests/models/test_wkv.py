"""Training of RWKV-7 on Metal, played: its kernel has no gradient."""

import importlib
from typing import Any

import mlx.core as mx
import pytest

from mlxmath.data.batch import Shape, make_batch
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.load import suit
from mlxmath.training.gradients import choose_gradients
from mlxmath.training.sft import sft_loss
from tests.models import architectures
from tests.models.adapted import assert_agrees, plain_gradients, random_adapters, rows


def test_the_kernel_has_the_gradient_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    home = importlib.import_module("mlx_lm.models.rwkv7")
    model = random_adapters(architectures.make("rwkv7")[0])
    texts = rows(architectures.VOCAB_SIZE)
    expected = plain_gradients(model, texts)
    mx.eval(expected)

    def played(*given: mx.array) -> Any:
        @mx.custom_function
        def kernel(*given: mx.array) -> Any:
            *inputs, state = given
            outputs = []
            for t in range(given[0].shape[1]):
                y, state = home._wkv7_step_ops(*(each[:, t] for each in inputs), state)
                outputs.append(y)
            return mx.stack(outputs, axis=1).reshape(given[0].shape), state

        @kernel.vjp
        def kernel_vjp(*_: Any) -> Any:
            raise ValueError("[Primitive::vjp] Not implemented for CustomKernel.")

        return list(kernel(*given))

    monkeypatch.setattr(home, "wkv7_kernel", played)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    suit(model, "float32")
    ways = choose_gradients(model, sft_loss, Kernels(), compiled=False)
    assert_agrees(ways, make_batch(texts, (0, 1, 2), Shape(8)), *expected)
