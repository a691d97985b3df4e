"""Rows in files, and small tokenizers of every kind in use, trained on the spot."""

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_end|>"]
_CORPUS = [
    f"### Problem:\nNatalia sold {n} clips to {n + 3} friends.\n\n### Solution:\n\n\n"
    f"She sold {n}+{n + 3} = {2 * n + 3}.\n\n#### {2 * n + 3}\n\n\n"
    f"  The  answer is $\\frac{{{n}}}{{2}}$ <b>x</b> </s> é 中\n"
    for n in range(60)
]


def write_lines(path: Path, rows: Iterable[Any]) -> str:
    """The name of a file of these JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def _wrap(backend: Tokenizer, *, bos: bool, eos: bool = False) -> PreTrainedTokenizerFast:
    single = f"{'<s> ' if bos else ''}$A{' </s>' if eos else ''}"
    backend.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(name, backend.token_to_id(name)) for name in ("<s>", "</s>")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def byte_level(*, regex: bool, bos: bool = False, prefix_space: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE; without `regex` it merges anything with anything, over every boundary."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=regex)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(_CORPUS, trainer)
    return _wrap(backend, bos=bos)


def modern_split() -> PreTrainedTokenizerFast:
    """Byte-level BPE with the pattern of Llama 3 and Qwen: punctuation and the newlines after it are one piece."""
    backend = Tokenizer(models.BPE())
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_CORPUS, trainer)
    backend.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return _wrap(backend, bos=True)


def sentencepiece_bpe(scheme: str, *, bos: bool = True, eos: bool = False) -> PreTrainedTokenizerFast:
    """BPE over spaces written as ▁ with byte fallback, as Llama 2 and Mistral.

    Args:
        scheme: where the dummy space goes: "always", "first", "never", or "normalizer" (before every piece of text).
        bos: whether the tokenizer adds `<s>`.
        eos: whether the tokenizer adds `</s>`.
    """
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if scheme == "normalizer":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tail = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        backend.decoder = decoders.Sequence(tail)
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        backend.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme, split=False)]
        )
    byte_tokens = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=SPECIAL + byte_tokens, max_token_length=12, show_progress=False
    )
    backend.train_from_iterator(_CORPUS, trainer)
    spec = backend.to_str()
    return _wrap(_without_byte_added_tokens(spec), bos=bos, eos=eos)


def _without_byte_added_tokens(spec: str) -> Tokenizer:
    """The bytes are pieces of the model, not control tokens."""
    value: dict[str, Any] = json.loads(spec)
    value["added_tokens"] = [token for token in value["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(value))


def unigram(scheme: str = "always") -> PreTrainedTokenizerFast:
    """Unigram, whose model knows the control tokens as pieces."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(_CORPUS, trainer)
    return _wrap(backend, bos=False)


class CharacterTokenizer(PreTrainedTokenizer):
    """A tokenizer in Python: one id a character."""

    def __init__(self, **kwargs: Any) -> None:
        self._ids = {name: i for i, name in enumerate(SPECIAL)} | {chr(c): c + len(SPECIAL) for c in range(0x5000)}
        self._names = {i: name for name, i in self._ids.items()}
        super().__init__(bos_token="<s>", eos_token="</s>", unk_token="<unk>", **kwargs)

    @property
    def vocab_size(self) -> int:
        return len(self._ids)

    def get_vocab(self) -> dict[str, int]:
        return dict(self._ids)

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return self._names[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)

    def build_inputs_with_special_tokens(self, ids: list[int], other: list[int] | None = None) -> list[int]:
        return [1, *ids]


BUILDERS = {
    "byte level": lambda: byte_level(regex=True),
    "byte level without regex": lambda: byte_level(regex=False, bos=True),
    "byte level with prefix space": lambda: byte_level(regex=True, prefix_space=True),
    "llama 3 split": modern_split,
    "sentencepiece always": lambda: sentencepiece_bpe("always"),
    "sentencepiece first": lambda: sentencepiece_bpe("first"),
    "sentencepiece never": lambda: sentencepiece_bpe("never"),
    "sentencepiece normalizer": lambda: sentencepiece_bpe("normalizer", eos=True),
    "unigram": unigram,
    "unigram first": lambda: unigram("first"),
    "python": CharacterTokenizer,
}


@functools.cache
def built(name: str) -> Any:
    """A tokenizer of a kind, once."""
    return BUILDERS[name]()


def rows_of(rendered: Any) -> list[tuple[list[int], list[int]]]:
    """Tokens and mask of each row."""
    spans = zip(rendered.offsets[:-1], rendered.offsets[1:], strict=True)
    return [(rendered.tokens[a:b].tolist(), rendered.mask[a:b].tolist()) for a, b in spans]
