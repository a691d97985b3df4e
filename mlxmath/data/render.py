"""Turns texts of a template into token ids and a loss mask.

A training row of a plain template is what inference would see, and what it should then write:

    encode_prompt(prompt) | the completion's ids | end-of-text
    0 0 0 … 0             | 1 1 1 … 1            | 1

A text with control segments (of a chat template) is whole: control tokens spelled there become ids, nothing is added.

Shapes: N tokens in all rows together, R rows, P parts.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxmath.data.codec import Run, TextCodec, codec_of, encode_runs
from mlxmath.data.control import Control
from mlxmath.data.templates import Segment, Text

Overflow = Literal["chunk", "truncate", "drop"]
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
    sources: NDArray[np.int64]
    """(R,) ascending, the text of each row: rows with the same number are parts of one."""

    def taken(self, starts: NDArray[np.int64], lengths: NDArray[np.int64], sources: NDArray[np.int64]) -> "Rendered":
        """The spans [start, start + length) of the tokens as rows."""
        taken = spans(starts, lengths)
        return Rendered(self.tokens[taken], self.mask[taken], offsets_of(lengths), sources)


def encode_prompt(tokenizer: Any, prompt: str | Text) -> list[int]:
    """The ids with which the training rows of `prompt` begin, and which inference gives to the model.

    Args:
        tokenizer: of `transformers`, or mlx_lm's wrapper around one.
        prompt: of a template, or a text as it is.
    """
    codec = codec_of(tokenizer)
    return _ids(codec, _parts(codec, (Segment(prompt, False),) if isinstance(prompt, str) else prompt))


def encode_conversation(tokenizer: Any, texts: Sequence[Text]) -> list[int]:
    """The ids of `Template.conversation`: of a single text those of `encode_prompt`.

    Args:
        tokenizer: of `transformers`, or mlx_lm's wrapper around one.
        texts: one after the other, with the end-of-text token between them.
    """
    codec = codec_of(tokenizer)
    ids = encode_prompt(tokenizer, texts[0])
    for text in texts[1:]:
        run = Run(True, tuple(segment.text for segment in text))
        ids += [tokenizer.eos_token_id, *_ids(codec, [(run, ())])]
    return ids


def _ids(codec: TextCodec, parts: Sequence[Part]) -> list[int]:
    """The ids of parts, one after the other."""
    ids: list[int] = []
    for content, _ in parts:
        if not isinstance(content, Run):
            ids += content
        elif found := encode_runs(codec, [content])[0]:
            ids += itertools.chain.from_iterable(found)
        else:
            ids += codec.encode("".join(content.texts), content.led)
    return ids


def continuation(tokenizer: Any, before: str, text: str) -> list[int]:
    """The ids with which `text` goes on from a text that ends in `before`, as a training row has them."""
    codec = codec_of(tokenizer)
    found = encode_runs(codec, [Run(False, (before, text))])[0]
    return found[1] if found else codec.encode(text)


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer begins every text with its beginning-of-text token."""
    return tokenizer.bos_token_id is not None and tokenizer.bos_token_id in codec_of(tokenizer).prefix


def render(tokenizer: Any, texts: Sequence[Text], train_on_prompt: bool = False) -> tuple[Rendered, int]:
    """Tokenize texts, on all cores where the tokenizer can.

    Args:
        tokenizer: of `transformers`, or mlx_lm's wrapper around one.
        texts: of a template; in segments that are not control, control tokens' spellings are text.
        train_on_prompt: make every token a target.

    Returns:
        The rows, whose `sources` are the texts' numbers, and the number of texts left out because the tokenizer cannot
        write a segment after the ids of the one before.
    """
    codec = codec_of(tokenizer)
    end: Part = ([tokenizer.eos_token_id], (True,))
    rows = [[*_parts(codec, text), *([] if _is_whole(text) else [end])] for text in texts]
    runs = [content for parts in rows for content, _ in parts if isinstance(content, Run)]
    encoded = iter(encode_runs(codec, runs))
    ids: list[list[int]] = []
    targets: list[bool] = []
    num_parts = [0]
    kept: list[int] = []
    for number, parts in enumerate(rows):
        pieces = [next(encoded) if isinstance(content, Run) else [content] for content, _ in parts]
        if None not in pieces:
            ids += itertools.chain.from_iterable(filter(None, pieces))
            targets += itertools.chain.from_iterable(flags for _, flags in parts)
            num_parts.append(len(ids))
            kept.append(number)
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    offsets = offsets_of(lengths)[num_parts]
    tokens = np.fromiter(itertools.chain.from_iterable(ids), np.uint32, int(offsets[-1]))
    mask = np.repeat(np.array(targets, np.uint8) | np.uint8(train_on_prompt), lengths)
    mask[offsets[:-1]] = 0
    return Rendered(tokens, mask, offsets, np.array(kept, np.int64)), len(texts) - len(kept)


