"""A tokenizer's files as the model was trained with them."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mlxmath.data.codec import load_tokenizer
from mlxmath.data.render import encode_prompt
from mlxmath.generation.ending import load_generation_tokenizer


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "Qwen2Tokenizer", "PreTrainedTokenizerFast"])
def test_text_is_cut_as_tokenizer_json_says_whatever_class_is_named(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator(["He has 12 pens. He has 2024 pens."] * 20, trainer)
    backend.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": name, "eos_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    text = "He has 12 pens. He has 2024."
    tokenizer = load_tokenizer(tmp_path)
    assert encode_prompt(tokenizer, text) == tokenizer.encode(text) == backend.encode(text).ids
    (tmp_path / "config.json").write_text("{}")
    assert encode_prompt(load_generation_tokenizer(tmp_path), text) == backend.encode(text).ids
    assert (name in capsys.readouterr().err) == (name != "PreTrainedTokenizerFast")
