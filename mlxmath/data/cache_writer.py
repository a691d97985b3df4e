"""Writes the cache's file (`mlxmath.data.cache` has its format), batch by batch.

Shapes: N tokens in all rows together, R rows, P problems (those of which no row is left included).
"""

import hashlib
import json
import pickle
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mlxmath.data.cache import (
    ALIGN,
    ARRAYS,
    FORMAT_VERSION,
    HEADER,
    HEADER_BYTES,
    MAGIC,
    Stats,
    short_digest,
    stamp,
)
from mlxmath.data.render import Rendered
from mlxmath.runtime.files import atomic_file

_COPY_BYTES = 1 << 22


def token_dtype(vocab_size: int) -> "np.dtype[Any]":
    """The smallest type that holds every token id."""
    return np.dtype(np.uint16 if vocab_size < 1 << 16 else np.uint32)


def fingerprint(key: Mapping[str, Any]) -> str:
    """The name of the cache file for rows made from `key` (values that JSON can hold): 24 hex digits."""
    text = json.dumps({"format": FORMAT_VERSION, **key}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class RowWriter:
    """Appends rows to a cache file; memory holds the batch at hand and sixteen bytes a row."""

    def __init__(self, file: BinaryIO, masks: BinaryIO, dtype: "np.dtype[Any]") -> None:
        self.stats: Stats = {}
        self.ranks: NDArray[np.int32] | None = None
        """(R,) of all rows; to be set before the end if they have any."""
        self.questions: NDArray[np.uint64] | None = None
        """(P,) of all problems; likewise."""
        self._file, self._masks, self._dtype = file, masks, dtype
        self._offsets = [np.zeros(1, np.int64)]
        self._sources: list[NDArray[np.int64]] = []
        self._num_tokens = self._num_sources = 0
        self._digest = hashlib.sha256()
        file.write(bytes(HEADER_BYTES))

    def add(self, rows: Rendered, num_texts: int) -> None:
        """Append the rows of a batch of texts; some of these may have none."""
        self._write(np.ascontiguousarray(rows.tokens, self._dtype).view(np.uint8).data)
        self._masks.write(np.ascontiguousarray(rows.mask, np.uint8).data)
        self._offsets.append(rows.offsets[1:] + self._num_tokens)
        self._num_tokens += len(rows.tokens)
        self._sources.append(rows.sources + self._num_sources)
        self._num_sources += num_texts

    @property
    def sources(self) -> NDArray[np.int64]:
        """(R,) the text of each row, numbered from 0 over all batches."""
        return np.concatenate(self._sources)

    def finish(self) -> None:
        """Write what follows the tokens, and the header."""
        sources = self.sources
        ranks = np.zeros(len(sources)) if self.ranks is None else self.ranks
        questions = np.arange(self._num_sources) if self.questions is None else self.questions
        numbers = np.ascontiguousarray(questions, "<u8").tobytes()
        value = {"stats": self.stats, **{name: pickle.PickleBuffer(b"") for name in ARRAYS}}
        dumped = pickle.dumps(value, protocol=5, buffer_callback=lambda _: None)
        self._masks.seek(0)
        of_rows = (np.concatenate(self._offsets), sources, np.ascontiguousarray(ranks, np.int32))
        spans = [(HEADER_BYTES, self._num_tokens * self._dtype.itemsize)]
        for blocks, is_of_rows in (
            (iter(lambda: self._masks.read(_COPY_BYTES), b""), True),
            *(([array.view(np.uint8).data], True) for array in of_rows),
            ([numbers], False),
            ([dumped], False),
        ):
            self._file.write(bytes(-self._file.tell() % ALIGN))
            start = self._file.tell()
            for block in blocks:
                self._write(block, is_of_rows)
            spans.append((start, self._file.tell() - start))
        header = HEADER.pack(
            MAGIC, FORMAT_VERSION, self._dtype.itemsize, *(number for span in spans for number in span),
            short_digest(dumped), self._digest.digest(), short_digest(numbers),
        ).ljust(HEADER_BYTES - 16, b"\0")  # fmt: skip
        self._file.seek(0)
        self._file.write(header + short_digest(header))

    def _write(self, data: Any, is_of_rows: bool = True) -> None:
        self._file.write(data)
        if is_of_rows:
            self._digest.update(data)


@contextmanager
def write_rows(path: Path, dtype: "np.dtype[Any]") -> Iterator[RowWriter]:
    """Write a cache file batch by batch; it appears at `path` when the block ends without an error.

    Raises:
        MlxmathError: the disk is full or the folder cannot be written.
    """
    with atomic_file(path) as file, tempfile.TemporaryFile(dir=path.parent) as masks:
        writer = RowWriter(file, masks, dtype)
        yield writer
        writer.finish()
    stamp(path, path.stat())
