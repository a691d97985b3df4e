"""What a GPU measures before training, with stand-ins for its clock and its answers."""

import json
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlxmath.models import tuning
from mlxmath.models.kernels import kernels_for, loss_kernels
from mlxmath.models.kernels.gpu import FastKernels
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.linear import PACKED, DequantizedLinear, Products, products_of
from mlxmath.models.lm_head import Head
from mlxmath.models.padded_attention import attention_padded
from mlxmath.runtime.device import DeviceInfo
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
    choices = tuning.choose_products(quantized, 2048, stand_in({"forward": forward, "backward": backward}, seen))
    tuning.use(quantized, json.loads(json.dumps(choices)))
    layer = quantized.layers[0].mlp.up_proj
    if forward or backward:
        assert type(layer) is DequantizedLinear
        assert layer.products == quantized.model.embed_tokens.products == Products(forward, backward, 4)
    else:
        assert type(layer) is nn.QuantizedLinear
    # one of each size is measured, counted as often as the model has it: 7 linear layers in 2 blocks, 1 or 3 ms each
    sizes = len({shape for shape, *_ in seen})
    assert {rows for _, rows, _, _ in seen} == ({2048, 8} if forward else {2048})
    assert len(seen) == (6 if forward else 4) * sizes
    (text,) = tuning.lines_of(choices)
    assert "2,048 rows" in text and f"forward {'dequantized first' if forward else 'packed'} (14.0 ms" in text
    assert f"backward {'dequantized first' if backward else 'packed'} (14.0 ms for all, 42.0 ms" in text


@pytest.mark.parametrize(("packed_up_to", "few_rows"), [(0, 4), (8, 8), (24, 24), (300, 96), (512, 384)])
def test_packed_weights_serve_the_rows_of_drawing_for_which_they_are_faster(
    quantized: Any, packed_up_to: int, few_rows: int
) -> None:
    def timing(layer: nn.QuantizedLinear, num_rows: int, direction: tuning.Direction, first: bool) -> float:
        return 1e-3 if first == (num_rows > packed_up_to) else 3e-3

    choices = tuning.choose_products(quantized, 2048, timing)
    assert choices["products"] == {"forward": True, "backward": True, "few_rows": few_rows}
    assert f"packed for up to {few_rows} rows" in choices["products_measured"]


def test_a_model_without_quantized_layers_is_left_alone(tiny_llama: Any) -> None:
    assert tuning.choose_products(tiny_llama, 64, stand_in({}, [])) == {}


def test_the_fastest_loss_is_taken_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = {"one": Kernels(), "other": FastKernels()}
    choices = tuning.choose_loss(ways, lambda kernels: 1e-3 if isinstance(kernels, FastKernels) else 2e-3)
    assert choices["loss"] == "other" and "one 2.00 ms, other 1.00 ms" in choices["loss_measured"]
    monkeypatch.setattr(tuning, "_LOGITS", (4, 50))
    assert tuning.choose_loss(ways)["loss"] in ways  # by the clock


def test_kernels_are_those_that_were_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu = DeviceInfo("cuda", "stand-in", 1, "bfloat16", "")
    found = loss_kernels("cuda")  # what a CPU has of them
    assert list(found) == ["mx.fast.cross_entropy", "MLX's operations"]
    assert type(kernels_for(on_a_gpu, choices={"loss": "MLX's operations"})) is Kernels
    chosen = kernels_for(on_a_gpu, choices={"loss": "mx.fast.cross_entropy", "attention_multiple": 128})
    assert type(chosen) is FastKernels and chosen.attention_multiple == 128
    assert kernels_for(on_a_gpu, choices={"loss": "gone"}).attention_multiple == 1


def test_nothing_is_measured_on_a_cpu(quantized: Any) -> None:
    assert tuning.tune(quantized, DeviceInfo("cpu", "", 1, "float32", ""), 64) == {}


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


def test_attention_is_padded_where_that_is_faster_and_fused(tiny_llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(padded: float = 1.0) -> tuple[Any, str]:
        found = tuning.choose_attention(tiny_llama, lambda _, pads: padded if pads else 2.0)
        return found.get("attention_multiple"), found["attention_measured"]

    multiple, text = choose()
    assert multiple is None and "not fused" in text and "float32" in text
    tiny_llama.set_dtype(mx.bfloat16)
    assert "CPU backend" in choose()[1]  # the device's own word
    monkeypatch.setattr(tuning, "_refusal", lambda *_: None)
    assert choose()[0] == 128 and choose(padded=3.0)[0] == 1
    assert "own code" in tuning.choose_attention(architectures.make("gemma3")[0])["attention_measured"]
    assert all(0 < tuning.attention_seconds(mx.zeros((1, 2, 24, 8)), pads) < 10 for pads in (True, False))


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma2", "qwen3_moe"])
def test_padded_attention_changes_neither_values_nor_gradients(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = architectures.make(model_type)
    tokens, seen = mx.arange(42).reshape(2, 21), set()
    original = mx.fast.scaled_dot_product_attention

    def attention(q: mx.array, k: mx.array, v: mx.array, **options: Any) -> mx.array:
        seen.add((q.shape[2], k.shape[2], options["mask"] if isinstance(options["mask"], str) else "an array"))
        return original(q, k, v, **options)

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", attention)

    def loss(parameters: Any) -> mx.array:
        model.update(parameters)
        return mx.square(model(tokens).astype(mx.float32)).sum()

    expected = mx.value_and_grad(loss)(model.trainable_parameters())
    mx.eval(expected)
    if model_type != "gemma2":  # which has a soft cap, and so its own attention
        assert seen == {(21, 21, "causal")}, "never an array that says the same"
    seen.clear()
    with attention_padded(model, 16):
        found = mx.value_and_grad(loss)(model.trainable_parameters())
        mx.eval(found)
    assert seen == ({(32, 32, "causal")} if model_type != "gemma2" else set())
    np.testing.assert_allclose(found[0].item(), expected[0].item(), rtol=1e-5)
    for (name, one), (_, other) in zip(tree_flatten(found[1]), tree_flatten(expected[1]), strict=True):
        scale = max(1.0, mx.abs(other).max().item())
        np.testing.assert_allclose(np.array(one), np.array(other), rtol=1e-3, atol=1e-4 * scale, err_msg=name)
    seen.clear()
    mx.eval(model(tokens))
    assert not any(length == 32 for length, *_ in seen), "only while it lasts"
