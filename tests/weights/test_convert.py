import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlxmath.config.schema import ModelConfig
from mlxmath.errors import InputError, MlxmathError
from mlxmath.weights import hub
from mlxmath.weights.build import build_model
from mlxmath.weights.convert import ensure_model
from mlxmath.weights.dtypes import narrow
from mlxmath.weights.hub import fetch
from mlxmath.weights.manifest import Manifest, read_fingerprint, read_manifest, verify
from mlxmath.weights.packing import asked_for
from mlxmath.weights.quantized import natural_dtype
from mlxmath.weights.safetensor import SafetensorsWriter, open_safetensors
from tests.models import architectures
from tests.weights.handmade import LLAMA, llama_arrays, llama_folder, state_dict, tensor, torch_bin, zip_file


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return llama_folder(tmp_path / "source", shards=2)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "mlx_model"


def settings(model: Path | str, out: Path, **changes: Any) -> ModelConfig:
    return ModelConfig(model=str(model), mlx_path=str(out), **changes)


def nothing_left(out: Path) -> bool:
    return not out.parent.exists() or not list(out.parent.iterdir())


def test_every_tensor_arrives(model: Path, out: Path) -> None:
    manifest = ensure_model(settings(model, out))
    loaded = mx.load(str(out / "model.safetensors"))
    expected = llama_arrays()
    assert set(loaded) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(np.array(loaded[name]), array, strict=True)
    assert manifest == read_manifest(out) == verify(out, full=True)
    assert manifest.dtype == "float16"
    assert manifest.num_parameters == sum(array.size for array in expected.values())
    assert {file.name for file in manifest.files} == {"model.safetensors", "config.json", "tokenizer.json"}
    assert sorted(p.name for p in out.parent.iterdir()) == ["mlx_model"]


def test_mlx_lm_loads_it(model: Path, out: Path) -> None:
    from mlx_lm.utils import load_model

    ensure_model(settings(model, out))
    loaded, _ = load_model(out)
    assert loaded(mx.array([[1, 2, 3]])).shape == (1, 3, 96)


def test_shards_and_index(model: Path, out: Path) -> None:
    build_model(settings(model, out), fetch(str(model)), shard_bytes=40_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(out.glob("model*.safetensors"))
    assert len(files) > 2
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert {name: path.name for path in files for name in open_safetensors(path)} == index["weight_map"]
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in llama_arrays().values())
    for path in files:
        tensors = open_safetensors(path)
        assert len(tensors) == 1 or sum(t.num_bytes for t in tensors.values()) <= 40_000
    assert isinstance(verify(out, full=True), Manifest)
    again = out.with_name("again")
    ensure_model(settings(out, again))  # and an index of safetensors is a source
    for name, array in llama_arrays().items():
        np.testing.assert_array_equal(open_safetensors(again / "model.safetensors")[name].read(), array)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype(tmp_path: Path, out: Path, dtype: str) -> None:
    model = llama_folder(tmp_path / "source", dtype="float32", torch_dtype="float32")
    assert ensure_model(settings(model, out, dtype=dtype)).dtype == dtype
    loaded = mx.load(str(out / "model.safetensors"))
    for name, array in llama_arrays(dtype="float32").items():
        assert mx.array_equal(loaded[name], mx.array(array).astype(getattr(mx, dtype)))
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == dtype


def test_a_type_that_is_none_counts_as_not_given() -> None:
    for given in (["float16"], {"a": 1}, 5, "float64"):
        assert natural_dtype({"torch_dtype": given}) == natural_dtype({}) == "bfloat16"
    assert natural_dtype({"dtype": [], "torch_dtype": "float16"}) == "float16"


def test_halves_between_two_bfloat16_go_to_the_even_one() -> None:
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, np.nan], np.float32)
    assert narrow(values).tolist() == [0x3F80, 0x3F82, 0xBF80, 0x7FC0]


def test_values_beyond_float16(tmp_path: Path, out: Path) -> None:
    arrays = llama_arrays(dtype="float32")
    arrays["model.norm.weight"][3] = 1e6
    model = llama_folder(tmp_path / "source", arrays=arrays)
    with pytest.raises(MlxmathError, match=r"'model\.norm\.weight' has values beyond the range of float16"):
        ensure_model(settings(model, out, dtype="float16"))
    assert nothing_left(out)
    arrays["model.norm.weight"][3] = np.inf  # what is infinite already may stay so
    ensure_model(settings(llama_folder(model, arrays=arrays), out, dtype="float16"))


