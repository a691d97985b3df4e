"""A tokenizer's files as the model was trained with them."""

import json
from pathlib import Path
from typing import Any

import mlx_lm
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from mlxmath.config.schema import ModelConfig
from mlxmath.data.codec import load_tokenizer
from mlxmath.data.render import encode_prompt
from mlxmath.generation.model import load_generation_tokenizer
from mlxmath.weights.convert import ensure_model
from mlxmath.weights.tokenizer import keep_cuts, name_plain_class
from tests.models import architectures


def digits_apart() -> Tokenizer:
    """A byte-level BPE that cuts numbers into digits, as SmolLM2's and DeepSeek's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>", "<s>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    backend.train_from_iterator(["He has 12 pens. He has 2024 pens."] * 20, trainer)
    return backend


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "Qwen2Tokenizer", "PreTrainedTokenizerFast"])
def test_text_is_cut_as_tokenizer_json_says_whatever_class_is_named(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = digits_apart()
    backend.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": name, "eos_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    text = "He has 12 pens. He has 2024."
    tokenizer = load_tokenizer(tmp_path)
    assert encode_prompt(tokenizer, text) == tokenizer.encode(text) == backend.encode(text).ids
    (tmp_path / "config.json").write_text("{}")
    assert encode_prompt(load_generation_tokenizer(tmp_path), text) == backend.encode(text).ids
    assert (name in capsys.readouterr().err) == (name != "PreTrainedTokenizerFast")


QUESTIONS = (
    "He has 12 pens. He has 2024.", "Weng earns $12 an hour.\n\nShe worked 50 minutes: 0.2 x 50 = 10.", "  it's\t5% ",
)  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>", "padding_side": "left"},
        {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": "<|endoftext|>", "add_bos_token": True},
        {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "model_max_length": 2048},
        {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>", "additional_special_tokens": ["<|im_end|>"]},
    ],
)  # fmt: skip
def test_a_converted_folder_gives_the_ids_of_tokenizer_json_to_everyone(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    backend = digits_apart()
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "{{ 'hi' }}"}))
    before = AutoTokenizer.from_pretrained(str(tmp_path))
    assert any(before.encode(q, add_special_tokens=False) != backend.encode(q).ids for q in QUESTIONS)
    name_plain_class(tmp_path)
    after = AutoTokenizer.from_pretrained(str(tmp_path))
    for question in QUESTIONS:
        assert after.encode(question, add_special_tokens=False) == backend.encode(question).ids
        assert after.decode(after.encode(question, add_special_tokens=False)) == question
    for name in ("special_tokens_map", "all_special_ids", "chat_template", "padding_side", "model_max_length"):
        assert getattr(after, name) == getattr(before, name), name
    assert after.encode("a") == before.encode("a"), "a beginning of text as before"
    assert after.model_input_names == before.model_input_names
    assert keep_cuts(after, tmp_path) is None
    written = (tmp_path / "tokenizer_config.json").read_bytes()
    name_plain_class(tmp_path)
    assert (tmp_path / "tokenizer_config.json").read_bytes() == written


def test_a_class_that_changes_nothing_stays(tmp_path: Path) -> None:
    backend = digits_apart()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.save(str(tmp_path / "tokenizer.json"))
    text = json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"})
    (tmp_path / "tokenizer_config.json").write_text(text)
    name_plain_class(tmp_path)
    assert (tmp_path / "tokenizer_config.json").read_text() == text


def test_convert_writes_the_class_and_the_folder_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = architectures.write("llama", tmp_path / "source")
    backend = digits_apart()
    backend.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"})
    )
    config = ModelConfig(model=str(source), mlx_path=str(tmp_path / "out"))
    ensure_model(config)
    assert "names PreTrainedTokenizerFast instead of GPT2Tokenizer" in capsys.readouterr().err
    ensure_model(config)
    assert "is valid" in capsys.readouterr().err
    _, served = mlx_lm.load(str(tmp_path / "out"))
    for question in QUESTIONS:
        assert served.encode(question, add_special_tokens=False) == backend.encode(question).ids
