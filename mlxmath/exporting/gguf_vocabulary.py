"""A tokenizer as the metadata of a GGUF file, out of its tokenizer.json.

llama.cpp has two kinds that matter here: "gpt2", BPE on bytes, with the name of the way in which it cuts text
beforehand; and "llama", SentencePiece's BPE on characters, whose order of merges is that of scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxmath.data.render import adds_bos
from mlxmath.errors import InputError, library_errors
from mlxmath.runtime.files import read_json
from mlxmath.weights.gguf_cuts import PRE_TOKENIZERS, Cuts

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""`tokenizer.ggml.token_type`."""
END_KEYS = ("eos", "eot", "eom")
"""What a file can name as the end of an answer (`eos_token_id` and so on)."""
_PREFERRED = ("llama-bpe", "qwen2", "smollm", "gpt-2", "tekken", "gpt-4o", "deepseek-v3")
"""Of several names of one way, the one that most files have."""
_PROBES = (
    "Hello world's I'LL 3.14159 x1234567890y\n\n  a\t\tb  \n c \r\n\r\n!!??//..  ",
    "é中文字 русский العربية हिन्दी ¹²½ ٣٤ 😀👍🏽",
    "camelCaseHTTPServer ÉCOLE don't DON'T 'tis we've\u00a0x\u3000y", "$\\frac{1}{2}$ #### 42\nA: 1,000.50%",
    "   leading", "trailing   ",
    "한국어 カタカナ ひらがな １２３ ＡＢＣ", "a\u0301e\u0300 \u1e9b\u0323", "<|x|>[INST]//**--__==",
    "12 123 1234 12345 1234567",
)  # fmt: skip
"""Texts that all ways cut differently."""


@dataclass(frozen=True)
class Vocabulary:
    """What `tokenizer.ggml.` says."""

    model: str
    """ "gpt2" or "llama"."""
    tokens: Sequence[str]
    types: Sequence[int]
    settings: Mapping[str, int | bool | str]
    """Further entries, without `tokenizer.ggml.`."""
    merges: Sequence[str] = ()
    scores: Sequence[float] = ()


