"""Fits rows into the longest sequence that a model is trained on.

Shapes: N tokens in all rows together, R rows, C chunks.
"""

from collections import Counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mlxmath.data.render import Rendered, spans

Overflow = Literal["chunk", "truncate", "drop"]


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
    fitted = _gather(rows, rows.offsets[row_of_chunk] + start_in_row, chunk_lengths)
    fitted.mask[fitted.offsets[:-1]] = 0
    targets = targets_per_row(fitted.mask, fitted.offsets)
    empty = targets == 0
    kept = _gather(fitted, fitted.offsets[:-1][~empty], chunk_lengths[~empty]) if empty.any() else fitted
    text_of_chunk = row_of_chunk if rows.sources is None else rows.sources[row_of_chunk]
    kept = kept._replace(sources=text_of_chunk[~empty])
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


def _gather(rows: Rendered, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Rendered:
    """The spans [start, start + length) of the token stream as rows."""
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    positions = spans(starts, lengths)
    return Rendered(rows.tokens[positions], rows.mask[positions], offsets)


def _count(flags: NDArray[np.generic]) -> int:
    return int(np.count_nonzero(flags))
