"""Turns texts of a template into token ids and a loss mask.

A training row of a plain template is what inference would see, and what it should then write:

    encode_prompt(prompt) | the completion's ids | end-of-text
    0 0 0 … 0             | 1 1 1 … 1            | 1

A text with control segments (of a chat template) is whole: control tokens spelled there become ids, nothing is added.

Shapes: N tokens in all rows together, R rows, P parts.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxmath.data.codec import Run, codec_of, encode_runs, has_tokenizer, load_tokenizer
from mlxmath.data.control import Control
from mlxmath.data.templates import Segment, Text

__all__ = ["Rendered", "adds_bos", "encode_prompt", "has_tokenizer", "load_tokenizer", "render"]

LEAST_PAIRS = 200
"""Texts from which finding out how the tokenizer cuts them pays off."""

Part = tuple[list[int] | Run, tuple[bool, ...]]
"""Ids, or a run of texts, and which of its parts are targets."""


class Rendered(NamedTuple):
    """Rows laid end to end: row r is `tokens[offsets[r]:offsets[r + 1]]`."""

    tokens: NDArray[np.uint32]
    """(N,)"""
    mask: NDArray[np.uint8]
    """(N,) 1 where the token is a target. A row's first token never is: nothing precedes it."""
    offsets: NDArray[np.int64]
    """(R + 1,)"""
    sources: NDArray[np.int64] | None = None
    """(R,) ascending: rows with the same number are parts of one text. None: each row is a whole one."""


