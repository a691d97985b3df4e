"""DoRA, rsLoRA and full fine-tuning: the layers by hand, what trains, and the files that mlx_lm reads."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.dora import DoRALinear as MlxLmDoRALinear

from mlxmath.config.schema import LoraConfig
from mlxmath.errors import InputError, MlxmathError
from mlxmath.models.lora.adapter import load_adapter
from mlxmath.models.lora.inject import adapter_arrays, inject, open_blocks
from mlxmath.models.lora.layers import DoRALinear, LoRALinear
from tests.conftest import make_tiny_llama
from tests.models.adapted import assert_served, linear, randomize, reconfigured, save, weight_of

TOKENS = mx.array([[1, 2, 3, 4, 5]])


def dora_layer(base: nn.Module, **more: Any) -> DoRALinear:
    layer = DoRALinear(base, rank=3, scale=1.5, **more)
    layer.lora_b = mx.random.normal(layer.lora_b.shape) * 0.3
    layer.m = layer.m * mx.random.uniform(0.5, 2.0, layer.m.shape)
    return layer


def dora_by_hand(layer: DoRALinear, x: mx.array) -> np.ndarray:
    weight, a, b, m = (np.array(t, np.float64) for t in (weight_of(layer.linear), layer.lora_a, layer.lora_b, layer.m))
    adapted = weight + 1.5 * (a @ b).T
    bias = np.array(layer.linear.bias) if "bias" in layer.linear else 0
    return np.array(x) @ (m[:, None] * adapted / np.linalg.norm(adapted, axis=1, keepdims=True)).T + bias


@pytest.mark.parametrize("bits", [None, 4, 8])
@pytest.mark.parametrize("bias", [False, True])
def test_dora_is_magnitude_times_direction(bits: int | None, bias: bool) -> None:
    layer = dora_layer(linear(bits, bias=bias))
    x = mx.random.normal((3, 4, 64))
    np.testing.assert_allclose(np.array(layer(x)), dora_by_hand(layer, x), rtol=1e-4, atol=1e-3 if bits else 1e-5)


@pytest.mark.parametrize("quantized", [False, True])
def test_dora_gradients_are_mlx_lms(quantized: bool) -> None:
    base = nn.Linear(64, 32, bias=True)
    base = nn.QuantizedLinear.from_linear(base, 32, 8) if quantized else base
    ours, theirs = dora_layer(base), MlxLmDoRALinear.from_base(base, r=3, scale=1.5)
    assert np.allclose(np.array(theirs.m), np.array(DoRALinear(base, 3, 1.5).m), rtol=1e-6)
    theirs.freeze()
    theirs.unfreeze(keys=["lora_a", "lora_b", "m"], recurse=False)
    theirs.load_weights(tree_flatten(ours.trainable_parameters()), strict=False)
    x, g = mx.random.normal((2, 5, 64)), mx.random.normal((2, 5, 32))

    def value(module: nn.Module, x: mx.array) -> mx.array:
        return (module(x) * g).sum()

    found, our_gradients = nn.value_and_grad(ours, value)(ours, x)
    expected, their_gradients = nn.value_and_grad(theirs, value)(theirs, x)
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)
    for name in ("lora_a", "lora_b", "m"):
        np.testing.assert_allclose(np.array(our_gradients[name]), np.array(their_gradients[name]), rtol=2e-3, atol=2e-3)


def test_dora_dropout_acts_on_the_adapter_only() -> None:
    layer = dora_layer(nn.Linear(6, 5, bias=False), dropout=0.5)
    layer.lora_b = mx.zeros((3, 5))
    layer.train()
    x = mx.random.normal((50, 6))
    np.testing.assert_allclose(np.array(layer(x)), dora_by_hand(layer, x), rtol=1e-4, atol=1e-5)


def test_only_a_b_and_m_train() -> None:
    model = make_tiny_llama()
    before = sum(a.size for _, a in tree_flatten(model.parameters()))
    injected = inject(model, LoraConfig(variant="dora", rank=4))
    assert {name.rsplit(".", 1)[-1] for name in adapter_arrays(model)} == {"lora_a", "lora_b", "m"}
    assert injected.num_trainable == 2 * (4 * (32 + 32) + 32 + 4 * (32 + 16) + 16)
    assert injected.num_total == before + injected.num_trainable
    assert "DoRA adapters on self_attn.q_proj, self_attn.v_proj" in str(injected)


def test_rslora_divides_alpha_by_the_root_of_the_rank(tmp_path: Path) -> None:
    config = LoraConfig(rank=7, alpha=12, rslora=True)
    assert config.scale == 12 / 7**0.5 and LoraConfig(rank=7, alpha=12).scale == 12 / 7
    model = make_tiny_llama()
    injected = inject(model, config)
    assert model.layers[0].self_attn.q_proj.scale.item() == np.float32(12 / 7**0.5)
    save(tmp_path, model, config, keys=injected.keys)
    record = json.loads((tmp_path / "adapter_config.json").read_text())
    assert record["lora_parameters"]["scale"] == 12 / 7**0.5
    assert (record["lora_alpha"], record["use_rslora"]) == (12, True)


@pytest.mark.parametrize("scale", [0.1, 12 / 7**0.5, 1e-3 / 3, 20.0])
def test_the_recorded_scale_is_restored_exactly(tmp_path: Path, scale: float) -> None:
    config = LoraConfig(rank=7)
    model = make_tiny_llama()
    save(tmp_path, model, config, keys=inject(model, config).keys)
    reconfigured(tmp_path, lambda record: record["lora_parameters"].update(scale=scale))
    again = make_tiny_llama()
    load_adapter(again, tmp_path)
    found = [m.scale.item() for _, m in again.named_modules() if isinstance(m, LoRALinear)]
    assert set(found) == {float(np.float32(scale))}


VARIANTS = {
    "dora": {"variant": "dora"},
    "rslora": {"rslora": True},
    "both": {"variant": "dora", "rslora": True, "targets": ("*",), "num_layers": 1},
}


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("base", ["plain", "biased", "quantized"])
def test_the_folder_loads_in_mlx_lm_with_the_same_output(tmp_path: Path, variant: str, base: str) -> None:
    def make() -> nn.Module:
        model = make_tiny_llama(intermediate_size=64, attention_bias=base == "biased")
        if base == "quantized":
            nn.quantize(model, group_size=32, bits=8)
        return model

    config = LoraConfig(rank=4, alpha=12, **VARIANTS[variant])
    ours = make()
    injected = inject(ours, config)
    randomize(ours)
    save(tmp_path, ours, config, keys=injected.keys)
    assert_served(tmp_path, make, ours, TOKENS)


@pytest.mark.parametrize(("num_layers", "blocks"), [(-1, {"0", "1"}), (1, {"1"}), (9, {"0", "1"})])
def test_full_opens_the_blocks_and_nothing_else(num_layers: int, blocks: set[str]) -> None:
    model = make_tiny_llama()
    injected = open_blocks(model, num_layers)
    names = list(adapter_arrays(model))
    assert {name.split(".")[2] for name in names} == blocks
    assert all(name.startswith("model.layers.") for name in names)
    assert len(names) == 9 * len(blocks)  # seven linear layers, two norms
    assert {"input_layernorm", "self_attn.q_proj", "mlp.down_proj"} <= set(injected.keys)
    per_block = sum(a.size for _, a in tree_flatten(model.layers[0].parameters()))
    assert injected.num_trainable == per_block * len(blocks)
    assert injected.num_total == sum(a.size for _, a in tree_flatten(model.parameters()))
    assert str(injected).startswith(f"{9 * len(blocks)} layers: input_layernorm")


@pytest.mark.parametrize("num_layers", [-1, 1])
def test_full_loads_in_mlx_lm_and_here_with_the_same_output(tmp_path: Path, num_layers: int) -> None:
    ours = make_tiny_llama()
    injected = open_blocks(ours, num_layers)
    randomize(ours)
    save(tmp_path, ours, LoraConfig(num_layers=num_layers), keys=injected.keys, full=True)
    record = json.loads((tmp_path / "adapter_config.json").read_text())
    assert record == {"fine_tune_type": "full", "num_layers": num_layers}
    assert_served(tmp_path, make_tiny_llama, ours, TOKENS, 0)


def test_full_keeps_the_type_of_a_16_bit_model(tmp_path: Path) -> None:
    ours = make_tiny_llama()
    ours.set_dtype(mx.bfloat16)
    injected = open_blocks(ours, -1)
    save(tmp_path, ours, LoraConfig(), keys=injected.keys, full=True)
    again = make_tiny_llama()
    again.set_dtype(mx.bfloat16)
    load_adapter(again, tmp_path)
    assert {a.dtype for a in adapter_arrays(again).values()} == {mx.bfloat16}
    assert mx.array_equal(again(TOKENS), ours(TOKENS))


def test_full_refuses_a_quantized_model_and_a_missing_tensor(tmp_path: Path) -> None:
    quantized = make_tiny_llama(intermediate_size=64)
    nn.quantize(quantized, group_size=32, bits=8)
    with pytest.raises(InputError, match=r"--full: the model is quantized"):
        open_blocks(quantized, -1)
    model = make_tiny_llama()
    save(tmp_path, model, LoraConfig(), keys=open_blocks(model, -1).keys, full=True)
    arrays = mx.load(str(tmp_path / "adapters.safetensors"))
    mx.eval(arrays)
    del arrays["model.layers.1.mlp.up_proj.weight"]
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), arrays)
    with pytest.raises(MlxmathError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        load_adapter(make_tiny_llama(), tmp_path)
