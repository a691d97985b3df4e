"""Two processes that share a model between them compute what one computes alone."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from benchmarks.common import ring_hostfile
from mlxmath.config.schema import LoraConfig
from mlxmath.errors import InputError
from mlxmath.models.load import load_model
from mlxmath.models.lora.adapter import WEIGHTS, adapter_config, load_adapter, save_config, save_weights
from mlxmath.models.lora.inject import inject
from mlxmath.models.lora.sharding import _by_block, _by_tensor
from tests.helpers import REPOSITORY
from tests.models.architectures import config_of, make, write
from tests.models.folders import folder_of
from tests.models.sharded_rank import TOKENS

SIZES = {
    "hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": 96, "tie_word_embeddings": False,
}  # fmt: skip


def make_model(folder: Path, family: str, bits: int | None = None, **changes: Any) -> Path:
    """A random model on the disk."""
    from importlib import import_module

    home = import_module(f"mlx_lm.models.{family}")
    config = {"model_type": family} | SIZES | changes
    mx.random.seed(3)
    model = home.Model(home.ModelArgs.from_dict(config))
    if bits:
        nn.quantize(model, group_size=32, bits=bits)
        config["quantization"] = {"group_size": 32, "bits": bits}
    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def make_adapter(folder: Path, model: Path, variant: str, targets: tuple[str, ...]) -> Path:
    """A random adapter on the disk."""
    loaded = load_model(model, "float32").model
    config = LoraConfig(rank=4, variant=variant, targets=targets)
    injected = inject(loaded, config)
    for module in loaded.modules():
        if "lora_b" in module:
            module.lora_b = 0.2 * mx.random.normal(module.lora_b.shape)
    save_config(folder, adapter_config(config, injected.keys, base_model=str(model)))
    save_weights(folder / WEIGHTS, loaded)
    return folder


def together(folder: Path, cases: list[dict[str, Any]], size: int = 2) -> tuple[dict[str, mx.array], dict[str, str]]:
    """Run the cases on several processes: logits, and what was refused, by the case's number."""
    (folder / "cases.json").write_text(json.dumps(cases))
    hosts = ring_hostfile(folder, size)
    environment = {**os.environ, "MLX_HOSTFILE": str(hosts), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "tests.models.sharded_rank", str(folder)]
    processes = [
        subprocess.Popen(command, cwd=REPOSITORY, env=environment | {"MLX_RANK": str(rank)}) for rank in range(size)
    ]
    try:
        assert [process.wait(120) for process in processes] == [0] * size
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return mx.load(str(folder / "found.npz")), json.loads((folder / "errors.json").read_text())


def assert_whole(logits: mx.array, case: dict[str, Any]) -> nn.Module:
    """They are those of the whole model, which the adapter changes."""
    whole = load_model(Path(case["model"]), "float32").model
    base = whole(mx.array(TOKENS))
    if case["adapter"]:
        load_adapter(whole, Path(case["adapter"]))
    whole.eval()
    expected = whole(mx.array(TOKENS))
    largest = mx.abs(expected).max().item()
    assert not case["adapter"] or mx.abs(base - expected).max().item() > 0.05 * largest
    np.testing.assert_allclose(np.array(logits), np.array(expected), rtol=0, atol=1e-5 * largest, err_msg=str(case))
    return whole


def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    llama, qwen = make_model(tmp_path / "llama", "llama"), make_model(tmp_path / "qwen2", "qwen2")
    packed = make_model(tmp_path / "packed", "llama", bits=4)
    odd = make_model(tmp_path / "odd", "llama", num_attention_heads=3, num_key_value_heads=3, hidden_size=96)
    phi = make_model(tmp_path / "phi", "phi3", rope_theta=1e4)
    every = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")
    adapters = {
        (llama, "lora"): make_adapter(tmp_path / "a", llama, "lora", every),
        (llama, "dora"): make_adapter(tmp_path / "b", llama, "dora", ("q_proj", "up_proj")),
        (packed, "lora"): make_adapter(tmp_path / "c", packed, "lora", every),
        (qwen, "lora"): make_adapter(tmp_path / "d", qwen, "lora", every),
        (llama, "whole"): make_adapter(tmp_path / "e", llama, "dora", ("down_proj",)),
    }
    cases = [
        (llama, "tensor", None), (llama, "tensor", "lora"), (llama, "tensor", "dora"), (packed, "tensor", "lora"),
        (qwen, "tensor", "lora"), (qwen, "pipeline", None), (qwen, "pipeline", "lora"),
        (llama, "pipeline", None), (odd, "tensor", None), (phi, "tensor", None), (llama, "tensor", "whole"),
    ]  # fmt: skip
    given = [
        {"model": str(model), "sharding": sharding, "adapter": str(adapters[model, kind]) if kind else None}
        for model, sharding, kind in cases
    ]
    found, refused = together(tmp_path, given)
    for number in range(7):
        whole = assert_whole(found[str(number)], given[number])
        size = sum(array.nbytes for _, array in tree_flatten(whole.parameters()))
        assert found[f"{number} held"].item() < 0.75 * size
    words = {
        "7": "use --shard tensor", "8": "num_attention_heads, 3, does not divide by 2", "9": "does not spread phi3",
        "10": "DoRA on a layer whose columns are split",
    }  # fmt: skip
    assert set(refused) == set(words)
    for number, word in words.items():
        assert word in refused[number]