def vocabulary_of(folder: Path, tokenizer: Any, ends: Sequence[int], num_rows: int) -> Vocabulary:
    """The vocabulary of a model folder.

    Args:
        folder: of the model, with a tokenizer.json.
        tokenizer: the same, of `transformers`.
        ends: tokens that end an answer, the first of them the most usual.
        num_rows: of the embedding; tokens that the tokenizer has no text for are named and marked as unused.

    Raises:
        InputError: llama.cpp knows no such tokenizer.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"--to: {folder} has no tokenizer.json, out of which the tokenizer of a GGUF file is made.")
    content = read_json(path)
    model = content["model"]
    if model.get("type") != "BPE":
        raise InputError(f"--to: {path} is a tokenizer of the kind {model.get('type')}; only BPE is written.")
    pairs = [merge if isinstance(merge, list) else merge.split(" ", 1) for merge in model["merges"]]
    tokens, types = _tokens(content, tokenizer, num_rows)
    settings = _settings(tokenizer, ends)
    if model.get("byte_fallback"):
        settings["add_space_prefix"] = _adds_space(content)
        return Vocabulary("llama", tokens, types, settings, scores=_scores(tokens, pairs))
    settings["pre"] = _pre(content, path)
    return Vocabulary("gpt2", tokens, types, settings, merges=[_joined(pair) for pair in pairs])


def _tokens(content: Mapping[str, Any], tokenizer: Any, num_rows: int) -> tuple[list[str], list[int]]:
    """Texts and kinds by number; other files than tokenizer.json may add some, which the tokenizer knows."""
    tokens = [f"[PAD{number}]" for number in range(num_rows)]
    types = [UNUSED] * num_rows
    has_bytes = bool(content["model"].get("byte_fallback"))
    for token, number in content["model"]["vocab"].items():
        if number < num_rows:
            is_byte = has_bytes and len(token) == 6 and token.startswith("<0x") and token.endswith(">")
            tokens[number], types[number] = token, BYTE if is_byte else NORMAL
    unknown = content["model"].get("unk_token")
    added = {number: (token.content, token.special) for number, token in tokenizer.added_tokens_decoder.items()}
    added |= {each["id"]: (each["content"], each["special"]) for each in content.get("added_tokens") or []}
    for number, (token, is_special) in added.items():
        if number < num_rows:
            tokens[number] = token.replace(" ", "▁") if has_bytes and not is_special else token
            types[number] = CONTROL if is_special else USER_DEFINED
            if has_bytes and token == unknown:
                types[number] = UNKNOWN
    return tokens, types


def _settings(tokenizer: Any, ends: Sequence[int]) -> dict[str, int | bool | str]:
    """Special tokens, and whether texts begin with one."""
    found: dict[str, int | bool | str] = {"add_bos_token": adds_bos(tokenizer), "add_eos_token": False}
    for key, name in {"bos": "bos", "unknown": "unk", "padding": "pad"}.items():
        number = getattr(tokenizer, f"{name}_token_id", None)
        if number is not None:
            found[f"{key}_token_id"] = int(number)
    for key, number in zip(END_KEYS, ends, strict=False):
        found[f"{key}_token_id"] = int(number)
    return found


def _adds_space(content: Mapping[str, Any]) -> bool:
    """Whether a text begins as if a space stood before it."""
    parts: list[Mapping[str, Any]] = []
    for name in ("normalizer", "pre_tokenizer"):
        part = content.get(name) or {}
        parts += [part, *part.get("normalizers", ()), *part.get("pretokenizers", ())]
    return any(
        part.get("type") == "Prepend"
        or (part.get("type") == "Metaspace" and part.get("prepend_scheme", "always") != "never")
        for part in parts
    )


def _scores(tokens: Sequence[str], pairs: Sequence[Sequence[str]]) -> list[float]:
    """The score of each token: that of the first merge that makes it, the earlier the higher."""
    rank: dict[str, int] = {}
    for number, pair in enumerate(pairs):
        rank.setdefault("".join(pair), number)
    return [-float(rank.get(token, len(pairs))) for token in tokens]


def _joined(pair: Sequence[str]) -> str:
    """A merge as one text; a space inside a part, which separates the parts there, as llama.cpp writes it (Ġ)."""
    return " ".join(part.replace(" ", "Ġ") for part in pair)


def _pre(content: Mapping[str, Any], path: Path) -> str:
    """llama.cpp's name of the way in which a tokenizer cuts text: the one that cuts the same texts alike."""
    from tokenizers import Tokenizer, normalizers

    with library_errors(f"{path} cannot be read", "Take it from the model's source again."):
        own = Tokenizer.from_file(str(path))
    own_cuts = [_cut(own.normalizer, own.pre_tokenizer, probe) for probe in _PROBES]
    whole_words = bool(content["model"].get("ignore_merges"))
    names = sorted(PRE_TOKENIZERS, key=lambda name: _PREFERRED.index(name) if name in _PREFERRED else len(_PREFERRED))
    for name in names:
        cuts = PRE_TOKENIZERS[name]
        normalizer = getattr(normalizers, cuts.normalizer)() if cuts.normalizer else None
        if cuts.whole_words == whole_words and own_cuts == [_cut(normalizer, _made(cuts), probe) for probe in _PROBES]:
            return name
    raise InputError(
        f"--to: {path} cuts text in a way that no tokenizer of llama.cpp has that is known here ({', '.join(names)}); "
        "export with --to hf, and let llama.cpp's own convert_hf_to_gguf.py try."
    )


def _made(cuts: Cuts) -> Any:
    """The pre-tokenizer that a name of llama.cpp means."""
    from tokenizers import Regex, pre_tokenizers

    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in cuts.patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cuts.gpt2)])


def _cut(normalizer: Any, pre_tokenizer: Any, text: str) -> list[str]:
    """The pieces of a text, in the letters that stand for bytes."""
    if normalizer is not None:
        text = normalizer.normalize_str(text)
    return [piece for piece, _ in pre_tokenizer.pre_tokenize_str(text)] if pre_tokenizer is not None else [text]
