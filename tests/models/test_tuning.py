"""What a GPU measures before training, with stand-ins for its clock and its answers."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlxmath.models import tuning
from mlxmath.models.linear import PACKED, DequantizedLinear, Products, products_of
from mlxmath.models.lm_head import Head
from tests.conftest import make_tiny_llama
from tests.models import architectures


@pytest.fixture
def quantized() -> Any:
    model = make_tiny_llama(hidden_size=64, intermediate_size=64, tie_word_embeddings=True)
    nn.quantize(model, group_size=32, bits=4)
    model.freeze()
    return model


def stand_in(faster: dict[str, bool], seen: list[Any]) -> tuning.Timing:
    """A clock by which the dequantized product is the faster one in the directions in `faster`."""

    def timing(layer: nn.QuantizedLinear, num_rows: int, direction: tuning.Direction, first: bool) -> float:
        seen.append((layer.weight.shape, num_rows, direction, first))
        return 1e-3 if first == faster[direction] else 3e-3

    return timing


@pytest.mark.parametrize(("forward", "backward"), [(False, True), (True, True), (True, False), (False, False)])
def test_each_direction_takes_the_faster_way(quantized: Any, forward: bool, backward: bool) -> None:
    seen: list[Any] = []
    text = tuning.choose_products(quantized, 2048, stand_in({"forward": forward, "backward": backward}, seen))
    layer = quantized.layers[0].mlp.up_proj
    if forward or backward:
        assert type(layer) is DequantizedLinear
        assert layer.products == quantized.model.embed_tokens.products == Products(forward, backward, 512)
    else:
        assert type(layer) is nn.QuantizedLinear
    # one of each size is measured, counted as often as the model has it: 7 linear layers in 2 blocks, 1 or 3 ms each
    assert {rows for _, rows, _, _ in seen} == {2048}
    assert len(seen) == 4 * len({shape for shape, *_ in seen})
    assert "2,048 rows" in text and f"forward {'dequantized first' if forward else 'packed'} (14.0 ms" in text
    assert f"backward {'dequantized first' if backward else 'packed'} (14.0 ms for all, 42.0 ms" in text


def test_a_model_without_quantized_layers_is_left_alone(tiny_llama: Any) -> None:
    assert tuning.choose_products(tiny_llama, 64, stand_in({}, [])) == ""


def test_the_clock_measures_every_way() -> None:
    layer = nn.Linear(64, 96, bias=False).to_quantized(32, 4)
    for direction in ("forward", "backward"):
        for first in (False, True):
            assert 0 < tuning.seconds_of(layer, 8, direction, first) < 10  # type: ignore[arg-type]


@pytest.mark.parametrize("products", [Products(False, True, 0), Products(True, False, 0)])
def test_mixed_ways_have_the_same_values_and_gradients_compiled_too(quantized: Any, products: Products) -> None:
    tokens = mx.arange(12).reshape(2, 6)

    def loss(x: mx.array) -> mx.array:
        for layer in quantized.layers:
            x = layer(x)
        return mx.square(x).sum()

    x = quantized.model.embed_tokens(tokens)
    expected = mx.value_and_grad(loss)(x)
    mx.eval(expected)
    tuning.use_products(quantized, products)
    for function in (mx.value_and_grad(loss), mx.compile(mx.value_and_grad(loss))):
        for one, other in zip(function(x), expected, strict=True):
            np.testing.assert_allclose(np.array(one), np.array(other), rtol=1e-4, atol=1e-4)


def test_the_head_multiplies_as_its_layer_says(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Embedding(96, 64).to_quantized(64, 4)
    hidden, d_logits = mx.random.normal((7, 64)), mx.random.normal((7, 96))
    expected = Head(layer).logits(hidden), Head(layer).hidden_gradient(d_logits)
    monkeypatch.setattr("mlxmath.models.lm_head.products_of", lambda _: PACKED)  # as on a GPU
    found = Head(layer).logits(hidden), Head(layer).hidden_gradient(d_logits)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.array(one), np.array(other), rtol=1e-3, atol=1e-4)
    assert products_of(layer).forward  # on a CPU, always


@pytest.mark.parametrize(
    ("width", "dtype", "words"),
    [(64, "bfloat16", None), (128, "float16", None), (256, "bfloat16", "256 wide"), (60, "bfloat16", "60 wide"),
     (64, "float32", "float32")],
)  # fmt: skip
def test_why_attention_is_not_fused(width: int, dtype: str, words: str | None) -> None:
    reason = tuning.why_not_fused(width, width, getattr(mx, dtype))
    assert reason is None if words is None else words in (reason or "")


def test_the_run_says_how_attention_is_computed(tiny_llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuning.attention_note(tiny_llama) == ""
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu, 0))
    assert "not fused" in tuning.attention_note(tiny_llama) and "float32" in tuning.attention_note(tiny_llama)
    tiny_llama.set_dtype(mx.bfloat16)
    assert "CPU backend" in tuning.attention_note(tiny_llama)  # the device's own word
    monkeypatch.setattr(tuning, "_refusal", lambda *_: None)
    assert tuning.attention_note(tiny_llama).startswith("attention fused by cuDNN")
    in_a_shell, _ = architectures.make("gemma3")
    assert "own code" in tuning.attention_note(in_a_shell)
