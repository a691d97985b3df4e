"""The tokenizer of a GGUF file as the files that transformers reads: tokenizer.json and tokenizer_config.json.

Of how text is cut before merges a GGUF file has the name alone (`tokenizer.ggml.pre`); what it means is in `gguf_cuts`.
A name that is not there is refused: with other cuts everything works, on other tokens than those that the model was
trained on.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxmath.errors import MlxmathError
from mlxmath.weights.gguf_cuts import PRE_TOKENIZERS
from mlxmath.weights.gguf_file import GgufFile

_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6
"""Kinds of tokens, `tokenizer.ggml.token_type`."""
_END_TOKENS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "<EOT>",
    "<|EOT|>",
)  # fmt: skip
"""What ends a turn or a text in the models of this time; a GGUF file names one of several."""
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_SPACE = "▁"


@dataclass(frozen=True)
class _Vocabulary:
    """
    Attributes:
        path: the file.
        tokens: by number.
        kinds: of each.
        metadata: of the file, without `tokenizer.ggml.`.
    """

    path: Path
    tokens: Sequence[str]
    kinds: Sequence[int]
    metadata: Mapping[str, Any]

    def number(self, key: str) -> int | None:
        """The token that an entry of the metadata names."""
        value = self.metadata.get(key)
        if value is None or value == 0xFFFFFFFF:
            return None
        if type(value) is not int or not 0 <= value < len(self.tokens):
            raise self.damaged(f"tokenizer.ggml.{key} is {value!r}, and there are {len(self.tokens):,} tokens")
        return value

    def named(self, key: str) -> str | None:
        """The text of the token that an entry of the metadata names."""
        number = self.number(key)
        return None if number is None else self.tokens[number]

    def texts(self, key: str) -> list[str]:
        """An entry that is a list of texts."""
        value = self.metadata.get(key)
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.damaged(f"tokenizer.ggml.{key} is no list of texts")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """An entry that is true or false."""
        return bool(self.metadata.get(key, default))

    def damaged(self, what: str) -> MlxmathError:
        return MlxmathError(f"{self.path}: its tokenizer cannot be used: {what}. Choose another file of the model.")


def write_tokenizer(file: GgufFile, folder: Path, stop: Sequence[str] = ()) -> None:
    """Write tokenizer.json, tokenizer_config.json, generation_config.json and the chat template of a GGUF file.

    Args:
        file: the opened file.
        folder: where to.
        stop: texts that end an answer; those that are one token are end tokens.

    Raises:
        MlxmathError: the tokenizer is of a kind, or cuts text in a way, that is not known here; or it is damaged.
    """
    vocabulary = _vocabulary(file)
    kind = vocabulary.metadata.get("model")
    if kind == "gpt2":
        content, adds_bos = _byte_level(vocabulary)
    elif kind == "llama":
        content, adds_bos = _sentencepiece(vocabulary, "phi3" if _is_phi3(file) else "")
    else:
        raise MlxmathError(
            f"{vocabulary.path}: its tokenizer is of the kind {str(kind)[:40]!r}; expected 'gpt2' (BPE on bytes) or "
            "'llama' (SentencePiece). Choose the model in Hugging Face form instead."
        )
    adds_bos = vocabulary.flag("add_bos_token", adds_bos) and vocabulary.number("bos_token_id") is not None
    adds_eos = vocabulary.flag("add_eos_token", False) and vocabulary.number("eos_token_id") is not None
    content["post_processor"] = _ends(vocabulary, adds_bos, adds_eos)
    _check(content, vocabulary)
    names = {f"{name}_token": vocabulary.named(f"{key}_token_id") for name, key in _NAMED.items()}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": adds_bos,
        "add_eos_token": adds_eos,
        "clean_up_tokenization_spaces": False,
        **{name: token for name, token in names.items() if token is not None},
    }
    length = file.metadata.get(f"{file.metadata.get('general.architecture')}.context_length")
    if type(length) is int:
        settings["model_max_length"] = length
    _write(folder / "tokenizer.json", content)
    _write(folder / "tokenizer_config.json", settings)
    ends = end_tokens(file, stop)
    _write(
        folder / "generation_config.json",
        {"bos_token_id": vocabulary.number("bos_token_id"), "eos_token_id": ends if len(ends) != 1 else ends[0]},
    )
    template = file.metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


_NAMED = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def end_tokens(file: GgufFile, stop: Sequence[str] = ()) -> list[int]:
    """The tokens that end an answer: those that the file names, control tokens that end a turn or a text, `stop`."""
    vocabulary = _vocabulary(file)
    named = [number for key in _END_KEYS if (number := vocabulary.number(key)) is not None]
    known = [
        number
        for number, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if (kind == _CONTROL and token in _END_TOKENS) or token in stop
    ]
    return list(dict.fromkeys((*named, *known)))


def _vocabulary(file: GgufFile) -> _Vocabulary:
    start = "tokenizer.ggml."
    metadata = {key.removeprefix(start): value for key, value in file.metadata.items() if key.startswith(start)}
    path = file.paths[0]
    empty = _Vocabulary(path, [], [], metadata)
    if "tokens" not in metadata:
        raise empty.damaged("the file holds none")
    tokens = [token or f"[EMPTY_{number}]" for number, token in enumerate(empty.texts("tokens"))]
    kinds = metadata.get("token_type") or [1] * len(tokens)
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise empty.damaged(f"tokenizer.ggml.token_type does not belong to its {len(tokens):,} tokens")
    if len(set(tokens)) != len(tokens):
        raise empty.damaged("two tokens have the same text")
    return _Vocabulary(path, tokens, kinds, metadata)


def _byte_level(vocabulary: _Vocabulary) -> tuple[dict[str, Any], bool]:
    """BPE on bytes, and whether texts begin with a token of their own by default."""
    name = vocabulary.metadata.get("pre")
    cuts = PRE_TOKENIZERS.get(name) if isinstance(name, str) else None
    if cuts is None:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise MlxmathError(
            f"{vocabulary.path}: tokenizer.ggml.pre is {str(name)[:40]!r}, a way to cut text that is not known here "
            f"(known: {known}). With another one the model would read other tokens than it was trained on. Choose the "
            "model in Hugging Face form, whose tokenizer.json says how."
        )
    numbers = {token: number for number, token in enumerate(vocabulary.tokens)}
    merges = []
    for merge in vocabulary.texts("merges"):
        cut = merge.find(" ", 1)
        first, second = merge[:cut], merge[cut + 1 :]
        if cut < 0 or first not in numbers or second not in numbers or first + second not in numbers:
            raise vocabulary.damaged(f"its merge {merge[:60]!r} is not of its tokens")
        merges.append([first, second])
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in cuts.patterns
    ]
    content = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": _added_tokens(vocabulary),
        "normalizer": {"type": cuts.normalizer} if cuts.normalizer else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, {**byte_level, "use_regex": cuts.gpt2}]},
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": cuts.whole_words,
            "vocab": numbers, "merges": merges,
        },
    }  # fmt: skip
    return content, cuts.adds_bos


def _sentencepiece(vocabulary: _Vocabulary, family: str) -> tuple[dict[str, Any], bool]:
    """BPE on characters whose order of merges is that of the scores, bytes for what has no token; as SentencePiece."""
    scores = vocabulary.metadata.get("scores")
    if not isinstance(scores, list) or len(scores) != len(vocabulary.tokens):
        raise vocabulary.damaged("it has no score for each token")
    prefix = vocabulary.flag("add_space_prefix", True)
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prepended: list[dict[str, Any]] = [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
    stripped: list[dict[str, Any]] = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    unknown = next((t for t, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True) if kind == _UNKNOWN), None)
    content = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": _added_tokens(vocabulary, rstrip=family == "phi3"),
        "normalizer": {"type": "Sequence", "normalizers": [*prepended, replaced]},
        "pre_tokenizer": None, "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, *stripped,
            ],
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": unknown or vocabulary.named("unknown_token_id"),
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True,
            "ignore_merges": False, "vocab": {token: number for number, token in enumerate(vocabulary.tokens)},
            "merges": _merges(vocabulary, scores),
        },
    }  # fmt: skip
    return content, True


def _merges(vocabulary: _Vocabulary, scores: Sequence[float]) -> list[list[str]]:
    """All pairs of tokens that are a token together, those of the highest score first."""
    usable = {
        token: number
        for number, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if kind not in (_UNKNOWN, _CONTROL, _BYTE)
    }
    found = []
    for token, number in usable.items():
        for cut in range(1, len(token)):
            first, second = usable.get(token[:cut]), usable.get(token[cut:])
            if first is not None and second is not None:
                found.append((-scores[number], number, first, second))
    found.sort()
    return [[vocabulary.tokens[first], vocabulary.tokens[second]] for *_, first, second in found]


def _added_tokens(vocabulary: _Vocabulary, *, rstrip: bool = False) -> list[dict[str, Any]]:
    """Tokens that are found in a text before it is cut."""
    kept = ("<unk>", "<s>", "<|endoftext|>")
    return [
        {
            "id": number, "content": token, "single_word": False, "lstrip": False,
            "rstrip": rstrip and token not in kept, "normalized": False, "special": kind != _USER_DEFINED,
        }
        for number, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]  # fmt: skip


def _is_phi3(file: GgufFile) -> bool:
    """Whether control tokens take the spaces that follow them, which no GGUF file says: Phi-3's do."""
    name = str(file.metadata.get("general.name", "")).lower()
    return "phi-3" in name or "phi3" in name


def _ends(vocabulary: _Vocabulary, bos: bool, eos: bool) -> dict[str, Any] | None:
    """What adds tokens before and after a text."""
    before, after = vocabulary.named("bos_token_id") if bos else None, vocabulary.named("eos_token_id") if eos else None
    if before is None and after is None:
        return None

    def around(name: str, part: int) -> list[dict[str, Any]]:
        special = [[{"SpecialToken": {"id": token, "type_id": part}}] if token else [] for token in (before, after)]
        return [*special[0], {"Sequence": {"id": name, "type_id": part}}, *special[1]]

    tokens = [token for token in dict.fromkeys((before, after)) if token]
    return {
        "type": "TemplateProcessing", "single": around("A", 0), "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {
            token: {"id": token, "ids": [vocabulary.tokens.index(token)], "tokens": [token]} for token in tokens
        },
    }  # fmt: skip


def _check(content: Mapping[str, Any], vocabulary: _Vocabulary) -> None:
    """Make sure that tokenizers reads it."""
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_str(json.dumps(content, ensure_ascii=False))
    except Exception as error:  # tokenizers raises nothing more special
        raise vocabulary.damaged(str(error).splitlines()[0][:200]) from None


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
