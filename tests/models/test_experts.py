"""LoRA on a mixture's experts: the layer against a loop over experts, and what mlx_lm makes of it."""

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_unflatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from mlxmath.config.schema import LoraConfig
from mlxmath.errors import InputError
from mlxmath.models.lora.adapter import load_adapter
from mlxmath.models.lora.inject import adapter_arrays, inject, open_blocks
from mlxmath.models.lora.layers import DoRALinear, ExpertsLoRALinear, LoRALinear
from tests.models.adapted import assert_served, randomize, save
from tests.models.architectures import make

EXPERTS, INPUTS, OUTPUTS, RANK, SCALE = 5, 64, 32, 3, 1.5
ALL_OF_SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def base_layer(kind: str) -> tuple[nn.Module, np.ndarray, np.ndarray]:
    """A layer of experts, its weights (E, O, I) and biases (E, O)."""
    layer = SwitchLinear(INPUTS, OUTPUTS, EXPERTS, bias=True)
    layer.bias = mx.random.normal((EXPERTS, OUTPUTS))
    weight = layer.weight
    if kind != "plain":
        mode, group_size, bits = {"affine": ("affine", 32, 4), "mxfp4": ("mxfp4", 32, 4)}[kind]
        layer = layer.to_quantized(group_size, bits, mode)
        assert isinstance(layer, QuantizedSwitchLinear)
        weight = mx.dequantize(
            layer.weight, layer.scales, layer.biases, group_size=group_size, bits=bits, mode=mode, dtype=mx.float32
        )
    return layer, np.array(weight), np.array(layer.bias)


@pytest.mark.parametrize("kind", ["plain", "affine", "mxfp4"])
@pytest.mark.parametrize("is_sorted", [False, True])
def test_forward_and_gradients_are_those_of_a_loop_over_experts(kind: str, is_sorted: bool) -> None:
    mx.random.seed(2)
    base, weight, bias = base_layer(kind)
    layer = ExpertsLoRALinear(base, RANK, SCALE)
    assert layer.lora_a.shape == (EXPERTS, RANK, INPUTS) and layer.lora_b.shape == (EXPERTS, OUTPUTS, RANK)
    layer.lora_b = mx.random.normal((EXPERTS, OUTPUTS, RANK))
    if is_sorted:  # expert 3 is chosen by no token
        indices = mx.array([0, 0, 1, 2, 2, 2, 4, 4], mx.uint32)
        x = mx.random.normal((8, 1, INPUTS))
    else:
        indices = mx.array([[[4, 0], [0, 2], [2, 1], [4, 2]]], mx.uint32)
        x = mx.random.normal((1, 4, 1, 1, INPUTS))
    g = mx.random.normal((*indices.shape, 1, OUTPUTS))

    def value(a: mx.array, b: mx.array, x: mx.array) -> mx.array:
        layer.lora_a, layer.lora_b = a, b
        return (layer(x, indices, sorted_indices=is_sorted) * g).sum()

    a, b = layer.lora_a, layer.lora_b
    found = layer(x, indices, sorted_indices=is_sorted)
    d_a, d_b, d_x = mx.grad(value, argnums=(0, 1, 2))(a, b, x)
    an, bn, gn, xn = (np.array(t, np.float64) for t in (a, b, g, x))
    expected, e_a, e_b, e_x = (np.zeros(t.shape) for t in (found, a, b, x))
    for place, expert in np.ndenumerate(np.array(indices)):
        source = place if is_sorted else (*place[:2], 0)
        row, d = xn[source][0], gn[place][0]
        full = weight[expert] + SCALE * bn[expert] @ an[expert]
        expected[place] = full @ row + bias[expert]
        e_b[expert] += SCALE * np.outer(d, an[expert] @ row)
        e_a[expert] += SCALE * np.outer(bn[expert].T @ d, row)
        e_x[source] += d @ full
    for ours, theirs in ((found, expected), (d_a, e_a), (d_b, e_b), (d_x, e_x)):
        np.testing.assert_allclose(np.array(ours), theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())
    assert not np.array(d_a[3]).any() or not is_sorted


def can_be_packed(path: str, module: nn.Module) -> bool:
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % 32 == 0


def quantized(model: nn.Module) -> nn.Module:
    nn.quantize(model, group_size=32, bits=8, class_predicate=can_be_packed)
    return model