def encode_prompt(tokenizer: Any, prompt: str | Text) -> list[int]:
    """The ids with which the training rows of `prompt` begin, and which inference gives to the model.

    Args:
        tokenizer: of `transformers`, or mlx_lm's wrapper around one.
        prompt: of a template, or a text as it is.
    """
    codec = codec_of(tokenizer)
    ids: list[int] = []
    for content, _ in _parts(tokenizer, (Segment(prompt, False),) if isinstance(prompt, str) else prompt):
        if not isinstance(content, Run):
            ids += content
        elif found := encode_runs(codec, [content])[0]:
            ids += itertools.chain.from_iterable(found)
        else:
            ids += codec.encode("".join(content.texts), content.led)
    return ids


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer begins every text with its beginning-of-text token."""
    return tokenizer.bos_token_id is not None and tokenizer.bos_token_id in codec_of(tokenizer).prefix


def render(tokenizer: Any, texts: Sequence[Text], train_on_prompt: bool = False) -> tuple[Rendered, int]:
    """Tokenize texts: word by word where that gives the same ids, else whole, on all cores where the tokenizer can.

    Args:
        tokenizer: of `transformers`, or mlx_lm's wrapper around one.
        texts: of a template; in segments that are not control, control tokens' spellings are text.
        train_on_prompt: make every token a target.

    Returns:
        The rows, whose `sources` are the texts' numbers, and the number of texts left out because the tokenizer cannot
        write a segment after the ids of the one before.
    """
    codec = codec_of(tokenizer)
    pairs = [i for i, text in enumerate(texts) if _is_pair(text)]
    if len(pairs) < LEAST_PAIRS or codec.words is None:
        return _render_whole(tokenizer, texts, train_on_prompt)
    quick = _render_words(tokenizer, texts, pairs, train_on_prompt)
    assert quick.sources is not None
    rest = sorted(set(range(len(texts))) - set(quick.sources.tolist()))
    if not rest:
        return quick, 0
    slow, num_failed = _render_whole(tokenizer, [texts[i] for i in rest], train_on_prompt)
    assert slow.sources is not None
    return _merge(quick, slow._replace(sources=np.array(rest, np.int64)[slow.sources])), num_failed


def _is_pair(text: Text) -> bool:
    """Whether a text is plain: what is given, and what is to be written."""
    return len(text) == 2 and not (text[0].is_target or text[0].is_control or text[1].is_control) and text[1].is_target


def _render_words(tokenizer: Any, texts: Sequence[Text], pairs: Sequence[int], train_on_prompt: bool) -> Rendered:
    """The rows of those of the texts `pairs` that can be tokenized word by word."""
    codec = codec_of(tokenizer)
    assert codec.words is not None
    encoded = codec.words.encode([segment.text for i in pairs for segment in texts[i]], [False, True] * len(pairs))
    good = ~encoded.refused.reshape(-1, 2).any(1)
    ends = np.cumsum(encoded.lengths)
    pool = np.concatenate([np.array([*codec.prefix, tokenizer.eos_token_id], np.uint32), encoded.tokens])
    starts = np.zeros((len(pairs), 4), np.int64)  # of prefix, prompt, completion, end-of-text in the pool
    lengths = np.full((len(pairs), 4), (len(codec.prefix), 0, 0, 1), np.int64)
    starts[:, 1:3] = (ends - encoded.lengths).reshape(-1, 2) + len(codec.prefix) + 1
    lengths[:, 1:3] = encoded.lengths.reshape(-1, 2)
    starts[:, 3] = len(codec.prefix)
    starts, lengths = starts[good], lengths[good]
    offsets = np.concatenate([np.zeros(1, np.int64), lengths.sum(1).cumsum()])
    is_target = np.array([train_on_prompt, train_on_prompt, True, True], np.uint8)
    mask = np.repeat(np.tile(is_target, len(lengths)), lengths.ravel())
    mask[offsets[:-1]] = 0
    return Rendered(pool[spans(starts.ravel(), lengths.ravel())], mask, offsets, np.array(pairs, np.int64)[good])


def _merge(first: Rendered, second: Rendered) -> Rendered:
    """All rows, ascending by their source."""
    assert first.sources is not None and second.sources is not None
    sources = np.concatenate([first.sources, second.sources])
    order = np.argsort(sources, kind="stable")
    starts = np.concatenate([first.offsets[:-1], second.offsets[:-1] + len(first.tokens)])[order]
    lengths = np.concatenate([np.diff(first.offsets), np.diff(second.offsets)])[order]
    taken = spans(starts, lengths)
    tokens = np.concatenate([first.tokens, second.tokens])[taken]
    mask = np.concatenate([first.mask, second.mask])[taken]
    return Rendered(tokens, mask, np.concatenate([np.zeros(1, np.int64), lengths.cumsum()]), sources[order])


def spans(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The positions start, start + 1, … of each span, one span after the other."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)


def _render_whole(tokenizer: Any, texts: Sequence[Text], train_on_prompt: bool) -> tuple[Rendered, int]:
    """See `render`; each text is given to the tokenizer as it is."""
    codec = codec_of(tokenizer)
    end: Part = ([tokenizer.eos_token_id], (True,))
    rows = [
        [*parts, end] if not any(segment.is_control for segment in text) else parts
        for text in texts
        for parts in (_parts(tokenizer, text),)
    ]
    runs = [content for parts in rows for content, _ in parts if isinstance(content, Run)]
    encoded = iter(encode_runs(codec, runs))
    ids: list[list[int]] = []
    targets: list[bool] = []
    num_parts = [0]
    kept: list[int] = []
    for number, parts in enumerate(rows):
        pieces = [(next(encoded) if isinstance(content, Run) else [content], flags) for content, flags in parts]
        if all(found is not None for found, _ in pieces):
            ids += [part for found, _ in pieces for part in found or ()]
            targets += [flag for _, flags in pieces for flag in flags]
            num_parts.append(len(ids))
            kept.append(number)
    part_ends = np.concatenate([np.zeros(1, np.int64), np.fromiter(map(len, ids), np.int64, len(ids)).cumsum()])
    offsets = part_ends[num_parts]
    tokens = np.fromiter(itertools.chain.from_iterable(ids), np.uint32, int(part_ends[-1]))
    is_target = np.array(targets, np.uint8) | np.uint8(train_on_prompt)
    mask = np.repeat(is_target, np.diff(part_ends))
    mask[offsets[:-1]] = 0
    return Rendered(tokens, mask, offsets, np.array(kept, np.int64)), len(texts) - len(kept)


def _parts(tokenizer: Any, text: Text) -> list[Part]:
    """The control tokens of a text as ids, and the runs of text between them."""
    codec = codec_of(tokenizer)
    if not any(segment.is_control for segment in text):
        run = Run(False, tuple(segment.text for segment in text))
        return [(codec.prefix, (False,)), (run, tuple(segment.is_target for segment in text))]
    parts: list[Part] = []
    pending: list[tuple[str, bool]] = []
    previous: Control | None = None

    def flush(following: Control | None) -> None:
        """Put the text since the last control token in, neighbours of one kind together."""
        merged = [
            ("".join(part for part, _ in group), flag)
            for flag, group in itertools.groupby(pending, key=lambda part: part[1])
        ]
        pending.clear()
        if merged and previous and previous.strips_right:
            merged[0] = (merged[0][0].lstrip(), merged[0][1])
        if merged and following and following.strips_left:
            merged[-1] = (merged[-1][0].rstrip(), merged[-1][1])
        merged = [part for part in merged if part[0]]
        if merged:
            run = Run(previous is not None, tuple(part for part, _ in merged))
            parts.append((run, tuple(flag for _, flag in merged)))

    for segment in text:
        start = 0
        for match in codec.control_pattern.finditer(segment.text) if segment.is_control else ():
            pending.append((segment.text[start : match.start()], segment.is_target))
            found = codec.control[match[0]]
            flush(found)
            parts.append(([found.id], (segment.is_target,)))
            previous, start = found, match.end()
        pending.append((segment.text[start:], segment.is_target))
    flush(None)
    return parts
