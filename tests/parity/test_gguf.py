"""Models out of GGUF files against transformers, and against llama.cpp where that is installed.

A random model of transformers is written as GGUF by gguf's own table of names; what mlxmath makes of the file must give
the logits of the model, and so must llama.cpp, else the file would not be one as they are.
"""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from mlxmath.config.schema import ModelConfig
from mlxmath.models.load import load_model
from mlxmath.weights.convert import ensure_model
from tests.llama_cpp import LlamaCpp
from tests.weights.gguf_models import stored_tensors, write_gguf

SIZES = {
    "vocab_size": 288, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "initializer_range": 0.2,
    "bos_token_id": 259, "eos_token_id": 260, "pad_token_id": None,
}  # fmt: skip
BASE = {
    "block_count": 2, "context_length": 256, "embedding_length": 64, "feed_forward_length": 96,
    "attention.head_count": 4, "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 10000.0, "rope.dimension_count": 16, "vocab_size": 288,
}  # fmt: skip
HEADS = {"attention.key_length": 32, "attention.value_length": 32, "rope.dimension_count": 32}
EXPERTS = {"expert_count": 4, "expert_used_count": 2}


def rope(**settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default", **settings}}


SHORT, LONG = [1 + i / 10 for i in range(8)], [2.0 + i for i in range(8)]
LLAMA3 = [1.0] * 6 + [1 / ((1 - 0.10126) / 32 + 0.10126), 32.0]
"""Waves are 6.3, 20, ... 1987, 6283, 19869 tokens long: two over 8192 / 4, one over 8192; (8192 / 6283.2 - 1) / 3 is
0.10126."""
TENSORS = {
    "llama-llama3": {"rope_freqs.weight": np.array(LLAMA3, np.float32)},
    "phi3-longrope": {
        "rope_factors_short.weight": np.array(SHORT, np.float32), "rope_factors_long.weight": np.array(LONG, np.float32)
    },
}  # fmt: skip
OTHERWISE_IN_LLAMA_CPP = ("phi3-longrope",)
"""It takes the long factors by the length of the context that it is opened with, not of the text."""
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # name: architecture, settings of transformers, metadata
    "llama": ("llama", {"tie_word_embeddings": False}, {}),
    "llama-tied-bias": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "head_dim": 16}, {}),
    "llama-linear": (
        "llama", rope(rope_type="linear", factor=2.0), {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0},
    ),
    "llama-llama3": (
        "llama", rope(rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
                      original_max_position_embeddings=8192), {},
    ),
    "llama-yarn": (
        "llama", rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64},
    ),
    "phi3-longrope": (
        "phi3",
        {
            "sliding_window": None, "original_max_position_embeddings": 64,
            **rope(rope_type="longrope", short_factor=SHORT, long_factor=LONG, original_max_position_embeddings=64),
        },
        {"rope.scaling.original_context_length": 64, "rope.scaling.attn_factor": 1.1547005},
    ),
    "mixtral": (
        "llama", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None, **rope()}, EXPERTS,
    ),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}, {}),
    "qwen2_moe": (
        "qwen2moe",
        {
            "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 64, "norm_topk_prob": False,
        },
        {**EXPERTS, "expert_feed_forward_length": 32, "expert_shared_feed_forward_length": 64},
    ),
    "qwen3": ("qwen3", {"head_dim": 32, "tie_word_embeddings": False}, HEADS),
    "qwen3_moe": (
        "qwen3moe",
        {"head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
         "norm_topk_prob": True},
        {**HEADS, **EXPERTS, "expert_feed_forward_length": 32},
    ),
    "gemma": ("gemma", {"head_dim": 32}, HEADS),
    "gemma2": (
        "gemma2", {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 32},
        {**HEADS, "attention.sliding_window": 32, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "gemma3_text": (
        "gemma3",
        {
            "head_dim": 32, "query_pre_attn_scalar": 32, "num_hidden_layers": 7, "sliding_window": 8,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        {**HEADS, "block_count": 7, "rope.freq_base": 1e6, "attention.sliding_window": 8},
    ),
    "phi3": (
        "phi3", {"sliding_window": None, "original_max_position_embeddings": 256},
        {"rope.scaling.original_context_length": 256},
    ),
    "granite": (
        "granite",
        {"attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0},
        {"attention.scale": 0.2, "embedding_scale": 3.0, "residual_scale": 0.5, "logit_scale": 2.0},
    ),
    "smollm3": ("smollm3", {"num_hidden_layers": 5, "use_sliding_window": False, **rope()}, {"block_count": 5}),
    "olmo2": ("olmo2", {}, {}),
    "starcoder2": (
        "starcoder2", {"use_bias": True, "norm_epsilon": 1e-5, "sliding_window": None},
        {"attention.layer_norm_epsilon": 1e-5},
    ),
}  # fmt: skip


def reference(name: str, settings: dict[str, Any], folder: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """A random model of transformers, and its state dict as it is saved."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name.split("-")[0], **{**SIZES, **settings})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # norms and biases that differ
            torch.nn.init.normal_(parameter, 0.0 if "bias" in parameter_name or "gemma" in name else 1.0, 0.1)
    model.save_pretrained(folder)
    return model, load_file(folder / "model.safetensors")


@pytest.mark.parametrize("name", CASES)
def test_logits(name: str, tmp_path: Path) -> None:
    architecture, settings, changes = CASES[name]
    model, state = reference(name, settings, tmp_path / "hf")
    metadata = {**BASE, **changes}
    path = write_gguf(
        tmp_path / "tiny.gguf", architecture,
        {**stored_tensors(architecture, state, metadata["block_count"], (4, 2)), **TENSORS.get(name, {})}, metadata,
    )  # fmt: skip
    ids = np.random.default_rng(1).integers(0, 256, 24).tolist()
    with torch.no_grad():
        want = model(torch.tensor([ids])).logits[0].numpy()
    ensure_model(ModelConfig(model=str(path), mlx_path=str(tmp_path / "mlx")))
    own = load_model(tmp_path / "mlx", "float32").model
    got = np.array(own(mx.array([ids]))[0])
    assert np.abs(got - want).max() <= 1e-3 * np.abs(want).max()
    if name in OTHERWISE_IN_LLAMA_CPP:
        return
    with LlamaCpp(path) as theirs:
        logits = theirs.logits(ids)
    assert np.abs(logits - want).max() <= 1e-2 * np.abs(want).max()  # its keys and values are float16