def spans(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The positions start, start + 1, … of each span, one span after the other."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)


def offsets_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """(R + 1,) where rows of these lengths (R,) begin and end, laid end to end."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def _is_whole(text: Text) -> bool:
    """Whether a text has its own beginning- and end-of-text tokens: that of a chat template."""
    return any(segment.is_control for segment in text)


def _parts(codec: TextCodec, text: Text) -> list[Part]:
    """The control tokens of a text as ids, and the runs of text between them."""
    if not _is_whole(text):
        run = Run(False, tuple(segment.text for segment in text))
        return [(codec.prefix, (False,)), (run, tuple(segment.is_target for segment in text))]
    items: list[tuple[Any, bool]] = [
        (codec.control[part] if i % 2 else part, segment.is_target)
        for segment in text
        for i, part in enumerate(codec.control_pattern.split(segment.text) if segment.is_control else [segment.text])
    ]
    groups = [list(group) for _, group in itertools.groupby(items, key=lambda item: isinstance(item[0], Control))]
    parts: list[Part] = []
    for before, group, after in zip([[], *groups], groups, [*groups[1:], []], strict=False):
        if isinstance(group[0][0], Control):
            parts += [([control.id], (flag,)) for control, flag in group]
            continue
        runs = [  # neighbours of one kind together
            ("".join(part for part, _ in same), flag)
            for flag, same in itertools.groupby(group, key=lambda item: item[1])
        ]
        if before and before[-1][0].strips_right:
            runs[0] = (runs[0][0].lstrip(), runs[0][1])
        if after and after[0][0].strips_left:
            runs[-1] = (runs[-1][0].rstrip(), runs[-1][1])
        if texts := tuple(part for part, _ in runs if part):
            parts.append((Run(bool(before), texts), tuple(flag for part, flag in runs if part)))
    return parts


def fit_rows(rows: Rendered, max_seq_len: int, overflow: Overflow) -> tuple[Rendered, Counter[str]]:
    """Split, cut or leave out the rows longer than `max_seq_len`; leave out what has no target.

    `chunk`: the first chunk holds tokens 0 … L-1 of its row; each further one begins with the last token of the one
    before, as context only, and holds the next L-1. So every target is predicted exactly once, and none is lost.
    `truncate` keeps the first L tokens of a row, `drop` nothing of it.

    Args:
        rows: R rows of at least one token.
        max_seq_len: L, at least 2.
        overflow: what becomes of longer rows.

    Returns:
        The rows that remain (C of them; `sources` tells whose chunks they are), and counts: `rows` and `overlong_rows`
        before; `output_rows`, `tokens` and `target_tokens` after; `dropped_rows` (over-long, left out),
        `rows_without_target` (rows or chunks left out for want of a target), `lost_target_tokens`.
    """
    lengths = np.diff(rows.offsets)
    overlong = lengths > max_seq_len
    step = max_seq_len - 1
    num_chunks = np.ones_like(lengths)
    if overflow == "chunk":
        num_chunks[overlong] += -(-(lengths[overlong] - max_seq_len) // step)
    elif overflow == "drop":
        num_chunks[overlong] = 0
    row_of_chunk = np.repeat(np.arange(len(lengths)), num_chunks)  # (C,)
    first_chunk = np.cumsum(num_chunks) - num_chunks
    start_in_row = (np.arange(len(row_of_chunk)) - first_chunk[row_of_chunk]) * step
    chunk_lengths = np.minimum(lengths[row_of_chunk] - start_in_row, max_seq_len)
    kept = rows.taken(rows.offsets[row_of_chunk] + start_in_row, chunk_lengths, rows.sources[row_of_chunk])
    kept.mask[kept.offsets[:-1]] = 0
    targets = targets_per_row(kept.mask, kept.offsets)
    empty = targets == 0
    if empty.any():
        kept = kept.taken(kept.offsets[:-1][~empty], chunk_lengths[~empty], kept.sources[~empty])
    num_before = _count(rows.mask) - _count(rows.mask[rows.offsets[:-1]])
    counts = Counter(
        rows=len(lengths),
        overlong_rows=_count(overlong),
        output_rows=len(kept.offsets) - 1,
        dropped_rows=_count(overlong) if overflow == "drop" else 0,
        rows_without_target=_count(empty),
        tokens=len(kept.tokens),
        target_tokens=int(targets.sum()),
        lost_target_tokens=num_before - int(targets.sum()),
    )
    return kept, counts


def targets_per_row(mask: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """(R,) targets of each row, from the mask (N,) and the offsets (R + 1,) of rows that are not empty."""
    if len(offsets) == 1:
        return np.zeros(0, np.int64)
    return np.add.reduceat(mask, offsets[:-1], dtype=np.int64)


def _count(flags: NDArray[np.generic]) -> int:
    return int(np.count_nonzero(flags))
