"""Text to token ids, the same way for training and for inference.

A text never becomes a control token: `</s>` in a problem is four characters. The beginning-of-text token that a
tokenizer adds, and the end-of-text token of a training row, are put there as ids.
"""

import copy
import os
import secrets
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from mlxmath.data.control import control_tokens, without_control_tokens
from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.console import warn
from mlxmath.weights.tokenizer import of_transformers, opened

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json")
_ANCHORS = ("\n", ":", "a", ".", "", " ")
"""Texts after which a completion is encoded, so that it does not look like the beginning of a text."""
_PROBES = ("Natalia sold 48/2 = 24.", "\\frac{1}{2}", " a", "5", "\n\nx\n", "  \n y", "é中", "$x$", "<b>")

IdPair = tuple[list[int], list[int]]


class Pair(NamedTuple):
    """A text and its continuation."""

    prompt: str
    completion: str
    led: bool = False
    """Whether a control token stands before it (some tokenizers put a space before the first word of a text)."""


class Run(NamedTuple):
    """Text between two control tokens, in parts whose ids must not mix."""

    led: bool
    """Whether a control token stands before it."""
    texts: tuple[str, ...]


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a model folder, without network.

    Raises:
        InputError: the folder has no tokenizer.
        MlxmathError: its files are damaged, or no end-of-text token is named.
    """
    if not has_tokenizer(folder):
        raise InputError(
            f"{folder} holds no tokenizer (expected {', '.join(TOKENIZER_FILES[:3])}); convert a model first."
        )
    tokenizer, name = opened(folder, lambda: of_transformers(folder, trust_remote_code))
    if tokenizer.eos_token_id is None:
        raise MlxmathError(
            f"the tokenizer in {folder} names no end-of-text token, so a solution could not end; "
            'set "eos_token" in its tokenizer_config.json.'
        )
    if name:
        warn(
            f"{folder / 'tokenizer_config.json'} names the class {name}, with which transformers cuts text otherwise "
            "than tokenizer.json says and the model was trained; tokenizer.json is followed here. mlx_lm does the same "
            "with a folder that `mlxmath convert` has made."
        )
    return tokenizer


def has_tokenizer(folder: Path) -> bool:
    """Whether `folder` holds a tokenizer's vocabulary."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES[:3]) or any(folder.glob("*.tiktoken"))


