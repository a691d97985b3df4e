"""Small models with adapters whose B is not zero, rows for them, and their folders; heads of every kind."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import gated_delta as home
from mlx_lm.tuner.utils import load_adapters

from mlxmath.config.schema import LoraConfig
from mlxmath.data.batch import Batch
from mlxmath.models.lm_head import Head
from mlxmath.models.lora.adapter import CONFIG, WEIGHTS, adapter_config, load_adapter, save_config, save_weights
from mlxmath.models.lora.inject import adapter_arrays, inject
from mlxmath.training.gradients import Gradients
from tests.conftest import FakeRows, make_tiny_llama

SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 48, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": 64,
}  # fmt: skip


MORE: dict[str, dict[str, Any]] = {
    "qwen2": {}, "gemma2": {"head_dim": 8}, "phi3": {"max_position_embeddings": 64},
    "qwen3": {"head_dim": 8, "rope_theta": 1e4, "max_position_embeddings": 64, "tie_word_embeddings": True},
}  # fmt: skip


def make(family: str) -> nn.Module:
    mx.random.seed(0)
    if family == "llama":
        return make_tiny_llama(num_hidden_layers=3)
    family_home = import_module(f"mlx_lm.models.{family}")
    return family_home.Model(family_home.ModelArgs(model_type=family, **SIZES, **MORE[family]))


def adapted(family: str = "llama", **changes: Any) -> nn.Module:
    """With adapters whose B is not zero."""
    model = make(family)
    inject(model, LoraConfig(**({"rank": 4} | changes)))
    model.update(tree_map(lambda a: a + 0.05, model.trainable_parameters()))
    model.train()
    return model


LENGTHS = (23, 14, 6)


def rows(vocab_size: int) -> FakeRows:
    rng = np.random.default_rng(5)
    tokens = [rng.integers(4, vocab_size, length) for length in LENGTHS]
    return FakeRows(tokens, [np.ones(length, np.uint8) for length in LENGTHS])


def random_adapters(model: nn.Module, **changes: Any) -> nn.Module:
    mx.random.seed(1)
    inject(model, LoraConfig(**({"rank": 4} | changes)))
    model.update(tree_map(lambda a: a + 0.1 * mx.random.normal(a.shape), model.trainable_parameters()))
    model.train()
    return model


def full_logits_loss(model: nn.Module, rows: FakeRows) -> mx.array:
    """Σ of the targets' cross-entropies, text by text, out of the model's own logits."""
    total = mx.zeros(())
    for tokens, mask in zip(rows.tokens, rows.masks, strict=True):
        logits_LV = model(mx.array(tokens[None, :-1]))[0].astype(mx.float32)
        losses_L = nn.losses.cross_entropy(logits_LV, mx.array(tokens[1:]))
        total = total + (losses_L * mx.array(mask[1:])).sum()
    return total


@contextmanager
def token_by_token() -> Iterator[None]:
    """The gated delta rule as mlx_lm has it."""
    ours = home.gated_delta_ops
    home.gated_delta_ops = getattr(ours, "__wrapped__", ours)
    try:
        yield
    finally:
        home.gated_delta_ops = ours


def plain_gradients(model: nn.Module, rows: FakeRows) -> tuple[mx.array, dict[str, mx.array]]:
    """That loss, and its gradients by plain autodiff."""
    with token_by_token():
        loss, gradients = nn.value_and_grad(model, lambda model: full_logits_loss(model, rows))(model)
    return loss, dict(tree_flatten(gradients))


def assert_agrees(ways: Gradients, batch: Batch, wanted_loss: mx.array, wanted: dict[str, mx.array]) -> None:
    """The loss, alone and with gradients, and each array's gradient."""
    assert_close(ways.loss(batch), wanted_loss, 1e-4, f"the loss alone ({ways.how})")
    loss, gradients = ways.loss_and_gradients(batch)
    assert_close(loss, wanted_loss, 1e-4, f"the loss ({ways.how})")
    found = dict(tree_flatten(gradients))
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert_close(found[name], array, 1e-3, f"{name} ({ways.how})")


def assert_close(found: mx.array, wanted: mx.array, tolerance: float, what: str) -> None:
    found_array, wanted_array = np.array(found, np.float64), np.array(wanted, np.float64)
    assert found_array.shape == wanted_array.shape, what
    assert np.isfinite(wanted_array).all(), what
    largest = np.abs(wanted_array).max()
    error = np.abs(found_array - wanted_array).max()
    assert error <= tolerance * max(largest, 1e-6), f"{what}: off by {error:.3g}, largest {largest:.3g}"


def randomize(model: nn.Module) -> None:
    """Move everything that trains."""
    mx.random.seed(3)
    arrays = {name: a + mx.random.normal(a.shape) * 0.1 for name, a in adapter_arrays(model).items()}
    model.load_weights(list(arrays.items()), strict=False)


def save(folder: Path, model: nn.Module, config: LoraConfig, keys: tuple[str, ...], **extra: Any) -> None:
    save_config(folder, adapter_config(config, keys, **extra))
    save_weights(folder / WEIGHTS, model)


def reconfigured(folder: Path, change: Callable[[Any], object]) -> None:
    """Another adapter_config.json: what `change` makes of it, or returns in its place."""
    record = json.loads((folder / CONFIG).read_text())
    found = change(record)
    (folder / CONFIG).write_text(json.dumps(record if found is None else found))


def assert_served(
    folder: Path, make: Callable[[], nn.Module], ours: nn.Module, tokens: mx.array, tolerance: float = 1e-4
) -> nn.Module:
    """The saved adapter on `make()` gives what `ours` gives, here and in mlx_lm (returned); the base does not."""
    theirs, again, base = load_adapters(make(), str(folder)), make(), make()
    load_adapter(again, folder)
    for model in (ours, theirs, again, base):
        model.eval()
    expected = np.array(ours(tokens))
    largest = np.abs(expected).max()
    assert np.abs(np.array(base(tokens)) - expected).max() > 1e-2 * largest
    np.testing.assert_array_equal(np.array(again(tokens)), expected)
    np.testing.assert_allclose(np.array(theirs(tokens)), expected, rtol=0, atol=tolerance * largest)
    return theirs


def linear(bits: int | None, *, bias: bool) -> nn.Module:
    """64 inputs, 32 outputs."""
    layer = nn.Linear(64, 32, bias=bias)
    return layer.to_quantized(32, bits) if bits else layer


def weight_of(layer: nn.Module) -> mx.array:
    if "scales" not in layer:
        return layer.weight
    return mx.dequantize(layer.weight, layer.scales, layer.biases, layer.group_size, layer.bits)


N, D, V = 23, 64, 96


def heads() -> dict[str, Head]:
    """Tied or not, quantized, scaled, with soft caps."""
    mx.random.seed(0)
    linear, biased, embedding = nn.Linear(D, V, bias=False), nn.Linear(D, V), nn.Embedding(V, D)
    return {
        "untied": Head(linear),
        "bias": Head(biased),
        "tied": Head(embedding),
        "soft cap": Head(linear, soft_cap=2.0),
        "scale and bias": Head(biased, scale=0.3),
        "scale and soft cap": Head(linear, soft_cap=2.0, scale=3.0),
        "4 bits": Head(nn.QuantizedLinear.from_linear(linear, 32, 4)),
        "8 bits, tied": Head(nn.QuantizedEmbedding.from_embedding(embedding, 32, 8)),
    }