def test_float64_becomes_float32(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = llama_folder(tmp_path / "source", dtype="float64")
    assert ensure_model(settings(model, out)).dtype == "float32"
    assert "float64 tensors become float32" in capsys.readouterr().err


class TestHead:
    """Who decides whether the head is the embedding: the weights, then config.json."""

    @pytest.mark.parametrize("tied", [True, False, None])
    @pytest.mark.parametrize("equal", [True, False])
    def test_head(self, tmp_path: Path, out: Path, tied: bool | None, equal: bool) -> None:
        from mlx_lm.utils import load_model

        arrays = llama_arrays()
        if equal:
            arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]
        tie = ... if tied is None else tied
        ensure_model(settings(llama_folder(tmp_path / "source", arrays=arrays, tie_word_embeddings=tie), out))
        is_tied = equal and tied is not False
        assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is is_tied
        assert ("lm_head.weight" in open_safetensors(out / "model.safetensors")) is not is_tied
        loaded, _ = load_model(out)
        assert ("lm_head" in loaded) is not is_tied

    def test_no_head(self, tmp_path: Path, out: Path) -> None:
        arrays = {name: array for name, array in llama_arrays().items() if name != "lm_head.weight"}
        norms = {f"model.layers.{i}.self_attn.{x}_norm.weight": np.ones(16, np.float16) for i in (0, 1) for x in "qk"}
        config = {"model_type": "qwen3", "head_dim": 16, "max_position_embeddings": 128, "rope_theta": 1e4}
        source = llama_folder(tmp_path / "source", arrays=arrays | norms, tie_word_embeddings=..., **config)
        ensure_model(settings(source, out))
        assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True

    @pytest.mark.parametrize(
        ("model_type", "outer", "inner", "has_head"),
        [("qwen3_vl", True, ..., False), ("qwen3_5", True, False, False), ("qwen2_vl", False, ..., True),
         ("qwen3_5", False, True, True), ("qwen3_5", False, False, False)],
    )  # fmt: skip
    def test_said_outside_of_the_language_model(
        self, tmp_path: Path, out: Path, model_type: str, outer: bool, inner: Any, has_head: bool
    ) -> None:
        """As transformers 5 saves models that see: what the part says is its class's default."""
        from mlx_lm.utils import load_model

        source = architectures.write(model_type, tmp_path)
        config = json.loads((source / "config.json").read_text())
        config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = outer
        if inner is ...:
            del config["text_config"]["tie_word_embeddings"]
        else:
            config["text_config"]["tie_word_embeddings"] = inner
        (source / "config.json").write_text(json.dumps(config))
        path = str(source / "model.safetensors")
        head = "language_model.lm_head.weight"
        arrays = {name: array for name, array in mx.load(path).items() if has_head or name != head}
        mx.save_safetensors(path, arrays, {"format": "mlx"})
        if not (outer or has_head):
            with pytest.raises(MlxmathError, match=r"missing \(1\): language_model\.lm_head\.weight"):
                ensure_model(settings(source, out))
            return
        ensure_model(settings(source, out))
        loaded, config = load_model(out)
        assert config["tie_word_embeddings"] is config["text_config"]["tie_word_embeddings"] is outer
        assert ("lm_head" in loaded.language_model) is has_head
        assert not has_head or mx.array_equal(loaded.language_model.lm_head.weight, arrays[head])


@pytest.mark.parametrize("model_type", ["gemma3", "gemma4"])
def test_a_vocabulary_that_only_the_part_says(tmp_path: Path, out: Path, model_type: str) -> None:
    """transformers says it in text_config alone; mlx_lm's Gemmas take what stands outside, or a size of their own."""
    source = architectures.write(model_type, tmp_path)
    config = json.loads((source / "config.json").read_text())
    config["text_config"]["vocab_size"] = config.pop("vocab_size", architectures.VOCAB_SIZE)
    (source / "config.json").write_text(json.dumps(config))
    ensure_model(settings(source, out))
    assert json.loads((out / "config.json").read_text())["vocab_size"] == architectures.VOCAB_SIZE