class TextCodec:
    """A tokenizer without its control tokens, text by text: for those written in Python."""

    def __init__(self, tokenizer: Any) -> None:
        self.prefix = _prefix(tokenizer)
        """What the tokenizer puts before every text: its beginning-of-text token, or nothing."""
        self.control, self.control_pattern = control_tokens(tokenizer)
        """The control tokens by their spelling, and what splits a text at them."""
        self._original = tokenizer

    def encode(self, text: str, led: bool = False) -> list[int]:  # noqa: ARG002
        """Ids of `text` without `prefix`: alone, or after a control token (to these tokenizers the same)."""
        ids: list[int] = self._original.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`, control tokens shown."""
        text: str = self._original.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def encode_pairs(self, pairs: Sequence[Pair]) -> list[IdPair | None]:
        """For each pair: `encode(prompt)` and the ids that continue it with the completion.

        None where the tokenizer cannot write the completion after those ids.
        """
        return [_continue(self, *pair) for pair in pairs]


class FastCodec(TextCodec):
    """A tokenizer of the `tokenizers` library: batches on all cores, each pair in one pass.

    A private added token is put between prompt and completion. Added tokens are cut out of a text before anything else
    is done to it, so what precedes it is tokenized as if it stood alone: exactly as at inference. An anchor begins the
    other side where the tokenizer would otherwise put a space there. Each pair's text is compared with what its ids
    decode to; a pair that differs is done again by `_continue`.
    """

    def __init__(self, tokenizer: Any, backend: Any) -> None:
        from tokenizers import AddedToken

        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        super().__init__(tokenizer)
        self._plain = without_control_tokens(backend)
        self._marked = copy.deepcopy(self._plain)
        self._marked.encode_special_tokens = True
        self._mark = f"\U0010fffe{secrets.token_hex(8)}\U0010fffe"  # a text cannot hold it on purpose
        self._marked.add_tokens([AddedToken(self._mark, normalized=False, special=False)])
        self._mark_id: int = self._marked.token_to_id(self._mark)
        self._original = backend
        self._anchor, self._anchor_ids = self._choose_anchor()

    def encode(self, text: str, led: bool = False) -> list[int]:
        """See `TextCodec.encode`."""
        if led:
            with_mark: list[int] = self._marked.encode(self._mark + text, add_special_tokens=False).ids
            return with_mark[1:]
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`, control tokens shown."""
        text: str = self._original.decode(ids, skip_special_tokens=False)
        return text

    def encode_pairs(self, pairs: Sequence[Pair]) -> list[IdPair | None]:
        """See `TextCodec.encode_pairs`."""
        split = self._split(pairs, self._anchor, self._anchor_ids)
        good = self._readable(
            [ids[0] + ids[1] if ids else [] for ids in split], [pair.prompt + pair.completion for pair in pairs]
        )
        return [
            ids if ids and fine else _continue(self, *pair) for ids, fine, pair in zip(split, good, pairs, strict=True)
        ]

    def _readable(self, ids: Sequence[list[int]], texts: Sequence[str]) -> list[bool]:
        decoded = self._original.decode_batch(list(ids), skip_special_tokens=False)
        return [_same(found, text) for found, text in zip(decoded, texts, strict=True)]

    def _split(self, pairs: Sequence[Pair], anchor: str, anchor_ids: list[int]) -> list[IdPair | None]:
        """Both sides of each pair, None where the anchor's ids do not begin the completion's side."""
        middle = self._mark + anchor
        texts = [(self._mark if led else "") + prompt + middle + completion for prompt, completion, led in pairs]
        encodings = self._marked.encode_batch_fast(texts, add_special_tokens=False)
        result: list[IdPair | None] = []
        for encoding, pair in zip(encodings, pairs, strict=True):
            ids = encoding.ids[pair.led :]
            cut = ids.index(self._mark_id)
            start = cut + 1 + len(anchor_ids)
            result.append((ids[:cut], ids[start:]) if ids[cut + 1 : start] == anchor_ids else None)
        return result

    def _choose_anchor(self) -> tuple[str, list[int]]:
        """The first anchor after which most probes continue a line exactly; no anchor if all do without."""
        pairs = [Pair("Solution:\n", probe) for probe in _PROBES]
        scores: list[tuple[int, tuple[str, list[int]]]] = []
        for anchor in ("", *_ANCHORS):
            ((_, anchor_ids),) = filter(None, self._split([Pair("a", "")], anchor, []))
            split = self._split(pairs, anchor, anchor_ids)
            good = [
                ids and _same(self.decode(ids[0] + ids[1]), p + c) for ids, (p, c, _) in zip(split, pairs, strict=True)
            ]
            scores.append((sum(map(bool, good)), (anchor, anchor_ids)))
        return max(scores, key=lambda score: score[0])[1]  # the first of the best


_codecs: "WeakKeyDictionary[Any, tuple[int, TextCodec]]" = WeakKeyDictionary()


def codec_of(tokenizer: Any) -> TextCodec:
    """The codec of a `transformers` tokenizer (or of mlx_lm's wrapper around one); made once a tokenizer."""
    inner = getattr(tokenizer, "_tokenizer", None)
    if hasattr(inner, "convert_tokens_to_ids"):  # mlx_lm's wrapper
        tokenizer = inner
    size, codec = _codecs.get(tokenizer, (-1, None))
    if codec is None or size != len(tokenizer):
        backend = getattr(tokenizer, "backend_tokenizer", None) if getattr(tokenizer, "is_fast", False) else None
        codec = TextCodec(tokenizer) if backend is None else FastCodec(tokenizer, backend)
        _codecs[tokenizer] = (len(tokenizer), codec)
    return codec


def _prefix(tokenizer: Any) -> list[int]:
    """The ids that the tokenizer itself puts before a text."""
    bare: list[int] = tokenizer.encode("a", add_special_tokens=False)
    whole: list[int] = tokenizer.encode("a", add_special_tokens=True)
    starts = range(len(whole) - len(bare) + 1)
    return next((whole[:start] for start in starts if whole[start : start + len(bare)] == bare), [])


def _continue(codec: TextCodec, prompt: str, completion: str, led: bool) -> IdPair | None:
    """One pair, by every way there is; the first whose text is the whole text."""
    prompt_ids, whole_ids = codec.encode(prompt, led), codec.encode(prompt + completion, led)
    if whole_ids[: len(prompt_ids)] == prompt_ids:
        return prompt_ids, whole_ids[len(prompt_ids) :]
    whole = codec.decode(whole_ids)  # of a tokenizer that changes some characters, this is all that can be asked
    for anchor in _ANCHORS:
        before, after = codec.encode(anchor), codec.encode(anchor + completion)
        ids = after[len(before) :]
        if after[: len(before)] == before and codec.decode(prompt_ids + ids) == whole:
            return prompt_ids, ids
    return None


def _same(found: str, text: str) -> bool:
    """Whether texts agree but for spaces at the very beginning, with which some tokenizers take liberties."""
    return found == text or found.lstrip(" ") == text.lstrip(" ")


def encode_runs(codec: TextCodec, runs: Sequence[Run]) -> list[list[list[int]] | None]:
    """The ids of each part of each run; None for a run of which the tokenizer cannot write a part after the one before.

    The first part's ids are `codec.encode(text, led)`, whatever follows.
    """
    texts_of = [run.texts if len(run.texts) > 1 else (*run.texts, "") for run in runs]
    pairs_of = [[Pair(*pair, run.led) for pair in pairwise(texts)] for run, texts in zip(runs, texts_of, strict=True)]
    different = list(dict.fromkeys(pair for pairs in pairs_of for pair in pairs))  # a chat template repeats itself
    ids_of = dict(zip(different, codec.encode_pairs(different), strict=True))
    result: list[list[list[int]] | None] = []
    for run, pairs in zip(runs, pairs_of, strict=True):
        found = [ids for ids in map(ids_of.get, pairs) if ids is not None]
        is_whole = len(found) == len(pairs)
        result.append([found[0][0], *(after for _, after in found)][: len(run.texts)] if is_whole else None)
    return result
