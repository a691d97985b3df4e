"""Models that come quantized: read as they are, unpacked, or refused by name before anything is written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model as mlx_lm_load_model
from mlx_lm.utils import quantize_model, save_config, save_model

from mlxmath.config.schema import ModelConfig
from mlxmath.errors import InputError
from mlxmath.models.load import load_model
from mlxmath.weights.convert import ensure_model
from mlxmath.weights.dtypes import widen8
from mlxmath.weights.manifest import Manifest
from mlxmath.weights.safetensor import SafetensorsWriter, open_safetensors
from tests.weights.handmade import LLAMA, llama_arrays

Stored = dict[str, tuple[str, np.ndarray]]
TOKENS = mx.array([[1, 5, 9, 3, 70, 44]])


def write(folder: Path, tensors: Stored, **config: Any) -> Path:
    """A folder with these tensors (type, bits) and `LLAMA` changed by `config`."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LLAMA | config))
    (folder / "tokenizer.json").write_text("{}")
    ordered = sorted(tensors.items(), key=lambda item: -item[1][1].itemsize)
    with SafetensorsWriter(
        folder / "model.safetensors", [(name, dtype, array.shape) for name, (dtype, array) in ordered]
    ) as writer:
        for _, (_, array) in ordered:
            writer.write(np.ascontiguousarray(array))
    return folder


def plain(**changes: Any) -> Stored:
    return {name: ("float32", array) for name, array in llama_arrays(dtype="float32", **changes).items()}


def convert(source: Path, **changes: Any) -> Manifest:
    return ensure_model(ModelConfig(model=str(source), mlx_path=str(source.parent / "out"), **changes))


def quantized(
    tmp_path: Path, mode: str, bits: int, group_size: int, predicate: Callable[..., Any] | None = None
) -> Path:
    """A model that mlx_lm has quantized, as the hub's mlx-community holds them."""
    write(tmp_path / "plain", plain(hidden_size=128, intermediate_size=256), hidden_size=128, intermediate_size=256)
    model, config = mlx_lm_load_model(tmp_path / "plain")
    model, config = quantize_model(model, config, group_size, bits, mode=mode, quant_predicate=predicate)
    save_model(tmp_path / "source", model)
    save_config(config, tmp_path / "source" / "config.json")
    (tmp_path / "source" / "tokenizer.json").write_text("{}")
    return tmp_path / "source"


class TestMlx:
    @pytest.mark.parametrize(
        ("mode", "bits", "group_size"),
        [("affine", 4, 64), ("affine", 3, 32), ("affine", 6, 64), ("mxfp4", 4, 32), ("nvfp4", 4, 16), ("mxfp8", 8, 32)],
    )
    def test_every_mode(self, tmp_path: Path, mode: str, bits: int, group_size: int) -> None:
        source = quantized(tmp_path, mode, bits, group_size)
        manifest = convert(source)
        assert manifest.quantization is not None
        assert (manifest.quantization["mode"], manifest.quantization["bits"]) == (mode, bits)
        assert manifest.quantization_of_source
        self.equals_mlx_lm(source, tmp_path / "out")

    def test_bits_by_layer(self, tmp_path: Path) -> None:
        def predicate(path: str, _: Any) -> Any:
            return {"group_size": 32, "bits": 8, "mode": "affine"} if "down" in path else "v_proj" not in path

        source = quantized(tmp_path, "affine", 4, 64, predicate)
        assert convert(source).quantization == json.loads((source / "config.json").read_text())["quantization"]
        model = self.equals_mlx_lm(source, tmp_path / "out")
        assert (model.layers[0].mlp.down_proj.bits, model.layers[0].mlp.up_proj.bits) == (8, 4)
        assert "scales" not in model.layers[0].self_attn.v_proj

    def equals_mlx_lm(self, source: Path, out: Path) -> Any:
        theirs, _ = mlx_lm_load_model(source)
        ours = load_model(out, "float32").model
        expected = dict(tree_flatten(theirs.parameters()))
        for name, array in tree_flatten(ours.parameters()):
            same = expected[name].astype(array.dtype) if mx.issubdtype(array.dtype, mx.floating) else expected[name]
            assert mx.array_equal(array, same), name
        np.testing.assert_allclose(np.array(ours(TOKENS)), np.array(theirs(TOKENS).astype(mx.float32)), atol=2e-4)
        return ours

    def test_as_it_lies(self, tmp_path: Path) -> None:
        source = quantized(tmp_path, "mxfp4", 4, 32)
        adopted = ensure_model(ModelConfig(model=str(source), mlx_path=str(source)))
        assert adopted.quantization == {"group_size": 32, "bits": 4, "mode": "mxfp4"}
        assert adopted.fingerprint == convert(source).fingerprint
        load_model(source, "bfloat16")

    @pytest.mark.parametrize(
        "settings",
        [{"bits": "4", "group_size": 64}, {"bits": 4}, {"bits": 4, "group_size": 64, "mode": "q4_k"}, [4, 64]],
    )
    def test_settings_that_are_none(self, tmp_path: Path, settings: Any) -> None:
        refused(write(tmp_path / "source", plain(), quantization=settings), "quantization")