class TestQuantize:
    @pytest.mark.parametrize("bits", [4, 8])
    @pytest.mark.parametrize("dtype", ["float16", "float32"])
    def test_equals_mlx_lm(self, tmp_path: Path, out: Path, bits: int, dtype: str) -> None:
        from mlx_lm.utils import load_model, quantize_model, save_config, save_model

        model = llama_folder(tmp_path / "source", dtype=dtype, torch_dtype=dtype, intermediate_size=96)
        ensure_model(settings(model, out.with_name("plain")))
        manifest = ensure_model(settings(model, out, quantize=bits, group_size=64))
        theirs, config = load_model(out.with_name("plain"))
        theirs, config = quantize_model(theirs, config, 64, bits)
        save_model(tmp_path / "theirs", theirs)
        save_config(config, tmp_path / "theirs" / "config.json")

        expected = mx.load(str(tmp_path / "theirs" / "model.safetensors"))
        found = mx.load(str(out / "model.safetensors"))
        assert set(found) == set(expected)
        for name, array in expected.items():
            assert found[name].dtype == array.dtype
            assert mx.array_equal(found[name], array), name
        for key in ("quantization", "quantization_config"):
            theirs_config = json.loads((tmp_path / "theirs" / "config.json").read_text())
            assert json.loads((out / "config.json").read_text())[key] == theirs_config[key]
        assert manifest.quantization == {"group_size": 64, "bits": bits, "mode": "affine"}
        assert "model.layers.0.mlp.down_proj.scales" not in found  # rows of 96 are no multiple of 64
        load_model(out)

    @pytest.mark.parametrize("form", [2, 3, 5, 6, "mxfp4", "nvfp4", "mxfp8"])
    def test_other_forms_equal_mlx_lms(self, tmp_path: Path, out: Path, form: int | str) -> None:
        from mlx_lm.utils import load_model, quantize_model

        model = llama_folder(tmp_path / "source")
        ensure_model(settings(model, out.with_name("plain")))
        manifest = ensure_model(settings(model, out, quantize=form))
        theirs, config = load_model(out.with_name("plain"))
        packing = asked_for(settings(model, out, quantize=form))
        theirs, config = quantize_model(theirs, config, packing.group_size, packing.bits, mode=packing.mode)
        assert json.loads((out / "config.json").read_text())["quantization"] == config["quantization"]
        expected = dict(tree_flatten(theirs.parameters()))
        found = mx.load(str(out / "model.safetensors"))
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert found[name].dtype == array.dtype
            assert mx.array_equal(found[name], array), name
        load_model(out)
        assert ensure_model(settings(model, out, quantize=form)) == manifest
        with pytest.raises(InputError, match="--quantize 8 was asked for"):
            ensure_model(settings(model, out, quantize=8))
        assert f"{form}" in manifest.describe()

    def test_auto_needs_problems(self, model: Path, out: Path) -> None:
        with pytest.raises(InputError, match=r"--quantize auto:4.5 measures on problems, .* `mlxmath convert --model"):
            ensure_model(settings(model, out, quantize="auto:4.5"))
        assert not out.exists()

    def test_what_is_skipped_is_said(self, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
        model = llama_folder(tmp_path / "source", intermediate_size=96)
        ensure_model(settings(model, out, quantize=4))
        assert "not quantized, since the group size does not divide their rows: model.layers.0.mlp.down_proj" in (
            capsys.readouterr().err
        )

    def test_blocks_of_rows_are_the_whole(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = llama_folder(tmp_path / "source")
        whole = ensure_model(settings(model, tmp_path / "whole", quantize=4))
        monkeypatch.setattr(
            "mlxmath.weights.tensors.TensorRef.blocks.__kwdefaults__", {"multiple": 1, "block_bytes": 700}
        )
        parts = ensure_model(settings(model, tmp_path / "parts", quantize=4))
        assert whole.files == parts.files

    def test_twice_is_refused(self, model: Path, out: Path) -> None:
        ensure_model(settings(model, out, quantize=4))
        with pytest.raises(InputError, match="quantized already"):
            ensure_model(settings(out, out.with_name("again"), quantize=4))
        copy = ensure_model(settings(out, out.with_name("copy")))
        assert copy.quantization == read_manifest(out).quantization
        assert ensure_model(settings(out, out.with_name("copy"))) == copy

    def test_rearranged_architectures(self, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Experts one by one, which mlx_lm stacks: from .bin and from safetensors as mlx_lm does it."""
        from mlx_lm.utils import load_model, quantize_model, save_model

        changes = {
            "model_type": "qwen2_moe", "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 64, "num_hidden_layers": 1, "intermediate_size": 64,
        }  # fmt: skip
        arrays = llama_arrays(**changes)
        rng = np.random.default_rng(1)
        for label in [label for label in arrays if ".mlp." in label]:
            array = arrays.pop(label)
            for part in ("experts.0", "experts.1", "shared_expert"):
                arrays[label.replace(".mlp.", f".mlp.{part}.")] = (rng.random(array.shape) * 0.1).astype(np.float16)
        at = "model.layers.0."
        arrays |= {at + "mlp.gate.weight": np.ones((2, 64), np.float16)}
        arrays |= {at + "mlp.shared_expert_gate.weight": np.ones((1, 64), np.float16)}
        for name in "qkv":
            rows = arrays[at + f"self_attn.{name}_proj.weight"].shape[0]
            arrays[at + f"self_attn.{name}_proj.bias"] = rng.random(rows).astype(np.float16)
        model = llama_folder(tmp_path / "source", arrays=arrays, **changes)
        ensure_model(settings(model, out.with_name("plain")))
        theirs, config = load_model(out.with_name("plain"))
        theirs, _ = quantize_model(theirs, config, 32, 4)
        save_model(tmp_path / "theirs", theirs)
        expected = mx.load(str(tmp_path / "theirs" / "model.safetensors"))
        made = ensure_model(settings(model, out, quantize=4, group_size=32))
        assert "3 tensors are put together as mlx_lm does on loading" in capsys.readouterr().err
        wide = {name: array.astype(np.float32) for name, array in arrays.items()}
        wide[at + "mlp.experts.1.up_proj.weight"][3, 5] = 1e6
        too_wide = llama_folder(tmp_path / "wide", arrays=wide, **changes)
        with pytest.raises(MlxmathError, match=r"switch_mlp\.up_proj\.weight has values beyond the range of float16"):
            ensure_model(settings(too_wide, out.with_name("too_wide"), quantize=4, group_size=32, dtype="float16"))
        blob = tmp_path / "blob"  # as in the hub's cache: a link to a file without a suffix
        (out.with_name("plain") / "model.safetensors").rename(blob)
        (out.with_name("plain") / "model.safetensors").symlink_to(blob)
        again = ensure_model(settings(out.with_name("plain"), out.with_name("again"), quantize=4, group_size=32))
        assert made.fingerprint == again.fingerprint
        for folder in (out, out.with_name("again")):
            found = mx.load(str(folder / "model.safetensors"))
            assert found.keys() == expected.keys()
            for name, array in expected.items():
                assert found[name].dtype == array.dtype, name
                assert mx.array_equal(found[name], array), name
            assert {path.name for path in folder.iterdir()} == {
                "config.json", "mlxmath.json", "model.safetensors", "tokenizer.json"
            }  # fmt: skip


class TestNames:
    """config.json and weights must be of one model."""

    @pytest.mark.parametrize("quantize", [None, 4])
    def test_all_that_does_not_fit_is_named_at_once(self, tmp_path: Path, out: Path, quantize: int | None) -> None:
        arrays = llama_arrays()
        del arrays["model.norm.weight"], arrays["model.layers.1.mlp.up_proj.weight"]
        arrays["model.layers.0.mlp.gate_proj.weight"] = np.ones((64, 64), np.float16)
        arrays["model.layers.0.mlp.router.weight"] = np.ones((4, 64), np.float16)
        model = llama_folder(tmp_path / "source", arrays=arrays)
        with pytest.raises(MlxmathError) as caught:
            ensure_model(settings(model, out, quantize=quantize))
        said = str(caught.value)
        assert re.search(r"missing \(2\): .*model\.layers\.1\.mlp\.up_proj\.weight.*model\.norm\.weight", said)
        assert "unknown to the model (1): model.layers.0.mlp.router.weight" in said
        assert "of another shape (1): model.layers.0.mlp.gate_proj.weight (64, 64) instead of (128, 64)" in said
        assert "--overwrite" not in said
        assert nothing_left(out)

    @pytest.mark.parametrize(
        "wrapped",
        [
            lambda name: f"module.{name}",
            lambda name: f"_orig_mod.{name}",
            lambda name: f"module._orig_mod.{name}",
            lambda name: f"base_model.model.{name}",
            lambda name: f"transformer.{name}",
            lambda name: name.replace("layers.0.", "layers.0._orig_mod."),
            lambda name: name.replace(".self_attn.", "._fsdp_wrapped_module.self_attn._checkpoint_wrapped_module."),
        ],
    )
    def test_what_wrappers_add_is_left_out(
        self, tmp_path: Path, out: Path, wrapped: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model = llama_folder(tmp_path / "source")
        plain = ensure_model(settings(model, out.with_name("plain")))
        capsys.readouterr()
        arrays = {wrapped(name): array for name, array in llama_arrays().items()}
        assert ensure_model(settings(llama_folder(model, arrays=arrays), out)).fingerprint == plain.fingerprint
        first = next(name for name in arrays if name not in llama_arrays())
        assert f"names lose what a wrapper gave them: {first} is " in capsys.readouterr().err
        assert set(open_safetensors(out / "model.safetensors")) == set(llama_arrays())

    def test_buffers_are_left_out(self, tmp_path: Path, out: Path) -> None:
        at = "model.layers.0.self_attn."
        names = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "masked_bias")
        more = {at + name: np.ones((1, 4), np.float32) for name in names}
        ensure_model(settings(llama_folder(tmp_path / "source", arrays=llama_arrays() | more), out))
        assert set(open_safetensors(out / "model.safetensors")) == set(llama_arrays())

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000"),
            ({"vocab_size": 10**15}, "vocab_size 1000000000000000"),
            ({"hidden_size": -64}, "hidden_size -64"),
            ({"hidden_size": "64"}, "hidden_size 64"),
            ({"num_attention_heads": {"a": 1}}, "num_attention_heads"),
            ({"rope_scaling": {"rope_type": "yarn", "factor": "many"}}, "wrong type"),
            ({"rms_norm_eps": None}, "wrong type"),
            ({"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 64}}, "setting 'factor'"),
        ],
    )
    def test_what_the_weights_do_not_bear_out(self, tmp_path: Path, out: Path, changes: Any, said: str) -> None:
        model = llama_folder(tmp_path / "source")
        (model / "config.json").write_text(json.dumps(LLAMA | changes))
        with pytest.raises(MlxmathError) as caught:
            ensure_model(settings(model, out))
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
        assert nothing_left(out)

    def test_code_of_its_own_is_not_run(self, tmp_path: Path, out: Path) -> None:
        model = llama_folder(tmp_path / "source", model_file="evil.py")
        (model / "evil.py").write_text("raise SystemExit(9)")
        with pytest.raises(MlxmathError, match="code of its own"):
            ensure_model(settings(model, out))


def edit_index(model: Path, **changes: str) -> None:
    path = model / "pytorch_model.bin.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] |= {key.replace("__", "."): value for key, value in changes.items()}
    path.write_text(json.dumps(index))


class TestDamagedSource:
    """Each gives one clear line, and nothing is left behind."""

    def fails(self, model: Path, out: Path, message: str) -> None:
        with pytest.raises(MlxmathError, match=message) as caught:
            ensure_model(settings(model, out))
        assert "\n" not in str(caught.value)
        assert nothing_left(out)

    @pytest.mark.parametrize(
        ("patterns", "message"),
        [
            ("*-00002-of-00002.bin", r"lacks 1 of the 2 weight files .*: pytorch_model-00002-of-00002\.bin"),
            ("*.index.json *-00001-*", "00002-of-00002.bin counts otherwise"),
            ("config.json", r"config\.json does not exist"),
            ("pytorch*", "holds no weights"),
        ],
        ids=["a shard", "index and a shard", "config.json", "weights"],
    )
    def test_missing(self, model: Path, out: Path, patterns: str, message: str) -> None:
        for path in (path for pattern in patterns.split() for path in model.glob(pattern)):
            path.unlink()
        self.fails(model, out, message)

    def test_absent_tensor(self, model: Path, out: Path) -> None:
        edit_index(model, model__other="pytorch_model-00001-of-00002.bin")
        self.fails(model, out, r"pytorch_model-00001-of-00002\.bin lacks the tensor 'model\.other'")

    def test_tensor_twice(self, model: Path, out: Path) -> None:
        shutil.copy(model / "pytorch_model-00001-of-00002.bin", model / "extra.bin")
        edit_index(model, model__other="extra.bin")
        self.fails(model, out, r"is in both extra\.bin and pytorch_model-00001")

    @pytest.mark.parametrize("name", ["../outside.bin", "/etc/passwd", "a/../../b.bin", "C:\\x.bin"])
    def test_index_outside(self, model: Path, out: Path, name: str) -> None:
        (model.parent / "outside.bin").write_bytes(torch_bin(llama_arrays()))
        edit_index(model, model__other=name)
        self.fails(model, out, "outside the folder")

    @pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
    def test_truncated_file(self, model: Path, out: Path, part: float) -> None:
        path = model / "pytorch_model-00002-of-00002.bin"
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
        self.fails(model, out, r"pytorch_model-00002-of-00002\.bin")

    @pytest.mark.parametrize("part", ["first", "last", "pickle"])
    def test_a_bit_is_another(self, model: Path, out: Path, part: str) -> None:
        """The archive's checksums tell."""
        path = model / "pytorch_model-00001-of-00002.bin"
        data = bytearray(path.read_bytes())
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if "/data/" in name]
        name = {"first": names[0], "last": names[-1], "pickle": "model/data.pkl"}[part]
        at = data.index(name.encode()) + len(name) + (60 if part == "pickle" else 8)
        data[at] ^= 1
        path.write_bytes(data)
        self.fails(
            model, out, rf"00001-of-00002\.bin is damaged: the checksum \(CRC-32\) of its entry .*{name[6:]} is not"
        )

    def test_checksums_that_were_not_written(self, tmp_path: Path, out: Path) -> None:
        """As by torch.serialization.set_crc32_options(False), which leaves zeros."""
        model = llama_folder(tmp_path / "source")
        data = bytearray((model / "pytorch_model.bin").read_bytes())
        for found in re.finditer(rb"PK(?:\x01\x02|\x03\x04)", bytes(data)):
            at = found.start() + (16 if found[0][2] == 1 else 14)
            data[at : at + 4] = bytes(4)
        (model / "pytorch_model.bin").write_bytes(data)
        ensure_model(settings(model, out))
        assert open_safetensors(out / "model.safetensors").keys() == llama_arrays().keys()

    @pytest.mark.parametrize("names", [1, 12])
    def test_a_small_file_that_stands_for_much(self, tmp_path: Path, out: Path, names: int) -> None:
        """Strides of zero repeat one number."""
        model = llama_folder(tmp_path / "source")
        shape = (1 << 27, 1) if names == 1 else (1 << 20, 3)
        entries = {f"{i}.weight": tensor("0", "float32", 1, shape, (0, 0)) for i in range(names)}
        (model / "pytorch_model.bin").write_bytes(zip_file(state_dict(entries), {"0": bytes(4)}))
        said = "536.87 MB" if names == 1 else "150.99 MB"
        self.fails(model, out, rf"pytorch_model\.bin: the weights would take {said}.*'0\.weight' of shape .*\(0, 0\)")

    def test_wrong_hash_in_the_hub_cache(self, model: Path, out: Path) -> None:
        path = model / "pytorch_model-00002-of-00002.bin"
        blob = model / "blobs" / ("0123456789abcdef" * 4)
        blob.parent.mkdir()
        path.rename(blob)
        path.symlink_to(blob)
        self.fails(model, out, r"pytorch_model-00002-of-00002\.bin is damaged: its SHA-256 is .* Delete .*blobs")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("config.json", "{", "not readable JSON"),
            ("config.json", "[]", "no model_type"),
            ("config.json", '{"model_type": 3}', "no model_type"),
            ("config.json", '{"model_type": "orca"}', "no model of type 'orca'"),
            ("config.json", '{"model_type": "../x"}', r"no model of type '\.\./x'"),
            *(("pytorch_model.bin.index.json", text, r"pytorch_model\.bin\.index\.json") for text in
              ("", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}')),
        ],
    )  # fmt: skip
    def test_damaged_json(self, model: Path, out: Path, name: str, content: str, message: str) -> None:
        (model / name).write_text(content)
        self.fails(model, out, message)


class TestFullDisk:
    def test_refused_beforehand(self, model: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = shutil.disk_usage(model)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(MlxmathError, match=r"the model takes .* 1\.00 kB are free"):
            ensure_model(settings(model, out))
        assert nothing_left(out)

    def test_met_while_writing(self, model: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write = SafetensorsWriter.write

        def full(self: SafetensorsWriter, block: Any) -> None:
            if self.num_bytes > 100_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(self, block)

        monkeypatch.setattr(SafetensorsWriter, "write", full)
        with pytest.raises(MlxmathError, match="No space left on device"):
            ensure_model(settings(model, out))
        assert nothing_left(out)

    @pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root to mount a small disk")
    def test_a_really_full_disk(self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        disk = tmp_path / "disk"
        disk.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)], check=False).returncode:
            pytest.skip("cannot mount here")
        try:
            monkeypatch.setattr("mlxmath.weights.build.check_space", lambda *_: None)
            with pytest.raises(MlxmathError, match="No space left on device"):
                ensure_model(settings(model, disk / "mlx_model"))
            assert list(disk.iterdir()) == []
        finally:
            subprocess.run(["umount", str(disk)], check=True)


class TestAgain:
    def test_a_valid_folder_is_used_again(
        self, model: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = ensure_model(settings(model, out))
        before = (out / "model.safetensors").stat().st_mtime_ns
        capsys.readouterr()
        monkeypatch.setattr("mlxmath.weights.convert.fetch", None)
        assert ensure_model(settings(model, out)) == first
        assert "is valid" in capsys.readouterr().err
        assert (out / "model.safetensors").stat().st_mtime_ns == before
        shutil.rmtree(model)
        assert ensure_model(settings(model, out)) == first

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"quantize": 4}, "--quantize 4 was asked for"),
            ({"dtype": "float32"}, "--dtype float32 was asked for"),
            ({"revision": "v2"}, "--revision v2 was asked for"),
        ],
    )
    def test_other_settings(self, model: Path, out: Path, changes: dict[str, Any], message: str) -> None:
        ensure_model(settings(model, out))
        with pytest.raises(InputError, match=message) as caught:
            ensure_model(settings(model, out, **changes))
        assert str(out) in str(caught.value)
        assert "--overwrite" in str(caught.value)
        assert isinstance(verify(out, full=True), Manifest)

    def test_the_same_settings_in_other_words(self, model: Path, out: Path) -> None:
        first = ensure_model(settings(model, out))
        assert ensure_model(settings(model, out, dtype="float16", group_size=32)) == first

    def test_quantized(self, model: Path, out: Path) -> None:
        first = ensure_model(settings(model, out, quantize=8, group_size=32))
        assert ensure_model(settings(model, out, quantize=8, group_size=32)) == first
        for changes in ({}, {"quantize": 4}, {"quantize": 8, "group_size": 64}):
            with pytest.raises(InputError, match="8 bits"):
                ensure_model(settings(model, out, **changes), exact=True)
        assert ensure_model(settings(model, out)) == first  # training takes the model in the form it finds
        with pytest.raises(InputError, match="8 bits"):
            ensure_model(settings(model, out, quantize=4))

    def test_another_model(self, model: Path, out: Path, tmp_path: Path) -> None:
        first = ensure_model(settings(model, out))
        other = llama_folder(tmp_path / "other", seed=1)
        with pytest.raises(InputError, match="--model .*other was asked for"):
            ensure_model(settings(other, out))
        assert verify(out, full=True) == first
        second = ensure_model(settings(other, out, overwrite=True))
        assert second.fingerprint != first.fingerprint
        assert verify(out, full=True) == second

    def test_the_source_has_changed(self, model: Path, out: Path) -> None:
        first = ensure_model(settings(model, out))
        path = model / "pytorch_model-00002-of-00002.bin"
        os.utime(path, ns=(1, 1))
        assert ensure_model(settings(model, out)) == first
        data = bytearray(path.read_bytes())
        data[-2000] ^= 1
        path.write_bytes(data)
        with pytest.raises(InputError, match="have changed since"):
            ensure_model(settings(model, out))

    def test_damaged_is_made_anew(self, model: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
        first = ensure_model(settings(model, out))
        path = out / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        assert "bytes instead of" in str(verify(out))
        capsys.readouterr()
        assert ensure_model(settings(model, out)).files == first.files
        assert "is damaged" in capsys.readouterr().err
        (out / "tokenizer.json").unlink()
        assert "is missing" in str(verify(out))
        assert ensure_model(settings(model, out)).files == first.files
        shutil.copy(out / "model.safetensors", out / "model-extra.safetensors")
        assert "does not belong" in str(verify(out))
        assert ensure_model(settings(model, out)).files == first.files

    def test_full_verification(self, model: Path, out: Path) -> None:
        ensure_model(settings(model, out))
        data = bytearray((out / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (out / "model.safetensors").write_bytes(data)
        assert isinstance(verify(out), Manifest)
        assert "SHA-256" in str(verify(out, full=True))

    @pytest.mark.parametrize("content", ["", "{}", "[]", '{"source": 3}'])
    def test_a_damaged_manifest(self, model: Path, out: Path, content: str) -> None:
        ensure_model(settings(model, out))
        (out / "mlxmath.json").write_text(content)
        with pytest.raises(InputError, match="unknown; delete it"):
            ensure_model(settings(model, out))
        ensure_model(settings(model, out, overwrite=True))
        assert isinstance(verify(out, full=True), Manifest)

    def test_foreign_files_are_never_replaced(self, model: Path, out: Path) -> None:
        out.mkdir(parents=True)
        (out / "thesis.txt").write_text("years of work")
        for overwrite in (False, True):
            with pytest.raises(InputError, match="did not write"):
                ensure_model(settings(model, out, overwrite=overwrite))
        assert (out / "thesis.txt").read_text() == "years of work"

    def test_an_empty_folder_and_a_file(self, model: Path, out: Path) -> None:
        out.mkdir(parents=True)
        ensure_model(settings(model, out))
        with pytest.raises(InputError, match="is a file"):
            ensure_model(settings(model, out / "config.json"))

    def test_a_link_to_another_disk(self, model: Path, out: Path, tmp_path: Path) -> None:
        first = ensure_model(settings(model, tmp_path / "elsewhere"))
        out.parent.mkdir(parents=True)
        out.symlink_to(tmp_path / "elsewhere")
        assert ensure_model(settings(model, out)) == first
        ensure_model(settings(model, out, dtype="float32", overwrite=True))
        assert out.is_symlink()
        assert isinstance(verify(out, full=True), Manifest)


class TestItself:
    """--model and --mlx-path name one folder."""

    def test_ours(self, model: Path, out: Path) -> None:
        first = ensure_model(settings(model, out, quantize=4))
        assert ensure_model(settings(out, out)) == first

    def test_made_elsewhere(self, model: Path, out: Path) -> None:
        ensure_model(settings(model, out))
        (out / "mlxmath.json").unlink()
        before = sorted(out.iterdir())
        manifest = ensure_model(settings(out, out))
        assert manifest.dtype == "float16"
        assert manifest.fingerprint == ensure_model(settings(out, out)).fingerprint
        assert sorted(out.iterdir()) == before
        assert read_fingerprint(out) is None
        with pytest.raises(InputError, match="--model itself"):
            ensure_model(settings(out, out, quantize=4))

    def test_a_source_in_bin_files(self, model: Path) -> None:
        with pytest.raises(InputError, match=r"in \.bin files"):
            ensure_model(settings(model, model))

    def test_a_source_inside_the_target(self, tmp_path: Path) -> None:
        llama_folder(tmp_path / "all" / "source")
        with pytest.raises(InputError, match="would replace the model that it is made from"):
            build_model(
                settings(tmp_path / "all" / "source", tmp_path / "all"), fetch(str(tmp_path / "all" / "source"))
            )


class TestDemo:
    @pytest.fixture(autouse=True)
    def bundled(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = llama_folder(tmp_path / "bundled", shards=2, seed=5)
        monkeypatch.setattr(hub, "DEMO_FOLDER", folder)
        monkeypatch.setattr("mlxmath.weights.convert.DEMO_FOLDER", folder)
        return folder

    def test_it_gives_way(self, model: Path, out: Path) -> None:
        first = ensure_model(settings("demo", out))
        assert first.source == "demo"
        assert ensure_model(settings("demo", out)) == first
        second = ensure_model(settings(model, out))
        assert second.source == str(model)
        with pytest.raises(InputError, match="--model demo was asked for"):
            ensure_model(settings("demo", out))

    def test_a_newer_demo_replaces_the_old(self, out: Path, bundled: Path) -> None:
        first = ensure_model(settings("demo", out))
        shutil.rmtree(bundled)
        llama_folder(bundled, shards=2, seed=6)
        assert ensure_model(settings("demo", out)).fingerprint != first.fingerprint


class TestFingerprint:
    def test_it_knows_the_weights_only(self, model: Path, out: Path, tmp_path: Path) -> None:
        first = ensure_model(settings(model, out))
        shutil.copytree(model, tmp_path / "moved")
        moved = ensure_model(settings(tmp_path / "moved", tmp_path / "elsewhere"))
        assert moved.fingerprint == first.fingerprint == read_fingerprint(out)
        variants = {
            ensure_model(settings(model, tmp_path / f"v{number}", **changes)).fingerprint
            for number, changes in enumerate([{"dtype": "float32"}, {"quantize": 4}, {"quantize": 8}])
        }
        assert len(variants | {first.fingerprint}) == 4

    def test_not_how_they_are_stored(self, tmp_path: Path, model: Path, out: Path) -> None:
        """.bin in two files, .bin in one, safetensors in two or one, as it lies: the same weights."""
        first = ensure_model(settings(model, out))
        build_model(settings(model, tmp_path / "shards"), fetch(str(model)), shard_bytes=40_000)
        whole = llama_folder(tmp_path / "whole")
        found = [read_manifest(tmp_path / "shards")]
        found += [
            ensure_model(settings(source, tmp_path / f"v{n}"))
            for n, source in enumerate((whole, out, tmp_path / "shards"))
        ]
        (out / "mlxmath.json").unlink()
        found.append(ensure_model(settings(out, out)))
        assert {manifest.fingerprint for manifest in found} == {first.fingerprint}
        assert found[1].also != first.also

    def test_by_hand(self, model: Path, out: Path) -> None:
        digests = {
            name: hashlib.sha256(json.dumps(["float16", list(array.shape)]).encode() + array.tobytes()).hexdigest()
            for name, array in llama_arrays().items()
        }
        whole = hashlib.sha256(json.dumps([sorted(map(list, digests.items())), None]).encode()).hexdigest()
        assert ensure_model(settings(model, out)).fingerprint == whole[:16]

    def test_that_of_files_is_still_known(self, model: Path, out: Path) -> None:
        """By which 0.1.0 knew a model, and by which its adapters name their base."""
        manifest = ensure_model(settings(model, out))
        hashes = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in model.glob("*.bin"))
        old = hashlib.sha256(json.dumps([hashes, "float16", None], sort_keys=True).encode()).hexdigest()[:16]
        assert manifest.also == (old,)
        found = read_fingerprint(out)
        assert found is not None
        assert found.accepts(old)
        assert found.accepts(manifest.fingerprint)
        assert not found.accepts("0123456789abcdef")

    def test_a_manifest_of_0_1_0(self, model: Path, out: Path) -> None:
        manifest = ensure_model(settings(model, out))
        stored = manifest.model_dump(mode="json", exclude={"also", "limits"}) | {"fingerprint": manifest.also[0]}
        (out / "mlxmath.json").write_text(json.dumps(stored))
        assert ensure_model(settings(model, out)).fingerprint == manifest.also[0]


def test_remote_code_only_when_trusted(model: Path, out: Path) -> None:
    (model / "tokenization_x.py").write_text("raise SystemExit")
    (model / "LICENSE").write_text("licence")
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tool.jinja").write_text("x")
    ensure_model(settings(model, out))
    assert not list(out.glob("*.py"))
    assert (out / "LICENSE").exists()
    assert (out / "additional_chat_templates" / "tool.jinja").exists()
    ensure_model(settings(model, out.with_name("trusted"), trust_remote_code=True))
    assert (out.with_name("trusted") / "tokenization_x.py").exists()


SLOW = """
import sys, time
from mlxmath.config.schema import ModelConfig
from mlxmath.weights.safetensor import SafetensorsWriter
from mlxmath.weights.convert import ensure_model
write = SafetensorsWriter.write
def slow(self, block):
    write(self, block)
    time.sleep(0.02)
SafetensorsWriter.write = slow
print("ready", flush=True)
ensure_model(ModelConfig(model=sys.argv[1], mlx_path=sys.argv[2], dtype=sys.argv[3], overwrite=True))
"""


def test_killed_at_any_moment(model: Path, out: Path) -> None:
    """Whenever a conversion is killed, the folder is absent or whole, and the next run works and cleans up."""
    for number, delay in enumerate(np.linspace(0.02, 0.7, 8)):
        dtype = ("float32", "float16")[number % 2]
        process = subprocess.Popen(
            [sys.executable, "-c", SLOW, str(model), str(out), dtype], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert not out.exists() or isinstance(verify(out, full=True), Manifest)
    leftovers = [path for path in out.parent.iterdir() if path.name != out.name]
    manifest = ensure_model(settings(model, out, overwrite=True, dtype="bfloat16"))
    assert verify(out, full=True) == manifest
    assert [path.name for path in out.parent.iterdir()] == ["mlx_model"], leftovers


def test_a_setting_that_is_looked_at_only_when_the_model_is_called(tmp_path: Path) -> None:
    """mlx_lm's Gemma 2 divides by its soft caps; transformers takes null for none."""
    source = architectures.write("gemma2", tmp_path)
    config = json.loads((source / "config.json").read_text()) | {"attn_logit_softcapping": None}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(MlxmathError, match=r"'gemma2', but cannot compute with it .*A setting in config.json"):
        ensure_model(ModelConfig(model=str(source), mlx_path=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
