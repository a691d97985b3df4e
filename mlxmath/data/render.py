"""Turns (prompt, completion) pairs into token ids and a loss mask.

A training row is what inference would see, and what it should then write:

    encode_prompt(prompt) | the completion's ids | end-of-text
    0 0 0 … 0             | 1 1 1 … 1            | 1

Shapes: N tokens in all rows together, R rows.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxmath.data.codec import Pair, codec_of, has_tokenizer, load_tokenizer

__all__ = ["Rendered", "adds_bos", "encode_prompt", "has_tokenizer", "load_tokenizer", "render"]


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


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """The ids with which the training rows of `prompt` begin, and which inference gives to the model."""
    codec = codec_of(tokenizer)
    return codec.prefix + codec.encode(prompt)


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer begins every text with its beginning-of-text token."""
    return tokenizer.bos_token_id is not None and tokenizer.bos_token_id in codec_of(tokenizer).prefix


def render(tokenizer: Any, pairs: Sequence[Pair], train_on_prompt: bool = False) -> tuple[Rendered, int]:
    """Tokenize (prompt, completion) pairs, on all cores where the tokenizer can.

    Args:
        tokenizer: of `transformers`, or mlx_lm's wrapper around one.
        pairs: texts; control tokens' spellings in them are text.
        train_on_prompt: make every token a target.

    Returns:
        The rows, and the number of pairs left out because the tokenizer cannot write their completion after their
        prompt's ids.
    """
    codec = codec_of(tokenizer)
    encoded = [ids for ids in codec.encode_pairs(pairs) if ids is not None]
    end = [tokenizer.eos_token_id]
    parts = [part for prompt, completion in encoded for part in (codec.prefix, prompt, completion, end)]
    part_lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    offsets = np.concatenate([np.zeros(1, np.int64), part_lengths.reshape(-1, 4).sum(1).cumsum()])
    tokens = np.fromiter(itertools.chain.from_iterable(parts), np.uint32, int(offsets[-1]))
    is_target = np.array([train_on_prompt, train_on_prompt, True, True], np.uint8)
    mask = np.repeat(np.tile(is_target, len(encoded)), part_lengths)
    mask[offsets[:-1]] = 0
    return Rendered(tokens, mask, offsets), len(pairs) - len(encoded)