def refused(source: Path, *said: str, **changes: Any) -> None:
    """Refused with a line that says all of this, before anything is written."""
    with pytest.raises(InputError) as caught:
        convert(source, **changes)
    for part in said:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (source.parent / "out").exists()


def float8(values: np.ndarray) -> np.ndarray:
    """The nearest E4M3 patterns, by looking through all of them."""
    table = widen8(np.arange(256, dtype=np.uint8), "float8_e4m3fn")
    table = np.where(np.isnan(table), np.inf, table)
    return np.abs(values[..., None] - table).argmin(axis=-1).astype(np.uint8)


def in_blocks(weight: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patterns, the scale of every block, and the values that they stand for; computed block by block."""
    grid = (-(-weight.shape[0] // rows), -(-weight.shape[1] // columns))
    bits, exact = np.empty(weight.shape, np.uint8), np.empty(weight.shape, np.float32)
    scales = np.empty(grid, np.float32)
    for i, j in np.ndindex(*grid):
        part = np.s_[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
        scales[i, j] = np.abs(weight[part]).max() / 448
        bits[part] = float8(weight[part] / scales[i, j])
        exact[part] = widen8(bits[part], "float8_e4m3fn") * scales[i, j]
    return bits, scales, exact


class TestFloat8:
    SIZES: ClassVar[dict[str, Any]] = {"hidden_size": 64, "intermediate_size": 80, "vocab_size": 40}
    BLOCKS: ClassVar[dict[str, Any]] = {"quant_method": "fp8", "weight_block_size": [32, 32]}

    def source(
        self, folder: Path, block: tuple[int, int], suffix: str, quantization: dict[str, Any], form: Any = None
    ) -> tuple[Path, dict[str, np.ndarray]]:
        """Projections in 8 bits; what every tensor stands for is returned too."""
        tensors, exact = plain(**self.SIZES), {}
        for name in list(tensors):
            exact[name] = tensors[name][1]
            if "_proj" not in name:
                continue
            weight = tensors[name][1]
            size = (block[0] or weight.shape[0], block[1] or weight.shape[1])
            bits, scales, exact[name] = in_blocks(weight, *size)
            tensors[name] = ("float8_e4m3fn", bits)
            tensors[name + suffix] = ("float32", scales if form is None else scales.reshape(form))
            tensors[name.replace(".weight", ".input_scale")] = ("float32", np.ones(1, np.float32))
        config = {"quantization_config": quantization, "torch_dtype": "bfloat16"}
        return write(folder, tensors, **self.SIZES, **config), exact

    @pytest.mark.parametrize(
        ("block", "suffix", "form", "quantization"),
        [
            ((32, 48), "_scale_inv", None, {"quant_method": "fp8", "weight_block_size": [32, 48]}),
            ((128, 128), "_scale_inv", None, {"quant_method": "fp8", "weight_block_size": [128, 128]}),
            ((0, 0), "_scale_inv", (), {"quant_method": "fp8", "weight_block_size": None}),
            ((0, 0), "_scale", (1,), {"quant_method": "compressed-tensors", "format": "float-quantized"}),
            ((1, 0), "_scale", None, {"quant_method": "compressed-tensors", "format": "float-quantized"}),
            ((16, 32), "_scale", None, {
                "quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": {
                    "weights": {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [16, 32]}}}}),
            ((1, 0), "_scale", None, {"quant_method": "fbgemm_fp8"}),
            ((0, 0), "_scale", (), {"quant_method": "modelopt", "quant_algo": "FP8"}),
        ],
        ids=["blocks", "one block", "scalar", "tensor", "channel", "structure", "fbgemm", "modelopt"],
    )  # fmt: skip
    def test_dequantized(self, tmp_path: Path, block: Any, suffix: str, form: Any, quantization: Any) -> None:
        source, exact = self.source(tmp_path / "source", block, suffix, quantization, form)
        manifest = convert(source, dtype="float32")
        assert (manifest.dtype, manifest.quantization) == ("float32", None)
        found = open_safetensors(tmp_path / "out" / "model.safetensors")
        assert found.keys() == exact.keys()
        for name, values in exact.items():
            np.testing.assert_array_equal(found[name].read(), values, err_msg=name)
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert "quantization_config" not in config
        load_model(tmp_path / "out", "float32")

    def test_the_type_is_the_models(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source, exact = self.source(tmp_path / "source", (32, 32), "_scale_inv", self.BLOCKS)
        convert(source)
        assert "14 weights of 8 bits (fp8) become bfloat16" in capsys.readouterr().err
        name = "model.layers.1.mlp.down_proj.weight"
        found = mx.load(str(tmp_path / "out" / "model.safetensors"))[name]
        assert mx.array_equal(found, mx.array(exact[name]).astype(mx.bfloat16))

    def test_quantized_anew(self, tmp_path: Path) -> None:
        source, exact = self.source(tmp_path / "source", (32, 32), "_scale_inv", self.BLOCKS)
        convert(source, quantize=4, group_size=32)
        name = "model.layers.1.mlp.up_proj"
        found = mx.load(str(tmp_path / "out" / "model.safetensors"))
        packed, scales, biases = mx.quantize(mx.array(exact[name + ".weight"]).astype(mx.bfloat16), 32, 4)
        assert mx.array_equal(found[name + ".weight"], packed)
        assert mx.array_equal(found[name + ".scales"], scales)
        assert mx.array_equal(found[name + ".biases"], biases)

    def test_a_scale_that_does_not_fit(self, tmp_path: Path) -> None:
        tensors = plain(**self.SIZES)
        name = "model.layers.0.mlp.up_proj.weight"
        tensors[name] = ("float8_e4m3fn", np.zeros((80, 64), np.uint8))
        tensors[name + "_scale_inv"] = ("float32", np.ones((3, 7, 2), np.float32))
        source = write(tmp_path / "source", tensors, **self.SIZES, quantization_config={"quant_method": "fp8"})
        refused(source, "(3, 7, 2)", name)


class TestMxfp4:
    """gpt-oss as published."""

    CONFIG: ClassVar[dict[str, Any]] = {
        "model_type": "gpt_oss", "num_hidden_layers": 2, "num_local_experts": 3, "num_experts_per_tok": 2,
        "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_attention_heads": 4,
        "num_key_value_heads": 2, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"],
        "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
        "torch_dtype": "bfloat16", "architectures": ["GptOssForCausalLM"],
    }  # fmt: skip

    def source(self, folder: Path) -> Path:
        c, rng = self.CONFIG, np.random.default_rng(0)
        experts, hidden, inner, heads = c["num_local_experts"], c["hidden_size"], c["intermediate_size"], 4
        shapes = {
            "model.embed_tokens.weight": (96, hidden),
            "model.norm.weight": (hidden,),
            "lm_head.weight": (96, hidden),
        }
        tensors: Stored = {}
        for layer in range(2):
            at = f"model.layers.{layer}."
            shapes |= {at + "input_layernorm.weight": (hidden,), at + "post_attention_layernorm.weight": (hidden,)}
            shapes |= {at + "self_attn.sinks": (heads,), at + "mlp.router.weight": (experts, hidden)}
            shapes |= {at + "mlp.router.bias": (experts,), at + "mlp.experts.gate_up_proj_bias": (experts, 2 * inner)}
            shapes |= {at + "mlp.experts.down_proj_bias": (experts, hidden)}
            for name, rows in (("q", 64), ("k", 32), ("v", 32), ("o", 64)):
                shapes |= {
                    at + f"self_attn.{name}_proj.weight": (rows, 64),
                    at + f"self_attn.{name}_proj.bias": (rows,),
                }
            for name, rows, columns in (("gate_up", 2 * inner, hidden), ("down", hidden, inner)):
                bits = rng.integers(0, 256, (experts, rows, columns // 32, 16), dtype=np.uint8)
                scales = rng.integers(120, 126, (experts, rows, columns // 32), dtype=np.uint8)
                tensors[at + f"mlp.experts.{name}_proj_blocks"] = ("uint8", bits)
                tensors[at + f"mlp.experts.{name}_proj_scales"] = ("uint8", scales)
        for name, shape in shapes.items():
            bits = (rng.standard_normal(shape) * 0.1).astype(np.float32).view(np.uint32) >> 16
            tensors[name] = ("bfloat16", bits.astype(np.uint16))
        return write(folder, tensors, **c)

    def test_as_published(self, tmp_path: Path) -> None:
        source = self.source(tmp_path / "source")
        theirs, _ = mlx_lm_load_model(source)
        manifest = convert(source)
        assert manifest.quantization == {"group_size": 32, "bits": 4, "mode": "mxfp4"}
        assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization"] == manifest.quantization
        ours = load_model(tmp_path / "out", "float32").model
        theirs.set_dtype(mx.float32)
        np.testing.assert_allclose(np.array(ours(TOKENS)), np.array(theirs(TOKENS)), rtol=1e-4, atol=1e-5)

    def test_no_other_form(self, tmp_path: Path) -> None:
        refused(self.source(tmp_path / "source"), "quantized already (mxfp4", quantize=4)


class TestAwq:
    """y = x ((q - zero) scale), eight columns of q in an int32 (https://arxiv.org/abs/2306.00978, the gemm layout)."""

    ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

    def packed(self, columns: np.ndarray) -> np.ndarray:
        rows, width = columns.shape
        result = np.zeros((rows, width // 8), np.uint32)
        for place, column in enumerate(self.ORDER):
            result |= columns[:, column::8].astype(np.uint32) << (4 * place)
        return result.view(np.int32)

    def test_repacked(self, tmp_path: Path) -> None:
        tensors = {name: ("float16", array[1].astype(np.float16)) for name, array in plain().items()}
        exact, rng = {}, np.random.default_rng(2)
        for name in [name for name in tensors if "_proj" in name]:
            (rows, columns), path = tensors.pop(name)[1].shape, name.removesuffix(".weight")
            q, zeros = rng.integers(0, 16, (columns, rows)), rng.integers(0, 16, (columns // 32, rows))
            scales = (rng.random((columns // 32, rows)) * 0.02 + 0.01).astype(np.float16)
            tensors[path + ".qweight"] = ("int32", self.packed(q))
            tensors[path + ".qzeros"] = ("int32", self.packed(zeros))
            tensors[path + ".scales"] = ("float16", scales)
            wide = np.repeat(scales.astype(np.float32), 32, axis=0)
            exact[path] = ((q - np.repeat(zeros, 32, axis=0)) * wide).T
        settings = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
        manifest = convert(write(tmp_path / "source", tensors, quantization_config=settings))
        assert manifest.quantization == {"group_size": 32, "bits": 4, "mode": "affine"}
        model = load_model(tmp_path / "out", "float32").model
        assert model(TOKENS).shape == (1, 6, 96)
        for path, values in exact.items():
            layer: Any = dict(model.named_modules())[path]
            found = mx.dequantize(layer.weight, layer.scales, layer.biases, group_size=32, bits=4)
            np.testing.assert_allclose(np.array(found), values, atol=3e-4)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True}, "gptq to 4 bits"),
        ({"quant_method": "awq", "bits": 3, "group_size": 128}, "awq to 3 bits"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv"}, "awq"),
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "torchao"}, "torchao"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors (pack-quantized)"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "compressed-tensors (marlin-24)"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "modelopt NVFP4"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8"}, "modelopt W4A8"),
        ({"load_in_8bit": True}, "an unnamed method"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, settings: dict[str, Any], name: str) -> None:
    tensors = plain()
    path = "model.layers.0.mlp.up_proj.weight"
    packed = tensors.pop(path)[1]
    tensors |= {path + "_packed": ("int32", np.zeros((128, 8), np.int32)), path + "_scale": ("float32", packed[:, :2])}
    refused(
        write(tmp_path / "source", tensors, quantization_config=settings), f"is quantized by {name}", "--quantize 4"
    )


def test_a_table_in_a_file_of_its_own(tmp_path: Path) -> None:
    source = write(tmp_path / "source", plain())
    (source / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "W4A8_AWQ"}}))
    refused(source, "modelopt W4A8_AWQ")


def test_float8_values() -> None:
    """E4M3 against its definition, E5M2 against float16, for a few patterns."""
    patterns = np.array([0x00, 0x01, 0x07, 0x08, 0x38, 0x7E, 0x80, 0xB8, 0xFE], np.uint8)
    expected = [0, 2**-9, 7 * 2**-9, 2**-6, 1, 448, -0.0, -1, -448]
    np.testing.assert_array_equal(widen8(patterns, "float8_e4m3fn"), np.array(expected, np.float32))
    assert np.isnan(widen8(np.array([0x7F, 0xFF], np.uint8), "float8_e4m3fn")).all()
    np.testing.assert_array_equal(
        widen8(np.array([0x3C, 0x7B, 0x7C, 0xC0], np.uint8), "float8_e5m2"), [1, 57344, np.inf, -2]
    )
    np.testing.assert_array_equal(widen8(np.array([127, 128, 0], np.uint8), "float8_e8m0fnu"), [1, 2, 2.0**-127])
