"""Tokenizers as GGUF metadata: the names of pre-tokenizers, and ids in llama.cpp against the tokenizer's own."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from mlxmath.errors import InputError
from mlxmath.exporting.gguf_vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    vocabulary_of,
)
from mlxmath.weights.gguf_file import open_gguf
from mlxmath.weights.gguf_tokenizer import write_tokenizer
from tests.llama_cpp import LlamaCpp
from tests.weights.gguf_models import llama_metadata, llama_state, stored_tensors, write_gguf

TEXTS = (
    "Natalia sold 48/2 = 24 clips in May.\n\nIt's 1,234.50% more than $3,000   today!\r\n",
    "  Let $x^2 + \\frac{1}{2}$ be 100000;  they'll don't\tI've words  ",
    "日本語 中文123 é 😀🧮 — “quoted”… Привет, мир!",
    "def f(x):\n    return x**2  # 42\n\n\n\tend",
)
CORPUS = [*TEXTS, "1234567 The the then there 100 200 300 don't It'll they're word words 12 34 56"] * 3
SPECIAL = ("<unk>", "<s>", "</s>")
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def cutting(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


PRE_TOKENIZERS: dict[str, pre_tokenizers.PreTokenizer] = {
    # as tokenizer.json of SmolLM2, GPT-2, Qwen 2.5 and Llama 3 have them
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "qwen2": cutting(QWEN2),
    "llama-bpe": cutting(QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")),
}


def byte_level(name: str, folder: Path) -> Path:
    """A folder with a tokenizer."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    tokenizer.pre_tokenizer, tokenizer.decoder = PRE_TOKENIZERS[name], decoders.ByteLevel()
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[*SPECIAL], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["<tool>"])
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def model_file(path: Path, vocabulary: Vocabulary | dict[str, Any]) -> Path:
    """A file that llama.cpp loads, with a vocabulary or with metadata."""
    if isinstance(vocabulary, Vocabulary):
        entries: dict[str, Any] = {
            "model": vocabulary.model, "tokens": [*vocabulary.tokens], "token_type": [*vocabulary.types],
            **vocabulary.settings,
        }  # fmt: skip
        entries |= {"merges": [*vocabulary.merges]} if vocabulary.merges else {"scores": [*vocabulary.scores]}
    else:
        entries = vocabulary
    count = len(entries["tokens"])
    tensors = stored_tensors("llama", llama_state(), 2, (4, 2))
    tensors["token_embd.weight"] = np.zeros((count, 64), np.float32)
    tokenizer = {f"tokenizer.ggml.{name}": value for name, value in entries.items()}
    return write_gguf(path, "llama", tensors, llama_metadata(vocab_size=count), tokenizer=tokenizer)


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_the_way_to_cut_is_found_and_ids_are_the_same(name: str, tmp_path: Path) -> None:
    folder = byte_level(name, tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = vocabulary_of(folder, tokenizer, [2], 410)
    assert found.settings["pre"] == name
    assert found.settings["eos_token_id"] == 2
    assert "eot_token_id" not in found.settings
    assert found.tokens[-1] == "[PAD409]"
    places = (0, 3, tokenizer.convert_tokens_to_ids("<tool>"), -1)
    assert [found.types[place] for place in places] == [CONTROL, NORMAL, USER_DEFINED, UNUSED]
    with LlamaCpp(model_file(tmp_path / "a.gguf", found)) as theirs:
        for text in (*TEXTS, "a<s>b<tool> c</s>"):
            assert theirs.tokenize(text) == tokenizer.encode(text), text


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_keeps_its_order_of_merges(prefix: bool, tmp_path: Path) -> None:
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=proto, vocab_size=420, model_type="bpe", byte_fallback=True,
        split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
        add_dummy_prefix=prefix,
    )  # fmt: skip
    model = sentencepiece.SentencePieceProcessor(model_proto=proto.getvalue())
    numbers = range(model.vocab_size())
    kinds = [
        UNKNOWN if model.is_unknown(n) else CONTROL if model.is_control(n) else BYTE if model.is_byte(n) else NORMAL
        for n in numbers
    ]
    original = {
        "model": "llama", "pre": "default", "tokens": [model.id_to_piece(n) for n in numbers],
        "scores": [float(model.get_score(n)) for n in numbers], "token_type": kinds, "bos_token_id": 1,
        "eos_token_id": 2, "unknown_token_id": 0, "add_space_prefix": prefix,
    }  # fmt: skip
    (tmp_path / "m").mkdir()
    write_tokenizer(open_gguf(model_file(tmp_path / "original.gguf", original)), tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    found = vocabulary_of(tmp_path / "m", tokenizer, [2], model.vocab_size())
    assert (found.model, list(found.types), list(found.tokens)) == ("llama", kinds, original["tokens"])
    assert found.settings["add_space_prefix"] is prefix
    with LlamaCpp(model_file(tmp_path / "again.gguf", found)) as theirs:
        for text in TEXTS:
            assert theirs.tokenize(text) == [1, *model.encode(text)], text


def test_tokens_that_are_added_outside_of_tokenizer_json(tmp_path: Path) -> None:
    folder = byte_level("gpt-2", tmp_path / "m")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    added = {"402": {"content": "<|turn|>", "special": True}, "403": {"content": "<think>", "special": False}}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "added_tokens_decoder": added}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    numbers = tokenizer.convert_tokens_to_ids(["<|turn|>", "<think>"])
    found = vocabulary_of(folder, tokenizer, numbers[:1], 410)
    assert [found.tokens[number] for number in numbers] == ["<|turn|>", "<think>"]
    assert [found.types[number] for number in numbers] == [CONTROL, USER_DEFINED]


def test_several_ends_have_their_places(tmp_path: Path) -> None:
    folder = byte_level("gpt-2", tmp_path / "m")
    found = vocabulary_of(folder, AutoTokenizer.from_pretrained(folder), [2, 7, 9, 11], 410)
    names = ("eos", "eot", "eom")
    assert [found.settings[f"{name}_token_id"] for name in names] == [2, 7, 9]
    with LlamaCpp(model_file(tmp_path / "a.gguf", found)) as theirs:
        assert theirs.end_tokens >= {2, 7, 9}


def test_other_tokenizers_are_refused(tmp_path: Path) -> None:
    folder = byte_level("gpt-2", tmp_path / "m")
    content = json.loads((folder / "tokenizer.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for part, value, why in (
        ("pre_tokenizer", {"type": "Whitespace"}, "cuts text in a way"),
        ("model", {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, "of the kind WordLevel"),
    ):
        (folder / "tokenizer.json").write_text(json.dumps({**content, part: value}))
        with pytest.raises(InputError, match=why):
            vocabulary_of(folder, tokenizer, [2], 410)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"has no tokenizer\.json"):
        vocabulary_of(folder, tokenizer, [2], 410)
