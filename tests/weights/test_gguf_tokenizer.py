"""Tokenizers out of GGUF files against those that they were made of, and against llama.cpp where it is installed."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from mlxmath.errors import MlxmathError
from mlxmath.generation.model import load_generation_tokenizer
from mlxmath.runtime.files import read_json
from mlxmath.weights.gguf_file import open_gguf
from mlxmath.weights.gguf_tokenizer import write_tokenizer
from tests.llama_cpp import LlamaCpp
from tests.weights.gguf_models import bytes_tokenizer, llama_metadata, llama_state, stored_tensors, write_gguf

TEXTS = (
    "Natalia sold 48/2 = 24 clips in May.\n\nIt's 1,234.50% more than $3,000   today!\r\n",
    "  Let $x^2 + \\frac{1}{2}$ be 100000;  they'll  WE'RE don't\tI've ²³ ٣٤ ½ CamelCaseWORDSandMore",
    "日本語 中文123 é e\u0301 ﬁ 😀🧮 — “quoted”… Ünïcödé\u00a0Привет, мир! हिन्दी",
    "def f(x):\n    return x**2  # 42\n\n\n\tend",
    "",
    " ",
    "the<|im_end|>the <|im_start|>user\nthe",
)
CORPUS = [*TEXTS[:4], "1234567 The the then there 100 200 300 don't won't It'll it's they're word words 12 34 56"] * 3
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + CONTRACTIONS
    + r"?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + CONTRACTIONS
    + r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)  # fmt: skip
TEKKEN = O200K.replace(CONTRACTIONS + "?", "").replace("{1,3}", "")


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def byte_level(*before: pre_tokenizers.PreTokenizer, gpt2: bool = False) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([*before, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=gpt2)])


ORIGINALS: dict[str, pre_tokenizers.PreTokenizer] = {
    # as the tokenizer.json of SmolLM2, GPT-2, Qwen 2.5, Llama 3, GPT-4o's kind, Mistral Nemo and DeepSeek have it
    "smollm": byte_level(pre_tokenizers.Digits(individual_digits=True), gpt2=True),
    "gpt-2": byte_level(gpt2=True),
    "qwen2": byte_level(split(QWEN2)),
    "llama-bpe": byte_level(split(LLAMA3)),
    "dbrx": byte_level(split(LLAMA3)),
    "gpt-4o": byte_level(split(O200K)),
    "tekken": byte_level(split(TEKKEN)),
    "deepseek-coder": byte_level(
        *map(split, ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")), pre_tokenizers.Digits(True)
    ),
    "deepseek-llm": byte_level(
        *map(split, ("[\r\n]", r"\s?[A-Za-zÀ-ÖØ-öø-ɏа-яА-Яﬀ-ﬆ]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$",
                     "[一-龥ࠀ-一가-퟿]+", r"\p{N}+")),
    ),
}  # fmt: skip
DIFFERS_IN_LLAMA_CPP = {("gpt-4o", 1), ("tekken", 1), ("gpt-4o", 2), ("tekken", 2)}
"""Its regular expressions know upper and lower case of ASCII alone."""


def trained(name: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=name in ("llama-bpe", "tekken")))
    tokenizer.pre_tokenizer, tokenizer.decoder = ORIGINALS[name], decoders.ByteLevel()
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def model_file(path: Path, tokenizer: dict[str, Any]) -> Path:
    """A file that llama.cpp loads, with this tokenizer."""
    count = len(tokenizer["tokenizer.ggml.tokens"])
    tensors = stored_tensors("llama", llama_state(), 2, (4, 2))
    tensors["token_embd.weight"] = np.zeros((count, 64), np.float32)
    return write_gguf(path, "llama", tensors, llama_metadata(vocab_size=count), tokenizer=tokenizer)


def bpe_metadata(original: Tokenizer, name: str, **more: Any) -> dict[str, Any]:
    content = json.loads(original.to_str())
    tokens = sorted(content["model"]["vocab"], key=content["model"]["vocab"].__getitem__)
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": name, "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in content["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.add_bos_token": False,
        **more,
    }  # fmt: skip


def written(path: Path, folder: Path) -> Path:
    folder.mkdir()
    write_tokenizer(open_gguf(path), folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.mark.parametrize("name", ORIGINALS)
def test_pre_tokenizers(name: str, tmp_path: Path) -> None:
    """Ids of the tokenizer that a file was made of; by transformers, mlx_lm and in runs alike."""
    original = trained(name)
    path = model_file(tmp_path / "a.gguf", bpe_metadata(original, name))
    folder = written(path, tmp_path / "m")
    loaded = AutoTokenizer.from_pretrained(folder)
    own = load_generation_tokenizer(folder)
    for text in TEXTS:
        want = original.encode(text).ids
        assert loaded.encode(text) == want == own.encode(text)
        assert loaded.decode(want) == original.decode(want, skip_special_tokens=False)


@pytest.mark.parametrize("name", ORIGINALS)
def test_pre_tokenizers_in_llama_cpp(name: str, tmp_path: Path) -> None:
    original = trained(name)
    path = model_file(tmp_path / "a.gguf", bpe_metadata(original, name))
    with LlamaCpp(path) as theirs:
        tokenizer = AutoTokenizer.from_pretrained(written(path, tmp_path / "m"))
        for number, text in enumerate(TEXTS):
            if (name, number) not in DIFFERS_IN_LLAMA_CPP and not (name == "qwen2" and number == 2):  # NFC
                assert tokenizer.encode(text) == theirs.tokenize(text), text


def sentencepiece_model(**how: Any) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, vocab_size=420, model_type="bpe", byte_fallback=True,
        split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
        allow_whitespace_only_pieces=True, user_defined_symbols=["<|user|>"], **how,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def spm_metadata(model: sentencepiece.SentencePieceProcessor, **more: Any) -> dict[str, Any]:
    numbers = range(model.vocab_size())
    kinds = [
        2 if model.is_unknown(n) else 3 if model.is_control(n) else 6 if model.is_byte(n)
        else 4 if model.id_to_piece(n) == "<|user|>" else 1
        for n in numbers
    ]  # fmt: skip
    return {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [model.id_to_piece(n) for n in numbers],
        "tokenizer.ggml.scores": [float(model.get_score(n)) for n in numbers], "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
        **more,
    }  # fmt: skip


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece(prefix: bool, tmp_path: Path) -> None:
    model = sentencepiece_model(add_dummy_prefix=prefix)
    path = model_file(tmp_path / "a.gguf", spm_metadata(model, **{"tokenizer.ggml.add_space_prefix": prefix}))
    loaded = AutoTokenizer.from_pretrained(written(path, tmp_path / "m"))
    for text in TEXTS[:4]:
        want = model.encode(text)
        assert loaded.encode(text) == [1, *want]
        assert loaded.decode(want) == model.decode(want)
    assert loaded.encode("the<|user|>the", add_special_tokens=False)[-1] != loaded.unk_token_id


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_in_llama_cpp(prefix: bool, tmp_path: Path) -> None:
    model = sentencepiece_model(add_dummy_prefix=prefix)
    path = model_file(tmp_path / "a.gguf", spm_metadata(model, **{"tokenizer.ggml.add_space_prefix": prefix}))
    with LlamaCpp(path) as theirs:
        tokenizer = AutoTokenizer.from_pretrained(written(path, tmp_path / "m"))
        for text in (*TEXTS[:4], "a <s> b<|user|> c</s>d"):
            assert tokenizer.encode(text) == theirs.tokenize(text), text


@pytest.mark.parametrize(
    ("changes", "want"),
    [
        ({"pre": "llama-bpe"}, [259, 257]),
        ({"pre": "llama-bpe", "add_bos_token": False}, [257]),
        ({"add_bos_token": True, "add_eos_token": True}, [259, 257, 260]),
        ({}, [257]),
    ],
)
def test_beginning_and_end(changes: dict[str, Any], want: list[int], tmp_path: Path) -> None:
    tokenizer = {**bytes_tokenizer(288), **{f"tokenizer.ggml.{key}": value for key, value in changes.items()}}
    path = model_file(tmp_path / "a.gguf", tokenizer)
    loaded = AutoTokenizer.from_pretrained(written(path, tmp_path / "m"))
    assert loaded.encode("the") == want
    assert loaded.encode("the", add_special_tokens=False) == [257]


def test_end_tokens_and_chat_template(tmp_path: Path) -> None:
    """Besides the one that is named: that of a turn, and control tokens of known names; llama.cpp takes no less."""
    tokenizer = bytes_tokenizer(288)
    tokenizer["tokenizer.ggml.tokens"][270] = "<|eom_id|>"  # a control token by its kind
    tokenizer["tokenizer.ggml.tokens"][271] = "<|end|>"  # only called like one
    tokenizer["tokenizer.ggml.token_type"][270] = 3
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    tokenizer |= {"tokenizer.ggml.eot_token_id": 265, "tokenizer.chat_template": template}
    path = model_file(tmp_path / "a.gguf", tokenizer)
    folder = written(path, tmp_path / "m")
    assert read_json(folder / "generation_config.json")["eos_token_id"] == [260, 265, 258, 270]
    loaded = load_generation_tokenizer(folder)
    assert loaded.eos_token_ids == {258, 260, 265, 270}
    message = [{"role": "user", "content": "the"}]
    assert loaded.apply_chat_template(message, tokenize=False) == "<|im_start|>user\nthe<|im_end|>\n"


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda tokenizer: tokenizer.pop(f"tokenizer.ggml.{key}")


def changed(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda tokenizer: tokenizer.update({f"tokenizer.ggml.{key}": value for key, value in values.items()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(pre="a-pre-tokenizer-of-tomorrow"), "a way to cut text that is not known here"),
        (changed(pre="default"), "a way to cut text that is not known here"),
        (without("pre"), "tokenizer.ggml.pre is 'None', a way to cut text"),
        (changed(model="t5"), "of the kind 't5'; expected 'gpt2'"),
        (changed(model="llama"), "no score for each token"),
        (without("tokens"), "the file holds none"),
        (changed(tokens=["a", "a"], token_type=[1, 1]), "two tokens have the same text"),
        (changed(token_type=[1]), "token_type does not belong to its 288 tokens"),
        (without("merges"), "merges is no list of texts"),
        (changed(merges=["t x"] * 2), "merge 't x' is not of its tokens"),
        (changed(merges=["nothing"]), "merge 'nothing' is not of its tokens"),
        (changed(eos_token_id=4000), "eos_token_id is 4000, and there are 288 tokens"),
    ],
)
def test_refusals(change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path) -> None:
    tokenizer = bytes_tokenizer(288)
    change(tokenizer)
    path = write_gguf(
        tmp_path / "a.gguf", "llama", {"token_embd.weight": np.zeros((288, 64), np.float32)}, llama_metadata(),
        tokenizer=tokenizer,
    )  # fmt: skip
    with pytest.raises(MlxmathError, match=message) as caught:
        write_tokenizer(open_gguf(path), tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
