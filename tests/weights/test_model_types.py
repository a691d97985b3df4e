"""Every model type of mlx_lm: converted, loaded, cast and quantized as mlx_lm does it; and what it drops on loading."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model as mlx_lm_load_model
from mlx_lm.utils import quantize_model

from mlxmath.config.schema import ModelConfig
from mlxmath.errors import InputError, MlxmathError
from mlxmath.models.load import load_model
from mlxmath.weights.convert import ensure_model
from tests.models import architectures

ORDINARY = (
    "deepseek_v3", "falcon_h1", "gemma3", "gpt_oss", "kimi_linear", "lfm2_moe", "llama4", "nemotron_h", "qwen3_5_moe",
    "mixtral",
)  # fmt: skip
"""Some that mlx_lm rearranges on loading, keeps out of casts, or nests."""
QUANTIZED_ALREADY = ("prism_hadamard_qwen35",)
NOT_QUANTIZED = ("afm7",)
"""Types whose quantized model mlx_lm itself cannot load."""
SAID = "does without"
BIAS = "model.layers.{}.mlp.moe_statics.e_score_correction_bias"


def types() -> list[Any]:
    return [
        pytest.param(name, marks=() if name in ORDINARY else pytest.mark.rarer) for name in architectures.installed()
    ]


def convert(source: Path, out: Path, **changes: Any) -> Path:
    ensure_model(ModelConfig(model=str(source), mlx_path=str(out), **changes))
    return out


def arrays(model: Any) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


@pytest.mark.parametrize("model_type", types())
def test_converted_and_loaded(tmp_path: Path, model_type: str) -> None:
    source = architectures.write(model_type, tmp_path)
    theirs, _ = mlx_lm_load_model(source)
    expected, may_cast = arrays(theirs), getattr(theirs, "cast_predicate", lambda _: True)
    out = convert(source, tmp_path / "out")
    for dtype in ("float32", "bfloat16"):
        found = arrays(load_model(out, dtype, lazy=True).model)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            if mx.issubdtype(array.dtype, mx.floating) and may_cast(name):
                array = array.astype(getattr(mx, dtype))
            assert found[name].dtype == array.dtype, name
            assert mx.array_equal(found[name], array, equal_nan=True), name


@pytest.mark.parametrize("model_type", types())
def test_quantized(tmp_path: Path, model_type: str) -> None:
    source = architectures.write(model_type, tmp_path)
    if model_type in (*QUANTIZED_ALREADY, *NOT_QUANTIZED):
        line = "is quantized already" if model_type in QUANTIZED_ALREADY else (
            f"^--quantize: mlx_lm cannot load models of type '{model_type}' quantized .*; convert it without --quantize"
        )  # fmt: skip
        with pytest.raises(InputError, match=line):
            convert(source, tmp_path / "out", quantize=4, group_size=32)
        assert not (tmp_path / "out").exists()
        return
    theirs, config = mlx_lm_load_model(source)
    theirs, _ = quantize_model(theirs, config, 32, 4)
    ours, _ = mlx_lm_load_model(convert(source, tmp_path / "out", quantize=4, group_size=32))
    expected, found = arrays(theirs), arrays(ours)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert mx.array_equal(found[name], array, equal_nan=True), name


def test_a_part_whose_settings_another_module_declares(tmp_path: Path) -> None:
    """Qwen 3.5's mixtures, as they are on the hub: mlx_lm builds them with the classes of the dense ones."""
    source = architectures.write("qwen3_5_moe:rotary", tmp_path)
    theirs, _ = mlx_lm_load_model(source)
    ours = load_model(convert(source, tmp_path / "out"), "float32").model
    tokens_BL = mx.array([[5, 6, 90, 17, 33, 41]])
    assert mx.allclose(ours(tokens_BL), theirs(tokens_BL), rtol=1e-4, atol=1e-4)  # added in other orders
    assert ours.layers[1].self_attn.rope.dims == 8


def noted(source: Path, more: dict[str, mx.array], capsys: pytest.CaptureFixture[str], **changes: Any) -> str:
    """What is said of a model with more tensors."""
    path = source / "model.safetensors"
    mx.save_safetensors(str(path), {**mx.load(str(path)), **more}, {"format": "mlx"})
    convert(source, source.parent / "out", **changes)
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
