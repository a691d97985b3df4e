"""Models as transformers 5 saves them, converted and loaded: the same logits, or a line that says what mlx_lm lacks."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers

from mlxmath.config.schema import ModelConfig
from mlxmath.errors import MlxmathError
from mlxmath.models.load import load_model
from mlxmath.weights.convert import ensure_model
from mlxmath.weights.manifest import Manifest

VOCABULARY = 160
WINDOW = 16
SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 16,
    "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 256, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def rope(**settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, **settings}}


LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}
LONG = {
    "rope_type": "longrope", "short_factor": [1 + i / 10 for i in range(8)], "long_factor": [2.0 + i for i in range(8)],
    "original_max_position_embeddings": 64,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1}
LATENT = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
LINEAR = {f"linear_{what}_head_dim": 16 for what in ("key", "value")} | {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
STATES = {"mamba_d_state": 8, "mamba_expand": 2}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
}
GPT_OSS_ROPE = {
    "rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip

SAME: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", rope()),
    "llama, llama3": ("Llama", rope(**LLAMA3)),
    "llama, linear": ("Llama", rope(rope_type="linear", factor=2.0)),
    "llama, dynamic": ("Llama", rope(rope_type="dynamic", factor=2.0)),
    "llama, yarn": ("Llama", rope(**YARN)),
    "llama, yarn with a factor of its own": ("Llama", rope(**YARN, attention_factor=1.3)),
    "llama, yarn with a small factor": ("Llama", rope(**YARN, attention_factor=0.7)),
    "mistral": ("Mistral", rope() | {"sliding_window": None}),
    "qwen2": ("Qwen2", rope()),
    "qwen3": ("Qwen3", rope()),
    "qwen3, yarn with a factor of its own": ("Qwen3", rope(**YARN, attention_factor=1.3)),
    "qwen3_moe": ("Qwen3Moe", rope() | EXPERTS),
    "qwen3_next": ("Qwen3Next", rope(partial_rotary_factor=0.25) | EXPERTS | LINEAR | {
        "shared_expert_intermediate_size": 32, "layer_types": ["linear_attention", "full_attention"] * 2}),
    "qwen3_5": ("Qwen3_5", LINEAR | {"layer_types": ["linear_attention", "full_attention"] * 2}),
    "olmo2": ("Olmo2", rope()),
    "olmo3": ("Olmo3", rope() | {"sliding_window": WINDOW}),
    "phi3": ("Phi3", rope() | {"sliding_window": None}),
    "phi3, some dimensions": ("Phi3", rope(partial_rotary_factor=0.5) | {"sliding_window": None}),
    "phi3, longrope": ("Phi3", rope(**LONG) | {"original_max_position_embeddings": 64, "sliding_window": None}),
    "smollm3": ("SmolLM3", rope()),
    "cohere": ("Cohere", rope()),
    "cohere2": ("Cohere2", rope() | {"sliding_window": WINDOW}),
    "gemma2": ("Gemma2", rope()),
    "gemma3": ("Gemma3", {"rope_parameters": GEMMA3_ROPE, "sliding_window": WINDOW, "num_hidden_layers": 6}),
    "gemma3, another period": ("Gemma3", {"rope_parameters": GEMMA3_ROPE, "sliding_window": WINDOW, "layer_types":
        ["sliding_attention", "full_attention"] * 2}),
    "granite": ("Granite", rope()),
    "stablelm": ("StableLm", rope(partial_rotary_factor=0.5)),
    "glm4": ("Glm4", rope(partial_rotary_factor=0.5)),
    "glm4_moe": ("Glm4Moe", rope(partial_rotary_factor=0.5) | ROUTED | {"n_group": 1, "topk_group": 1}),
    "deepseek_v3": ("DeepseekV3", rope(**YARN, mscale=1.0, mscale_all_dim=1.0) | ROUTED | LATENT | {
        "n_group": 2, "topk_group": 1, "num_key_value_heads": 4, "head_dim": 8}),
    "exaone4": ("Exaone4", rope() | {"sliding_window": WINDOW, "sliding_window_pattern": 4}),
    "apertus": ("Apertus", rope(**LLAMA3)),
    "exaone_moe": ("ExaoneMoe", rope() | EXPERTS | {"sliding_window": WINDOW, "num_shared_experts": 1,
        "mlp_layer_types": ["dense", "sparse", "dense", "sparse"]}),
    "minimax_m2": ("MiniMaxM2", rope() | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "minimax_m2, some dimensions": ("MiniMaxM2", rope(partial_rotary_factor=0.5) | {
        "num_local_experts": 4, "num_experts_per_tok": 2}),
    "solar_open": ("SolarOpen", rope() | ROUTED | {"n_group": 1, "topk_group": 1}),
    "gpt_oss": ("GptOss", {"rope_parameters": GPT_OSS_ROPE, "num_local_experts": 4, "num_experts_per_tok": 2,
                           "sliding_window": WINDOW}),
    "lfm2": ("Lfm2", {"layer_types": ["conv", "full_attention"] * 2}),
    "granitemoehybrid": ("GraniteMoeHybrid", STATES | {"num_local_experts": 4, "num_experts_per_tok": 2,
        "shared_intermediate_size": 32, "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 1,
        "mamba_chunk_size": 8, "layer_types": ["mamba", "attention"] * 2}),
    "recurrent_gemma": ("RecurrentGemma", {"block_types": ["recurrent", "attention"], "num_key_value_heads": 1}),
}  # fmt: skip
NOTED: dict[str, tuple[str, dict[str, Any], float, str]] = {
    "gpt_neox": ("GPTNeoX", rope(partial_rotary_factor=0.25) | {"intermediate_size": 256}, 3e-3, "approximate GELU"),
    "starcoder2": ("Starcoder2", rope() | {"sliding_window": None}, 3e-3, "the exact GELU"),
    "jamba": ("Jamba", STATES | {"mamba_dt_rank": 4, "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2,
        "attn_layer_offset": 1, "use_mamba_kernels": False}, 5, "chosen experts sum to 1"),
    "gpt_oss": ("GptOss", {"rope_parameters": GPT_OSS_ROPE | {"truncate": False, "original_max_position_embeddings":
        4096}, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW}, 0.1, "`truncate: false`"),
}  # fmt: skip
"""What differs by little: class, settings, bound relative to the spread of the logits, part of what is said."""
WINDOWED: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("Mistral", {}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "max_window_layers": 2}),
    "gemma2": ("Gemma2", {}),
    "phi3": ("Phi3", {}),
    "starcoder2": ("Starcoder2", {"hidden_act": "gelu"}),
}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "activation": ("Llama", rope() | {"hidden_act": "gelu"}, "computes silu, whatever hidden_act says ('gelu')"),
    "activation of a mixture": ("Mixtral", rope() | {"hidden_act": "relu"}, "hidden_act says ('relu')"),
    "rounded YaRN": ("Llama", rope(**YARN, truncate=False), "`truncate: false`"),
    "scaling unknown to the model": ("Gemma2", rope(rope_type="linear", factor=2.0), "no 'linear' scaling"),
    "scaling that the model declares and never looks at": ("Qwen3Moe", rope(**YARN) | EXPERTS, "no 'yarn' scaling"),
    "scaling that the model checks and never uses": ("Qwen2Moe", rope(rope_type="linear", factor=2.0) | EXPERTS | {
        "shared_expert_intermediate_size": 32, "layer_types": ["full_attention"] * 4},
        "angles other than those of config.json (linear at a base of 5000)"),
    "activation that the model declares and never looks at": ("Nemotron", rope() | {"hidden_act": "gelu"},
        "computes relu2"),
    "some dimensions": ("Glm", rope(partial_rotary_factor=0.5), "partial_rotary_factor says (0.5)"),
    "pairs of a head": ("DeepseekV3", rope() | ROUTED | LATENT | {"n_group": 2, "topk_group": 1, "head_dim": 8,
        "num_key_value_heads": 4, "rope_interleave": False}, "neighbours of a head, whatever rope_interleave says"),
    "a clip": ("Olmoe", rope() | {"num_experts": 4, "num_experts_per_tok": 2, "clip_qkv": 0.05},
        "does not look at clip_qkv"),
    "limit of SwiGLU": ("GptOss", {"rope_parameters": GPT_OSS_ROPE, "num_local_experts": 4, "num_experts_per_tok": 2,
        "sliding_window": WINDOW, "swiglu_limit": 1.0}, "does not look at swiglu_limit"),
    "layers in another order": ("Gemma3", {"rope_parameters": GEMMA3_ROPE, "layer_types":
        ["full_attention", "full_attention", "sliding_attention", "full_attention"]}, "`layer_types` says otherwise"),
    "long texts' factor": ("Phi3", rope(**LONG, attention_factor=2.0) | {"original_max_position_embeddings": 64,
        "sliding_window": None}, "attention_factor as"),
}  # fmt: skip


def save(folder: Path, name: str, settings: dict[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    """A random model, saved by transformers."""
    torch.manual_seed(3)
    text = f"{name}TextConfig" if hasattr(transformers, f"{name}TextConfig") else f"{name}Config"
    config = getattr(transformers, text)(**SIZES | settings)
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.to(dtype).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return model.to(torch.float32)


def convert(tmp_path: Path, **changes: Any) -> Manifest:
    return ensure_model(ModelConfig(model=str(tmp_path / "source"), mlx_path=str(tmp_path / "out"), **changes))


def error(tmp_path: Path, model: Any, length: int = 40) -> float:
    """The largest difference of logits, relative to their spread."""
    tokens = np.random.default_rng(0).integers(3, VOCABULARY, (2, length))
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).logits.numpy()
    with mx.stream(mx.cpu):
        found = np.array(load_model(tmp_path / "out", "float32").model(mx.array(tokens)))
    return float(np.abs(found - expected).max() / expected.std())


@pytest.mark.parametrize("case", SAME)
def test_same_logits(tmp_path: Path, case: str) -> None:
    model = save(tmp_path / "source", *SAME[case])
    convert(tmp_path)
    assert error(tmp_path, model) < 1e-4


@pytest.mark.parametrize("case", NOTED)
def test_what_differs_by_little_is_said(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, settings, bound, said = NOTED[case]
    model = save(tmp_path / "source", name, settings)
    convert(tmp_path)
    assert said in capsys.readouterr().err
    assert error(tmp_path, model) < bound


@pytest.mark.parametrize("case", WINDOWED)
def test_windows_that_mlx_lm_lacks(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Right up to the window, and said; nothing is said of one that reaches as far as the model does."""
    name, settings = WINDOWED[case]
    model = save(tmp_path / "source", name, rope() | settings | {"sliding_window": WINDOW})
    assert [tokens for tokens, _ in convert(tmp_path).limits] == [WINDOW]
    assert "no sliding window, where config.json has one of 16" in capsys.readouterr().err
    assert error(tmp_path, model, WINDOW) < (1e-4 if name != "Starcoder2" else 3e-3)
    assert error(tmp_path, model, 3 * WINDOW) > 1e-2
    save(tmp_path / "wide" / "source", name, rope() | settings | {"sliding_window": 256})
    assert convert(tmp_path / "wide").limits == ()


