"""What turns hostile files into one line, part by part; `test_hostile_inputs.py` has whole commands."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlxmath.errors import InputError, MlxmathError, foreign, shortened
from mlxmath.models.lora.peft import read_peft
from mlxmath.models.skeleton import embody, skeleton
from tests.commands.damage import MEGABYTE
from tests.conftest import make_tiny_llama
from tests.weights.handmade import torch_bin


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 1 << 29},
        {"vocab_size": 1 << 29},
        {"num_hidden_layers": 9_999},
        {"text_config": {"intermediate_size": 1 << 30}},
        {"num_attention_heads": 99_999},
    ],
)
def test_sizes_of_no_model_are_not_tried(sizes: dict[str, Any]) -> None:
    """A model of them would take gigabytes, and minutes, of `plan`."""
    with pytest.raises(MlxmathError, match=r"config\.json: expected .* to be at most"):
        skeleton({"model_type": "llama", **sizes}, "float32")


def test_matrices_of_gigabytes_are_not_tried() -> None:
    """Of a model of 405 billion parameters one takes 3.5 GB."""
    sizes = {"hidden_size": 16_384, "intermediate_size": 53_248, "num_hidden_layers": 2, "num_attention_heads": 128,
             "num_key_value_heads": 8, "vocab_size": 128_256, "rms_norm_eps": 1e-5}  # fmt: skip
    model = skeleton({"model_type": "llama", **sizes}, "float32")
    with pytest.raises(MlxmathError, match=r"takes 3\.49 GB"):
        embody(model, 128_256)


def test_a_peft_adapter_of_another_bit(tmp_path: Path) -> None:
    """The checksums of a .bin count for adapters too."""
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    start = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    arrays = {f"{start}A.weight": np.ones((4, 32), np.float32), f"{start}B.weight": np.ones((32, 4), np.float32)}
    data = bytearray(torch_bin(arrays))
    (tmp_path / "adapter_model.bin").write_bytes(data)
    assert len(read_peft(tmp_path, make_tiny_llama())[1]) == 1
    at = data.index(np.ones(4, np.float32).tobytes())
    data[at] ^= 1
    (tmp_path / "adapter_model.bin").write_bytes(data)
    with pytest.raises(MlxmathError, match=r"adapter_model\.bin is damaged: the checksum"):
        read_peft(tmp_path, make_tiny_llama())


def test_messages_lose_their_middle() -> None:
    assert shortened("a short one stays: /a/b.json") == "a short one stays: /a/b.json"
    assert len(str(InputError(f"--x: found {MEGABYTE}; give a number"))) < 800
    assert str(InputError(f"--x: found {MEGABYTE}; give a number")).endswith("give a number")
    assert len(str(MlxmathError("no such name " * 100_000))) < 5_000


@pytest.mark.parametrize("error", [Exception("no\nmore"), RecursionError("deep"), BaseException("a panic of Rust's")])
def test_whatever_a_library_raises_is_one_line(error: BaseException) -> None:
    with (
        pytest.raises(MlxmathError, match=r"^x\.json cannot be read: \w+: [\w ']+\. Fetch it again\.$") as caught,
        foreign("x.json cannot be read", "Fetch it again."),
    ):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), SystemExit(3), InputError("own words")])
def test_what_is_nobodys_file_stays_what_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, foreign("x.json cannot be read", ""):
        raise error
    assert caught.value is error
