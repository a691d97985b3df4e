"""Tiny models of transformers, converted, loaded by mlx_lm: the same logits and the same quantized weights."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers

from mlxmath.config.schema import ModelConfig
from mlxmath.weights.convert import ensure_model

SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 160, "max_position_embeddings": 128,
}  # fmt: skip
FAMILIES = {"llama": "Llama", "qwen2": "Qwen2", "mistral": "Mistral", "qwen3": "Qwen3"}


ROPE = {"rope_type": "default", "rope_theta": 5000.0}
LLAMA3_ROPE = ROPE | {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip


def make(
    folder: Path, family: str, layout: str, *, tied: bool = False, dtype: str = "float32", rope: Any = ROPE
) -> Any:
    """Save a random model as its authors would: .bin in one of torch's layouts, or safetensors."""
    torch.manual_seed(3)
    name = FAMILIES[family]
    more = {"sliding_window": None} if family == "mistral" else {"head_dim": 16} if family == "qwen3" else {}
    config = getattr(transformers, f"{name}Config")(**SIZES, **more, tie_word_embeddings=tied, rope_parameters=rope)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval().to(getattr(torch, dtype))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    folder.mkdir()
    if layout == "safetensors":
        model.save_pretrained(folder)
    else:
        config.dtype = dtype
        config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=layout == "zip")
    (folder / "tokenizer.json").write_text("{}")
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("tied", [False, True])
def test_logits(tmp_path: Path, family: str, layout: str, tied: bool) -> None:
    check_logits(tmp_path, make(tmp_path / "source", family, layout, tied=tied))


def test_scaled_rope(tmp_path: Path) -> None:
    check_logits(tmp_path, make(tmp_path / "source", "llama", "zip", rope=LLAMA3_ROPE))


def check_logits(tmp_path: Path, model: Any) -> None:
    from mlx_lm.utils import load_model

    ensure_model(ModelConfig(model=str(tmp_path / "source"), mlx_path=str(tmp_path / "out")))
    tokens = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (2, 33))
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).logits.numpy()
    with mx.stream(mx.cpu):
        converted, _ = load_model(tmp_path / "out")
        found = np.array(converted(mx.array(tokens)))
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < 1e-4, error
    state = model.state_dict()
    for name, array in mx.load(str(tmp_path / "out" / "model.safetensors")).items():
        np.testing.assert_array_equal(np.array(array), state[name].numpy())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_quantized_as_mlx_lm_converts(tmp_path: Path, bits: int, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_lm import convert

    make(tmp_path / "source", "qwen2", "safetensors", tied=True, dtype=dtype)
    ensure_model(ModelConfig(model=str(tmp_path / "source"), mlx_path=str(tmp_path / "ours"), quantize=bits))

    class NoTokenizer:
        def save_pretrained(self, _: Any) -> None:
            pass

    monkeypatch.setattr("mlx_lm.utils.load_tokenizer", lambda *_, **__: NoTokenizer())
    convert(
        str(tmp_path / "source"), str(tmp_path / "theirs"), quantize=True, q_bits=bits, q_group_size=64, dtype=dtype
    )
    ours = mx.load(str(tmp_path / "ours" / "model.safetensors"))
    theirs = mx.load(str(tmp_path / "theirs" / "model.safetensors"))
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype, name
        assert mx.array_equal(ours[name], array), name
    configs = [json.loads((tmp_path / who / "config.json").read_text()) for who in ("ours", "theirs")]
    for key in ("quantization", "quantization_config"):
        assert configs[0][key] == configs[1][key]
