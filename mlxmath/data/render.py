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

from mlxmath.data.codec import Control, Run, codec_of, encode_runs, has_tokenizer, load_tokenizer
from mlxmath.problems.prompts import Segment, Text

__all__ = ["Rendered", "adds_bos", "encode_prompt", "has_tokenizer", "load_tokenizer", "render"]

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