def test_texts_longer_than_longrope_is_right_for(tmp_path: Path) -> None:
    save(tmp_path / "source", *SAME["phi3, longrope"])
    assert [tokens for tokens, _ in convert(tmp_path).limits] == [64]


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_another_model_is_refused(tmp_path: Path, case: str) -> None:
    name, settings, said = REFUSED[case]
    save(tmp_path / "source", name, settings)
    with pytest.raises(MlxmathError) as caught:
        convert(tmp_path)
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_base_outside_of_the_rotary_parameters_is_overruled(tmp_path: Path) -> None:
    save(tmp_path / "source", *SAME["llama"])
    path = tmp_path / "source" / "config.json"
    config = json.loads(path.read_text()) | {"rope_theta": 100.0}
    path.write_text(json.dumps(config))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "source", dtype=torch.float32)
    convert(tmp_path)
    assert error(tmp_path, model) < 1e-4


@pytest.mark.parametrize("case", ["gemma3", "llama, yarn with a factor of its own", "qwen3_moe"])
def test_as_it_lies_it_would_be_misread(tmp_path: Path, case: str) -> None:
    """A folder that is not converted has its config.json read by mlx_lm as it is."""
    save(tmp_path / "source", *SAME[case])
    with pytest.raises(MlxmathError, match=r"mlx_lm would misread \(.*another --mlx-path"):
        ensure_model(ModelConfig(model=str(tmp_path / "source"), mlx_path=str(tmp_path / "source")))


