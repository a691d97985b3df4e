"""Random models of transformers, converted and exported as GGUF: llama.cpp gives the logits that torch gives."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM

from mlxmath.config.schema import ModelConfig
from mlxmath.models.load import load_model
from mlxmath.weights.convert import ensure_model
from tests.exporting.tuned import exported
from tests.llama_cpp import LlamaCpp
from tests.weights.gguf_models import byte_tokens

SIZES = {
    "vocab_size": 288, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "initializer_range": 0.2,
    "bos_token_id": 257, "eos_token_id": 258, "pad_token_id": None, "tie_word_embeddings": False,
}  # fmt: skip


def rope(**settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default", **settings}}


CASES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "head_dim": 32},
    "llama-tied": {"tie_word_embeddings": True},
    "llama-3": rope(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
    ),
    "llama-linear": rope(rope_type="linear", factor=2.0),
    "mistral": {"sliding_window": None, "head_dim": 16},
    "qwen2": {},
    "qwen2-yarn": rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
    "qwen3": {"head_dim": 32},
    "qwen3_moe": {
        "head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    },
    "gemma2": {
        "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8, "attn_logit_softcapping": 20.0,
        "tie_word_embeddings": True,
    },
    "gemma3_text": {
        "head_dim": 32, "query_pre_attn_scalar": 32, "num_hidden_layers": 7, "sliding_window": 8,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
        },
    },
    "phi3": {"sliding_window": None, "original_max_position_embeddings": 256},
    "phi3-longrope": {
        "sliding_window": None, "original_max_position_embeddings": 512, "max_position_embeddings": 2048,
        **rope(
            rope_type="longrope", short_factor=[1 + 0.1 * n for n in range(8)], long_factor=[2.0 + n for n in range(8)],
            original_max_position_embeddings=512,
        ),
    },
    "granite": {
        "attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0,
    },
    "smollm3": {"num_hidden_layers": 5, "use_sliding_window": False},
    "olmo2": {},
}  # fmt: skip


def save_tokenizer(folder: Path) -> None:
    """Bytes, a merge and three control tokens, cut as GPT-2 does."""
    vocabulary = {token: number for number, token in enumerate([*byte_tokens(), "th"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("t", "h")]))
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_end|>", "<|im_start|>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "bos_token": "<|endoftext|>"}'
    )


@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_gives_torch_s_logits(name: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    torch.manual_seed(0)
    settings = {**SIZES, **CASES[name]}
    if "rope_parameters" not in settings and name != "gemma3_text":
        settings |= rope()
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(name.split("-")[0], **settings), dtype=torch.float32
    ).eval()
    for key, parameter in model.named_parameters():
        if parameter.ndim == 1:  # norms and biases that differ
            torch.nn.init.normal_(parameter, 0.0 if "bias" in key or "gemma" in name else 1.0, 0.1)
        else:
            parameter.data = parameter.data.half().float()  # nothing is lost in the file
    model.save_pretrained(tmp_path / "hf")
    save_tokenizer(tmp_path / "hf")
    ensure_model(ModelConfig(model=str(tmp_path / "hf"), mlx_path=str(tmp_path / "mlx")))
    exported(tmp_path / "mlx", None, "gguf", tmp_path / "out")
    ids = np.random.default_rng(1).integers(0, 256, 48).tolist()
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits[0].numpy()
    with LlamaCpp(tmp_path / "out" / "model-f16.gguf") as theirs:
        found = theirs.logits(ids)
        assert theirs.end_tokens >= {258}
    assert np.abs(found - wanted).max() <= 1e-2 * np.abs(wanted).max()  # its keys and values are float16


@pytest.mark.parametrize("kind", ["q4_k_m", "q6_k"])
def test_llama_cpp_reads_our_quantizers_blocks_as_we_do(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = {**SIZES, "hidden_size": 256, "intermediate_size": 512, "initializer_range": 0.05, **rope()}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **settings), dtype=torch.float32)
    model.save_pretrained(tmp_path / "hf")
    save_tokenizer(tmp_path / "hf")
    ensure_model(ModelConfig(model=str(tmp_path / "hf"), mlx_path=str(tmp_path / "mlx")))
    exported(tmp_path / "mlx", None, "gguf", tmp_path / "out", gguf_type=kind)
    path = tmp_path / "out" / f"model-{kind}.gguf"
    ensure_model(ModelConfig(model=str(path), mlx_path=str(tmp_path / "again")))
    ids = np.random.default_rng(1).integers(0, 256, 48).tolist()
    again = np.array(load_model(tmp_path / "again", "float32").model(mx.array([ids]))[0])
    with LlamaCpp(path) as theirs:  # which rounds what it multiplies by to 8 bits
        assert np.abs(theirs.logits(ids) - again).mean() < 0.05 * np.abs(again).mean()
    with torch.no_grad():
        before = model(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(again - before).mean() < {"q4_k_m": 0.3, "q6_k": 0.1}[kind] * np.abs(before).mean()