def test_adapters_on_experts_and_layers_beside_them_are_split_with_them(tmp_path: Path) -> None:
    """Experts, shared experts whose parts the model sums, experts with a bias, and a router that stays whole."""
    models = [write(model_type, tmp_path) for model_type in ("qwen3_moe", "deepseek_v3", "gpt_oss")]
    adapters = [make_adapter(tmp_path / f"a{i}", model, "lora", ("*",)) for i, model in enumerate(models)]
    cases = [(model, "tensor", adapter) for model, adapter in zip(models, adapters, strict=True)]
    cases.append((models[0], "pipeline", adapters[0]))
    given = [{"model": str(m), "sharding": sharding, "adapter": str(a)} for m, sharding, a in cases]
    found, refused = together(tmp_path, given)
    assert refused == {}
    for number, case in enumerate(given):
        assert_whole(found[str(number)], case)


class LastOf:
    """As a group of processes looks to the last of them, before anything is sent."""

    def __init__(self, size: int) -> None:
        self._size = size

    def size(self) -> int:
        return self._size

    def rank(self) -> int:
        return self._size - 1


@pytest.mark.parametrize(
    ("model_type", "size", "said"),
    [
        ("kimi_k25", 8, r"num_heads, 4, does not divide by 8 processes. Start another"),
        ("step3p5", 4, r"num_kv_heads, 2, does not divide by 4 processes. Start another"),
        ("minimax_m3_vl", 4, r"head counts .*\. Start another"),
        ("qwen3_5", 4, r"splits .*(k|v)_proj in a way of its own"),
    ],
)
def test_what_does_not_divide_is_refused_wherever_it_is_written(
    tmp_path: Path, model_type: str, size: int, said: str
) -> None:
    """In a part of config.json, under another name, or by an assertion of mlx_lm's; and heads that it repeats."""
    config = config_of(model_type)
    if model_type == "qwen3_5":
        config["text_config"] |= {"linear_num_key_heads": 4}
    loaded = load_model(folder_of(tmp_path / "model", config), "float32")
    with pytest.raises(InputError, match=said):
        for targets in ((), ("v_proj", "k_proj")):  # without adapters qwen3_5 can be spread
            model = copy.deepcopy(loaded.model)
            if targets:
                inject(model, LoraConfig(rank=4, targets=targets))
            _by_tensor(model, loaded.config, LastOf(size))  # type: ignore[arg-type]
            assert not targets and model_type == "qwen3_5"


@pytest.mark.parametrize("sharding", ["tensor", "pipeline"])
def test_alone_nothing_is_split(tmp_path: Path, sharding: str) -> None:
    from mlxmath.models.lora.sharding import load_sharded

    model = make_model(tmp_path / "model", "llama")
    loaded, record = load_sharded(model, "float32", sharding, mx.distributed.init())  # type: ignore[arg-type]
    expected = load_model(model, "float32").model(mx.array(TOKENS))
    assert mx.array_equal(loaded.model(mx.array(TOKENS)), expected) and record == {}


def test_blocks_are_not_spread_by_a_backend_that_does_not_send(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX 0.32.4: "Send has no CUDA implementation.", in the middle of the first answer."""
    model, config = make("deepseek_v3")
    for name, value in (("MLX_RANK", "0"), ("MLX_WORLD_SIZE", "2"), ("NCCL_HOST_IP", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MLX_HOSTFILE", raising=False)
    group: Any = SimpleNamespace(size=lambda: 2, rank=lambda: 0)
    with pytest.raises(InputError, match="--shard pipeline: MLX's nccl backend sends nothing.*; use --shard tensor"):
        _by_block(model, config, group)
    monkeypatch.delenv("MLX_RANK")
    _by_block(model, config, group)