@pytest.mark.parametrize("case", ["qwen3_moe", "glm4_moe", "qwen3_next", "qwen3_5", "lfm2", "gpt_oss", "deepseek_v3"])
def test_quantized_after_it_is_rearranged(tmp_path: Path, case: str) -> None:
    """Four bits of what mlx_lm makes of the stored weights: as mlx_lm quantizes the converted model."""
    from mlx.utils import tree_flatten
    from mlx_lm.utils import load_model as mlx_lm_load_model
    from mlx_lm.utils import quantize_model

    save(tmp_path / "source", *SAME[case], torch.bfloat16)
    convert(tmp_path)
    theirs, config = mlx_lm_load_model(tmp_path / "out")
    theirs, _ = quantize_model(theirs, config, 32, 4)
    ensure_model(
        ModelConfig(model=str(tmp_path / "source"), mlx_path=str(tmp_path / "four"), quantize=4, group_size=32)
    )
    ours, _ = mlx_lm_load_model(tmp_path / "four")
    expected, found = (dict(tree_flatten(model.parameters())) for model in (theirs, ours))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert mx.array_equal(found[name], array), name


def test_what_transformers_reads_stays(tmp_path: Path) -> None:
    save(tmp_path / "source", *SAME["gemma3"])
    convert(tmp_path)
    before, after = (json.loads((tmp_path / who / "config.json").read_text()) for who in ("source", "out"))
    assert after["rope_parameters"] == before["rope_parameters"]
    assert (after["rope_theta"], after["rope_local_base_freq"], after["sliding_window_pattern"]) == (1e6, 5000.0, 6)