@pytest.mark.parametrize("num_tokens", [12, 80])  # mlx_lm sorts from 64 chosen experts on
@pytest.mark.parametrize("is_quantized", [False, True])
@pytest.mark.parametrize(
    ("model_type", "experts"),
    [
        ("qwen3_moe", "mlp.switch_mlp.down_proj"),
        ("gpt_oss", "mlp.experts.down_proj"),
        ("gemma4", "experts.switch_glu.down_proj"),
        ("mixtral", "block_sparse_moe.switch_mlp.down_proj"),
        ("lfm2_moe", "feed_forward.switch_mlp.down_proj"),
        ("llama4", "feed_forward.experts.down_proj"),
        ("nemotron_h", "mixer.switch_mlp.fc2"),
        ("bailing_moe", "mlp.switch_mlp.down_proj"),
    ],
)
def test_experts_by_every_name_load_in_mlx_lm_and_fuse(
    tmp_path: Path, model_type: str, experts: str, is_quantized: bool, num_tokens: int
) -> None:
    def fresh() -> nn.Module:
        model = make(model_type)[0]
        return quantized(model) if is_quantized else model

    tokens = mx.random.randint(4, 128, (1, num_tokens), key=mx.random.key(5))
    config = LoraConfig(rank=4, alpha=8, targets=("*",))
    ours = fresh()
    injected = inject(ours, config)
    assert experts in injected.keys and any("experts train" in note for note in injected.notes)
    randomize(ours)
    save(tmp_path, ours, config, injected.keys)
    theirs, expected = assert_served(tmp_path, fresh, ours, tokens), np.array(ours(tokens))
    fused = [(name, m.fuse(dequantize=True)) for name, m in theirs.named_modules() if hasattr(m, "fuse")]
    theirs.update_modules(tree_unflatten(fused))
    np.testing.assert_allclose(np.array(theirs(tokens)), expected, rtol=0, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("model_type", "targets", "words"),
    [
        ("qwen3_moe", None, "the experts stay as they are; add switch_mlp.* to --lora-targets"),
        ("gpt_oss", None, "the experts stay as they are; add experts.* to --lora-targets"),
        ("gemma4", ("mlp.*",), "the experts stay as they are; add switch_glu.* to --lora-targets"),
        ("qwen2_moe", ("shared_expert.*",), "the experts stay as they are; add switch_mlp.* to --lora-targets"),
        ("qwen3_moe", ("mlp.*",), "experts train: each of the 4 of a block has adapters of its own"),
        ("qwen3_moe", ALL_OF_SEVEN, "experts train: each of the 4 of a block has adapters of its own"),
        ("llama4", ("experts.*",), "experts train: each of the 4 of a block has adapters of its own"),
    ],
)
def test_the_run_says_whether_experts_train(model_type: str, targets: tuple[str, ...] | None, words: str) -> None:
    model = make(model_type)[0]
    notes = inject(model, LoraConfig(rank=4, targets=targets)).notes
    about_experts = [note for note in notes if "experts" in note]
    assert len(about_experts) == 1 and words in about_experts[0]
    trains = any(isinstance(module, ExpertsLoRALinear) for module in model.modules())
    assert trains == ("experts train" in words)


def test_a_dense_model_has_no_word_on_experts() -> None:
    assert not any("expert" in note for note in inject(make("llama")[0], LoraConfig(rank=4)).notes)


def test_parameters_are_counted() -> None:
    model = make("qwen3_moe")[0]
    injected = inject(model, LoraConfig(rank=4, targets=("switch_mlp.down_proj",)))
    layers = [module for module in model.modules() if isinstance(module, ExpertsLoRALinear)]
    experts, outputs, inputs = layers[0].linear.weight.shape
    assert injected.num_modules == len(layers)
    assert injected.num_trainable == len(layers) * experts * 4 * (inputs + outputs)
    packed = quantized(make("qwen3_moe")[0])
    scales = sum(
        module[name].size
        for module in packed.modules()
        for name in ("scales", "biases")
        if module.get(name) is not None
    )
    assert inject(packed, LoraConfig(rank=4, targets=("switch_mlp.down_proj",))).num_total == (
        injected.num_total + scales
    )


def test_dora_is_refused_on_experts_by_name_and_passes_over_them_in_a_glob() -> None:
    config = LoraConfig(variant="dora", rank=4, targets=("switch_mlp.gate_proj",))
    with pytest.raises(InputError, match=r"no DoRA for experts such as mlp\.switch_mlp\.gate_proj"):
        inject(make("qwen3_moe")[0], config)
    model = make("qwen3_moe")[0]
    injected = inject(model, LoraConfig(variant="dora", rank=4, targets=("*",)))
    assert any("no DoRA" in note for note in injected.notes)
    assert not any("switch_mlp" in key for key in injected.keys)
    assert any(isinstance(module, DoRALinear) for module in model.modules())


def test_full_opens_experts_and_refuses_packed_ones(tmp_path: Path) -> None:
    model = make("qwen3_moe")[0]
    injected = open_blocks(model, -1)
    assert "mlp.switch_mlp.up_proj" in injected.keys
    assert all(mx.issubdtype(array.dtype, mx.floating) for array in adapter_arrays(model).values())
    packed = make("qwen3_moe")[0]
    nn.quantize(packed, group_size=32, bits=4, class_predicate=lambda path, m: isinstance(m, SwitchLinear))
    with pytest.raises(InputError, match=r"--full: the model is quantized"):
        open_blocks(packed, -1)
    randomize(model)
    save(tmp_path, model, LoraConfig(), injected.keys, full=True)
    assert_served(tmp_path, lambda: make("qwen3_moe")[0], model, mx.array([[5, 9, 33, 7]]), 0)


def test_an_adapter_that_mlx_lm_makes_with_its_default_settings_loads(tmp_path: Path) -> None:
    from mlx_lm.tuner.utils import linear_to_lora_layers

    parameters = {"rank": 8, "dropout": 0.0, "scale": 20.0}
    for model_type in ("qwen2_moe", "llama", "gpt2", "deepseek_v3"):
        theirs = make(model_type)[0]
        theirs.freeze()
        linear_to_lora_layers(theirs, 1, parameters)
        randomize(theirs)
        folder = tmp_path / model_type
        folder.mkdir()
        mx.save_safetensors(str(folder / "adapters.safetensors"), adapter_arrays(theirs))
        record = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": parameters, "model": "x", "seed": 0}
        (folder / "adapter_config.json").write_text(json.dumps(record))
        ours, tokens = make(model_type)[0], mx.array([[5, 9, 33, 7]])
        load_adapter(ours, folder)
        ours.eval(), theirs.eval()
        expected = np.array(theirs(tokens))
        np.testing.assert_allclose(np.array(ours(tokens)), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
        assert any(isinstance(module, LoRALinear) for module in ours.modules())
