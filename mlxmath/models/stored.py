"""Frozen arrays of a model that are on the disk, and embeddings of which only the rows at hand are read."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mlxmath.models.linear import PackedEmbedding
from mlxmath.weights.dtypes import DTYPES, Array, convert
from mlxmath.weights.tensors import TensorRef, uncached

_PIECE = 1 << 20
"""Numbers that are converted at a time."""
_MOST_BYTES = 16 << 20
"""Of rows that are kept for the next tokens."""


@dataclass(frozen=True)
class Stored:
    """A frozen array of a module, `module[key]`, and where it lies."""

    module: nn.Module
    key: str
    name: str
    shape: tuple[int, ...]
    dtype: mx.Dtype
    """In memory."""
    tensor: TensorRef

    @property
    def _dtype_name(self) -> str:
        return str(self.dtype).rpartition(".")[2]

    @property
    def host(self) -> np.dtype[Any]:
        """NumPy's type of its bits in memory."""
        return DTYPES[self._dtype_name].numpy

    def converted(self, numbers: Array) -> Array:
        """As they are in memory, of numbers as they are stored."""
        return convert(numbers, self.tensor.dtype, self._dtype_name)[0]

    def read(self, out: Array) -> None:
        """Fill `out`, contiguous, of the type `host`; the file's pages are given back.

        Raises:
            MlxmathError: the file cannot be read, or is shorter than it was.
        """
        tensor, flat = self.tensor, out.reshape(-1)
        is_as_stored = tensor.dtype == self._dtype_name or not mx.issubdtype(self.dtype, mx.floating)
        with uncached(tensor.path, tensor.offset, tensor.num_bytes) as file:
            file.seek(tensor.offset)
            if is_as_stored:
                tensor.fill(file, flat)
            for start in () if is_as_stored else range(0, flat.size, _PIECE):
                part = np.empty(min(_PIECE, flat.size - start), DTYPES[tensor.dtype].numpy)
                tensor.fill(file, part)
                flat[start : start + part.size] = self.converted(part)

    def read_rows(self, numbers: NDArray[np.int64]) -> Array:
        """Rows of its first dimension, of the type `host`.

        Raises:
            MlxmathError: as `read`.
        """
        tensor = self.tensor
        rows = np.empty((len(numbers), *self.shape[1:]), DTYPES[tensor.dtype].numpy)
        with uncached(tensor.path, tensor.offset, tensor.num_bytes) as file:
            for row, number in zip(rows, numbers.tolist(), strict=True):
                file.seek(tensor.offset + number * row.nbytes)
                tensor.fill(file, row.reshape(-1))
        return self.converted(rows.reshape(-1)).reshape(rows.shape)


class Rows:
    """Rows of an embedding, read when they are first asked for."""

    def __init__(self, arrays: Sequence[Stored]) -> None:
        self._arrays, self._lock = arrays, threading.Lock()
        self._places = np.full(arrays[0].shape[0], -1, np.int32)
        """Of each token id, in the tables of what was read."""
        self._read: dict[str, Array] = {each.key: np.empty((0, *each.shape[1:]), each.host) for each in arrays}
        self._tables: dict[str, mx.array] = {}

    def of(self, tokens: mx.array) -> dict[str, mx.array]:
        """The embedding's arrays, each with the rows of the tokens in the place of its own."""
        ids = np.asarray(tokens)
        with self._lock:
            if (self._places[ids] < 0).any():
                self._add(np.unique(ids))
            places, tables = mx.array(self._places[ids]), self._tables
        return {key: table[places] for key, table in tables.items()}

    def _add(self, wanted: NDArray[np.int64]) -> None:
        missing = wanted[self._places[wanted] < 0]
        if sum(table.nbytes for table in self._read.values()) > _MOST_BYTES:
            self._places[:] = -1
            self._read, missing = {key: table[:0] for key, table in self._read.items()}, wanted
        for each in self._arrays:
            self._read[each.key] = np.concatenate([self._read[each.key], each.read_rows(missing)])
        self._places[missing] = np.arange(-len(missing), 0) + len(self._read["weight"])
        tables = {each.key: mx.array(self._read[each.key]).view(each.dtype) for each in self._arrays}
        mx.eval(tables)
        self._tables = tables


class DiskEmbedding(nn.Embedding):
    """An embedding whose rows are on the disk."""

    rows: Rows

    def __call__(self, x: mx.array) -> mx.array:
        """Apply the layer."""
        return self.rows.of(x)["weight"]


class DiskQuantizedEmbedding(PackedEmbedding):
    """A quantized embedding whose rows are on the disk."""

    rows: Rows

    def __call__(self, x: mx.array) -> mx.array:
        """Apply the layer."""
        rows = self.rows.of(x)
        vectors = mx.dequantize(
            rows["weight"], scales=rows["scales"], biases=rows.get("biases"), group_size=self.group_size,
            bits=self.bits, mode=self.mode,
        )  # fmt: skip
        return self.of_type(vectors)
