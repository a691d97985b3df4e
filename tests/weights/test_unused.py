"""Tensors that mlx_lm drops on loading: named where the original computes with them."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxmath.config.schema import ModelConfig
from mlxmath.errors import MlxmathError
from mlxmath.weights.convert import ensure_model
from tests.models import architectures

SAID = "does without"
BIAS = "model.layers.{}.mlp.moe_statics.e_score_correction_bias"


def noted(source: Path, more: dict[str, mx.array], capsys: pytest.CaptureFixture[str], **changes: Any) -> str:
    """What is said of a model with more tensors."""
    path = source / "model.safetensors"
    mx.save_safetensors(str(path), {**mx.load(str(path)), **more}, {"format": "mlx"})
    ensure_model(ModelConfig(model=str(source), mlx_path=str(source.parent / "out"), **changes))
    return next((line for line in capsys.readouterr().err.splitlines() if SAID in line), "")


def test_a_bias_of_the_router(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ERNIE 4.5 chooses its experts with one, mlx_lm without."""
    source = architectures.write("ernie4_5_moe", tmp_path)
    said = noted(source, {BIAS.format(i): mx.array([[0.0, 0.1, 0.0, 0.0]]) for i in (1, 2)}, capsys)
    assert f"{SAID} 2 tensors" in said and BIAS.format(1) in said


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_zeros_are_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: mx.Dtype) -> None:
    zeros = mx.array([[0.0, -0.0, 0.0, 0.0]]).astype(dtype)
    assert noted(architectures.write("ernie4_5_moe", tmp_path), {BIAS.format(1): zeros}, capsys) == ""


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("gpt2", "model.h.0.attn.bias"),
        ("deepseek_v3", "model.layers.3.mlp.gate_proj.weight"),
        ("qwen3_5_moe", "model.visual.patch_embed.proj.weight"),
        ("qwen2:tied", "lm_head.weight"),
    ],
    ids=["a mask", "a block after the last", "what sees", "a tied head"],
)
def test_what_the_original_does_not_compute_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model_type: str, name: str
) -> None:
    source = architectures.write(model_type, tmp_path)
    config = json.loads((source / "config.json").read_text()) | {"num_nextn_predict_layers": 1}
    (source / "config.json").write_text(json.dumps(config))
    weights = mx.load(str(source / "model.safetensors"))
    shape = (architectures.VOCAB_SIZE, 64) if name == "lm_head.weight" else (1, 1, 8, 8)
    tensor = weights["model.embed_tokens.weight"] if name == "lm_head.weight" else mx.ones(shape)
    assert noted(source, {name: tensor}, capsys) == ""


def test_more_blocks_than_config_json_says_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MlxmathError, match=r"unknown to the model \(1\): model.layers.3.mlp.gate_proj.weight"):
        noted(
            architectures.write("deepseek_v3", tmp_path),
            {"model.layers.3.mlp.gate_proj.weight": mx.ones((4, 4))},
            capsys,
        )


@pytest.mark.parametrize("model_type", ["deepseek_v3", "gemma3", "gpt_oss", "lfm2_moe", "qwen3_next", "nemotron_h"])
@pytest.mark.parametrize("quantize", [None, 4])
def test_nothing_is_said_of_a_model_that_mlx_lm_has_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model_type: str, quantize: int | None
) -> None:
    assert noted(architectures.write(model_type, tmp_path), {}, capsys, quantize=quantize, group_size=32) == ""
