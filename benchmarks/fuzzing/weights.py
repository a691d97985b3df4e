"""Formats of models: .bin, safetensors, GGUF, their indices and configurations, a converted model's manifest."""

import json
from pathlib import Path

from safetensors.numpy import save_file

from benchmarks.fuzzing.formats import Format
from benchmarks.fuzzing.mutations import damaged_bytes, damaged_json
from benchmarks.fuzzing.tensor_files import damaged_gguf, damaged_safetensors
from benchmarks.fuzzing.torch_files import damaged_torch
from mlxmath.config.load import settings_from
from mlxmath.config.schema import ModelConfig
from mlxmath.models.load import load_model
from mlxmath.training.plan import plan_run
from mlxmath.weights.convert import ensure_model
from mlxmath.weights.manifest import verify
from tests.weights.gguf_models import llama_gguf
from tests.weights.handmade import LLAMA, legacy_file, llama_arrays, llama_folder, state_dict, tensor


def _settings(folder: Path) -> ModelConfig:
    """Convert what is in the folder, or the one GGUF file in it."""
    found = next(iter(folder.glob("*.gguf")), folder / "source")
    return ModelConfig(model=str(found), mlx_path=str(folder / "out"))


def _convert(folder: Path) -> None:
    ensure_model(_settings(folder))


def _legacy(folder: Path) -> None:
    llama_folder(folder / "source")
    arrays = llama_arrays()
    entries = {
        label: tensor(str(key), str(array.dtype), array.size, array.shape)
        for key, (label, array) in enumerate(arrays.items())
    }
    # a legacy storage's class is pickled with a sixth field: no view
    pickled = state_dict({label: value.replace(b"tQ", b"NtQ") for label, value in entries.items()})
    storages = {str(key): (array.size, array.tobytes()) for key, array in enumerate(arrays.values())}
    (folder / "source" / "pytorch_model.bin").write_bytes(legacy_file(pickled, storages))


def _safetensors(folder: Path) -> None:
    llama_folder(folder / "source")
    (folder / "source" / "pytorch_model.bin").unlink()
    save_file(llama_arrays(), folder / "source" / "model.safetensors", {"format": "pt"})


def _mlx(folder: Path) -> None:
    """A converted model, made by a conversion."""
    ensure_model(ModelConfig(model="demo", mlx_path=str(folder / "out")))


def _load(folder: Path) -> None:
    """As a command does that finds a converted model: looked at, verified, loaded."""
    verify(folder / "out", full=True)
    ensure_model(ModelConfig(model="demo", mlx_path=str(folder / "out")), exact=False)
    load_model(folder / "out", "float32")


def _plan(folder: Path) -> None:
    found = settings_from(model=str(folder / "source"), mlx_path=str(folder / "none"), backend="cpu", max_seq_len=64)
    plan_run(found.config, memory_bytes=8 << 30)


def _modern(folder: Path) -> None:
    """A configuration with what others have."""
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}  # fmt: skip
    more = {
        "rope_scaling": rope, "rope_theta": 500000.0, "max_position_embeddings": 512, "hidden_act": "silu",
        "head_dim": 16, "attention_bias": False, "mlp_bias": False, "eos_token_id": [1, 2], "sliding_window": None,
        "quantization_config": None, "auto_map": {"AutoModelForCausalLM": "modeling.Model"}, "dtype": "float16",
    }  # fmt: skip
    llama_folder(folder / "source", **more)
    (folder / "source" / "modeling.py").write_text("open('canary', 'w')\n")


def _quantized(folder: Path) -> None:
    """A folder that mlx_lm quantized."""
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_flatten
    from mlx_lm.models.llama import Model, ModelArgs

    config = LLAMA | {"quantization": {"group_size": 32, "bits": 4}}
    model = Model(ModelArgs.from_dict(LLAMA))
    nn.quantize(model, 32, 4)
    (folder / "out").mkdir(parents=True)
    mx.save_safetensors(str(folder / "out" / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (folder / "out" / "config.json").write_text(json.dumps(config))


FORMATS = (
    Format("bin", lambda f: llama_folder(f / "source"), {"source/pytorch_model.bin": damaged_torch}, _convert,
           ("convert", "--model", "source", "--mlx-path", "out"), 3.0),
    Format("bin, before PyTorch 1.6", _legacy, {"source/pytorch_model.bin": lambda r, d: damaged_bytes(r, d, 6000)},
           _convert),
    Format("index of shards", lambda f: llama_folder(f / "source", shards=3),
           {"source/pytorch_model.bin.index.json": damaged_json}, _convert),
    Format("safetensors", _safetensors, {"source/model.safetensors": damaged_safetensors}, _convert,
           ("convert", "--model", "source", "--mlx-path", "out"), 3.0),
    Format("safetensors, quantized", _quantized,
           {"out/model.safetensors": damaged_safetensors, "out/config.json": damaged_json},
           lambda f: load_model(f / "out", "float32")),
    Format("GGUF", lambda f: llama_gguf(f / "m.gguf"), {"m.gguf": damaged_gguf}, _convert,
           ("convert", "--model", "./m.gguf", "--mlx-path", "out"), 3.0),
    Format("config.json", _modern, {"source/config.json": damaged_json}, _convert,
           ("convert", "--model", "source", "--mlx-path", "out"), 2.0),
    Format("config.json, planned", _modern, {"source/config.json": damaged_json}, _plan,
           ("plan", "--model", "source", "--mlx-path", "none", "--backend", "cpu")),
    Format("converted model", _mlx,
           {"out/model.safetensors": damaged_safetensors, "out/config.json": damaged_json,
            "out/mlxmath.json": damaged_json}, _load),
)  # fmt: skip
