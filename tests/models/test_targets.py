"""Which layers get adapters, by default and by name, in models of every structure."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlxmath.config.schema import LoraConfig
from mlxmath.errors import InputError
from mlxmath.models.lora.inject import inject
from mlxmath.models.lora.targets import resolve_targets
from tests.conftest import make_tiny_llama
from tests.models.adapted import assert_served, randomize, save
from tests.models.architectures import make

DEFAULTS = {
    "llama": "self_attn.q_proj self_attn.v_proj",
    "phi3": "self_attn.qkv_proj",
    "qwen": "attn.c_attn",
    "gpt2": "attn.c_attn",
    "gpt_neox": "attention.query_key_value",
    "internlm2": "attention.wqkv",
    "baichuan_m1": "self_attn.W_pack",
    "nanochat": "attn.c_q attn.c_v",
    "dbrx": "norm_attn_norm.attn.Wqkv",
    "deepseek_v2": "self_attn.kv_b_proj self_attn.q_b_proj",
    "deepseek_v3": "self_attn.kv_a_proj_with_mqa self_attn.q_b_proj",
    "deepseek_v32": "self_attn.kv_a_proj_with_mqa self_attn.q_b_proj",
    "longcat_flash": "self_attn.0.kv_a_proj_with_mqa self_attn.0.q_b_proj self_attn.1.kv_a_proj_with_mqa "
    "self_attn.1.q_b_proj",
    "mamba": "mixer.in_proj",
    "mamba2": "mixer.in_proj",
    "falcon_h1": "mamba.in_proj self_attn.q_proj self_attn.v_proj",
    "nemotron_h": "mixer.in_proj mixer.q_proj mixer.v_proj",
    "lfm2": "conv.in_proj self_attn.q_proj self_attn.v_proj",
    "qwen3_5": "linear_attn.in_proj_qkv self_attn.q_proj self_attn.v_proj",
    "qwen3_next": "linear_attn.in_proj_qkvz self_attn.q_proj self_attn.v_proj",
    "kimi_linear": "self_attn.kv_a_proj_with_mqa self_attn.q_proj self_attn.v_proj",
    "rwkv7": "attn.r_proj attn.v_proj",
    "afm7": "self_attn.q_proj",
}


@pytest.mark.parametrize("model_type", list(DEFAULTS))
def test_by_default_queries_and_values(model_type: str) -> None:
    model = make(model_type)[0]
    injected = inject(model, LoraConfig(rank=4))
    assert " ".join(injected.keys) == DEFAULTS[model_type]
    assert injected.notes[0].startswith("no --lora-targets are given")
    assert all(key in injected.notes[0] for key in injected.keys)


@pytest.mark.parametrize("model_type", ["qwen3_5", "falcon_h1", "nemotron_h", "gemma3n", "qwen3_next"])
def test_no_mixing_layer_of_a_hybrid_is_left_out(model_type: str) -> None:
    model = make(model_type)[0]
    names = ("self_attn", "linear_attn", "mamba", "mixer")
    targets = resolve_targets(model, LoraConfig(rank=4))
    for number, block in enumerate(model.layers):
        for name in names:
            mixer = getattr(block, name, None)
            if mixer is None or not any("q_proj" in mixer or "in_proj" in key for key in mixer):
                continue
            assert any(layer.block == number and f"{name}." in layer.key for layer in targets.layers)


def test_resolving_changes_and_computes_nothing() -> None:
    model = make("qwen3_moe")[0]
    before = dict(model.named_modules())
    lazy = mx.zeros((4, 64)) + 1
    model.layers[0].self_attn.q_proj.weight = mx.broadcast_to(lazy[:1], (64, 64))
    config = LoraConfig(rank=4, targets=("*",), num_layers=1)
    targets = resolve_targets(model, config)
    assert dict(model.named_modules()).keys() == before.keys()
    assert all(layer.block == len(model.layers) - 1 for layer in targets.layers)
    assert targets.num_parameters(config) == inject(model, config).num_trainable


@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_the_number_of_parameters_is_known_before(variant: str) -> None:
    model, config = make_tiny_llama(), LoraConfig(rank=4, variant=variant)
    assert resolve_targets(model, config).num_parameters(config) == inject(model, config).num_trainable


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_bigcode", "dbrx", "mamba", "talkie", "plamo", "nanochat"])
def test_a_star_means_all_layers_of_blocks_by_whatever_name_they_go(model_type: str) -> None:
    model = make(model_type)[0]
    inside = {id(module) for block in model.layers for module in block.modules()}
    linears = {path for path, module in model.named_modules() if isinstance(module, nn.Linear) and id(module) in inside}
    targets = resolve_targets(model, LoraConfig(rank=2, targets=("*",)))
    assert {layer.path for layer in targets.layers} == linears
    assert all(layer.block is not None for layer in targets.layers)


def test_a_glob_passes_over_layers_with_one_output_and_says_so() -> None:
    for targets in (("*",), ("mlp.*",)):
        injected = inject(make("qwen2_moe")[0], LoraConfig(rank=4, targets=targets))
        assert any("mlp.shared_expert_gate (1)" in note for note in injected.notes)
        assert "mlp.shared_expert_gate" not in injected.keys
    with pytest.raises(InputError, match=r"--lora-rank 4 exceeds the smaller side of mlp\.shared_expert_gate \(1\)"):
        inject(make("qwen2_moe")[0], LoraConfig(rank=4, targets=("shared_expert_gate",)))
    with pytest.raises(InputError, match=r"exceeds the smaller side of mlp\.shared_expert_gate"):
        inject(make("qwen2_moe")[0], LoraConfig(rank=4, targets=("*_expert_gate",)))


@pytest.mark.parametrize(
    ("model_type", "target", "near"),
    [("phi3", "q_proj", "qkv_proj"), ("gpt2", "v_proj", "c_proj"), ("qwen3_moe", "experts.*", "This model has")],
)
def test_what_is_asked_for_and_not_there_is_an_error(model_type: str, target: str, near: str) -> None:
    with pytest.raises(InputError, match=f"matches no linear layer.*{near}"):
        inject(make(model_type)[0], LoraConfig(rank=4, targets=(target,)))


def test_what_only_earlier_blocks_have_is_an_error_that_says_so() -> None:
    model = make("qwen3_5")[0]
    assert model.layers[-1].is_linear and not all(block.is_linear for block in model.layers)
    with pytest.raises(InputError, match=r"'q_proj' matches nothing in the last blocks.*--lora-num-layers"):
        inject(model, LoraConfig(rank=4, targets=("q_proj",), num_layers=1))


def test_an_architecture_of_unknown_names_gets_all_its_linear_layers() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.other = nn.Linear(8, 8), nn.Linear(8, 8)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.lm_head = [Block()], nn.Linear(8, 8)

    injected = inject(Model(), LoraConfig(rank=2))
    assert injected.keys == ("mix", "other")
    assert "all linear layers of the blocks" in injected.notes[0]


@pytest.mark.parametrize(
    ("model_type", "targets"),
    [
        ("llama", ("model.layers.1.self_attn.q_proj", "v_proj")),  # one block of several
        ("qwen2_moe", ("*",)),
        ("gpt2", ("h.1.attn.c_attn",)),
        ("llama", ("q_proj", "lm_head")),
    ],
)
def test_mlx_lm_puts_adapters_on_the_same_layers(tmp_path: Path, model_type: str, targets: tuple[str, ...]) -> None:
    """One block's layer is not that of all blocks: mlx_lm would put adapters on the others, without weights."""
    ours, config = make(model_type)[0], LoraConfig(rank=4, targets=targets)
    injected = inject(ours, config)
    randomize(ours)
    save(tmp_path, ours, config, injected.keys)
    theirs = assert_served(tmp_path, lambda: make(model_type)[0], ours, mx.array([[5, 9, 33, 7]]))
    there = {name for name, module in theirs.named_modules() if "lora_a" in module}
    assert there == {name for name, module in ours.named_modules() if "lora_a" in module}


@pytest.mark.parametrize("bits", [3, 5, 6])
def test_dora_on_bits_that_mlx_lm_cannot_load_is_refused_at_the_start(bits: int) -> None:
    def base() -> nn.Module:
        model = make_tiny_llama(intermediate_size=64)
        nn.quantize(model, group_size=32, bits=bits)
        return model

    for targets in (None, ("q_proj",), ("*",)):
        with pytest.raises(InputError, match=rf"has {bits} bits, and mlx_lm cannot load DoRA"):
            inject(base(), LoraConfig(rank=4, variant="dora", targets=targets))
    inject(base(), LoraConfig(rank=4))
