"""Dequantize-then-multiply and NumPy's products: the same values and gradients as MLX's."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlxmath.config.schema import LoraConfig, ModelConfig
from mlxmath.models.linear import FEW_ROWS, DequantizedLinear, NumpyLinear, use_activations, use_numpy, use_products
from mlxmath.models.lm_head import Head
from mlxmath.models.load import load_model
from mlxmath.models.lora.inject import inject
from mlxmath.models.lora.layers import LoRALinear
from mlxmath.weights.convert import ensure_model
from mlxmath.weights.packing import FLOATS, Packing
from tests.conftest import make_tiny_llama
from tests.weights.handmade import llama_folder


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1, 40])
@pytest.mark.parametrize("bias", [False, True])
def test_dequantized_values_and_gradients(rows: int, bits: int, bias: bool) -> None:
    plain = nn.Linear(64, 24, bias=bias).to_quantized(32, bits)
    ours = nn.Linear(64, 24, bias=bias).to_quantized(32, bits)
    ours.update(plain.parameters())
    use_products(ours)
    assert type(ours) is DequantizedLinear
    x, cotangent = mx.random.normal((2, rows, 64)), mx.random.normal((2, rows, 24))
    for layer in (plain, ours):
        layer.freeze()
    found, expected = (mx.vjp(layer, [x], [cotangent]) for layer in (ours, plain))
    for one, other in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
        np.testing.assert_allclose(np.array(one), np.array(other), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", [Packing(2, 32), Packing(3), Packing(5), Packing(6, 32), *FLOATS.values()], ids=str)
@pytest.mark.parametrize("rows", [1, 40])
def test_lora_on_each_form_is_that_on_the_dequantized_weight(form: Packing, rows: int) -> None:
    plain = nn.Linear(64, 24, bias=False)
    packed = plain.to_quantized(form.group_size, form.bits, form.mode)
    use_products(packed)
    settings = {"group_size": form.group_size, "bits": form.bits, "mode": form.mode}
    plain.weight = mx.dequantize(packed.weight, packed.scales, packed.get("biases"), **settings).astype(mx.float32)
    layers = [LoRALinear(linear, rank=4, scale=2.0) for linear in (packed, plain)]
    layers[0].lora_b = mx.random.normal((4, 24))
    layers[1].lora_a, layers[1].lora_b = layers[0].lora_a, layers[0].lora_b
    x, cotangent = mx.random.normal((2, rows, 64)), mx.random.normal((2, rows, 24))

    def gradients(layer: LoRALinear) -> list[mx.array]:
        def loss(x: mx.array, lora_a: mx.array, lora_b: mx.array) -> mx.array:
            layer.lora_a, layer.lora_b = lora_a, lora_b
            return (layer(x) * cotangent).sum()

        return list(mx.grad(loss, argnums=(0, 1, 2))(x, layer.lora_a, layer.lora_b))

    for one, other in zip(*map(gradients, layers), strict=True):
        np.testing.assert_allclose(np.array(one), np.array(other), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", FLOATS)
def test_a_model_in_a_float_form_computes_in_its_own_type(mode: str, tmp_path: Path) -> None:
    source = llama_folder(tmp_path / "source")
    ensure_model(ModelConfig(model=str(source), mlx_path=str(tmp_path / "out"), quantize=mode))
    model = load_model(tmp_path / "out", "float32").model
    tokens = mx.array([[1, 2, 3, 4, 5, 6]])
    assert model.model.embed_tokens(tokens).dtype == mx.float32
    dense = load_model(tmp_path / "out", "float32").model
    for module in dense.modules():
        if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
            form = {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
            module.weight = mx.dequantize(module.weight, module.scales, **form).astype(mx.float32)
            module.__class__ = nn.Linear if isinstance(module, nn.QuantizedLinear) else nn.Embedding
    np.testing.assert_allclose(np.array(model(tokens)), np.array(dense(tokens)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [1, FEW_ROWS + 1, 40])
@pytest.mark.parametrize(("vocabulary", "form"), [(40, Packing(4, 32)), (9_000, Packing(3)), (64, FLOATS["mxfp4"])])
def test_a_packed_embedding_as_the_head(vocabulary: int, form: Packing, rows: int) -> None:
    plain, ours = (nn.Embedding(vocabulary, 64).to_quantized(form.group_size, form.bits, form.mode) for _ in range(2))
    ours.update(plain.parameters())
    use_activations(ours, mx.float32)
    use_products(ours)
    packed_products = mx.quantized_matmul
    x, cotangent = mx.random.normal((1, rows, 64)), mx.random.normal((1, rows, vocabulary))
    expected = mx.vjp(plain.as_linear, [x], [cotangent])
    with pytest.MonkeyPatch.context() as patch:  # which MLX computes row by row
        patch.setattr(mx, "quantized_matmul", None if rows > FEW_ROWS else packed_products)
        found = mx.vjp(ours.as_linear, [x], [cotangent])
    for one, other in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
        np.testing.assert_allclose(np.array(one), np.array(other), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("vocabulary", [64, 16_384, 40_000])
def test_a_head_in_slices(vocabulary: int) -> None:
    layer = nn.Embedding(vocabulary, 64).to_quantized(64, 4)
    weight = mx.dequantize(layer.weight, layer.scales, layer.biases, 64, 4)
    hidden, d_logits = mx.random.normal((7, 64)), mx.random.normal((7, vocabulary))
    head = Head(layer)
    np.testing.assert_allclose(np.array(head.logits(hidden)), np.array(hidden @ weight.T), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        np.array(head.hidden_gradient(d_logits)), np.array(d_logits @ weight), rtol=1e-3, atol=1e-3
    )


def test_one_weight_at_a_time() -> None:
    layers = [nn.Linear(512, 512, bias=False).to_quantized(64, 4) for _ in range(12)]
    for layer in layers:
        use_products(layer)
        layer.freeze()
    x = mx.random.normal((8, 512))
    mx.eval(x, [layer.parameters() for layer in layers])

    def chain(x: mx.array) -> mx.array:
        for layer in layers:
            x = layer(x)
        return x

    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(mx.grad(lambda x: chain(x).sum())(x))
    assert mx.get_peak_memory() - before < 6 * 4 * 512 * 512  # of twelve


@pytest.mark.parametrize("bias", [False, True])
def test_numpy_values_and_gradients(bias: bool) -> None:
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
    ensure_model(ModelConfig(model="demo", mlx_path=str(tmp_path / "m"), dtype="float32"))
    monkeypatch.setattr("mlxmath.models.load.blas_is_missing", lambda: missing)
    model = load_model(tmp_path / "m", "float32").model
    assert any(isinstance(m, NumpyLinear) for m in model.modules()) == missing