FLOAT8 = torch.float8_e4m3fn


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_float8_in_blocks_as_torch_dequantizes(tmp_path: Path, dtype: str) -> None:
    """128 x 128 blocks at sizes that they do not divide: torch's conversion, times the scale, rounded once."""
    from safetensors.torch import load_file, save_file

    save(tmp_path / "source", "Qwen3", rope() | {"intermediate_size": 200, "hidden_size": 144}, torch.bfloat16)
    path = tmp_path / "source" / "model.safetensors"
    state, expected = load_file(path), {}
    for name, weight in list(state.items()):
        expected[name] = weight.to(getattr(torch, dtype))
        if not name.endswith("_proj.weight"):
            continue
        rows, columns = (-(-n // 128) for n in weight.shape)
        scale = torch.rand(rows, columns) * 0.01 + 1e-4
        wide = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[: weight.shape[0], : weight.shape[1]]
        state[name] = (weight.float() / wide).clamp(-448, 448).to(FLOAT8)
        state[name + "_scale_inv"] = scale
        expected[name] = (state[name].float() * wide).to(getattr(torch, dtype))
    save_file(state, path, metadata={"format": "pt"})
    config = json.loads((tmp_path / "source" / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic", "fmt": "e4m3"
    }  # fmt: skip
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    assert convert(tmp_path, dtype=dtype).dtype == dtype
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == expected.keys() - {"lm_head.weight"} | (found.keys() & {"lm_head.weight"})
    for name, weight in found.items():
        assert torch.equal(weight, expected[name]), name
    load_model(tmp_path / "out", "float32")


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu])
def test_every_float8_value_as_in_torch(kind: torch.dtype) -> None:
    from mlxmath.weights.dtypes import widen8

    bits = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    expected = bits.view(kind).float().numpy()
    np.testing.assert_array_equal(widen8(bits.numpy(), str(kind).removeprefix("torch.")), expected)
