"""Where a tensor lies in a file, and reading it without holding more of the file than needed."""

import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import RawIOBase
from pathlib import Path
from typing import Any

import numpy as np

from mlxmath.errors import MlxmathError
from mlxmath.weights.dtypes import DTYPES, Array, convert

BLOCK_BYTES = 1 << 20
MAX_DIMENSIONS = 32


@dataclass(frozen=True)
class TensorRef:
    """A tensor in a file, not yet read.

    Attributes:
        path: the file.
        name: the tensor's name.
        dtype: a name of `DTYPES`.
        shape: its dimensions.
        stride: for each dimension the distance between neighbours, in elements.
        offset: position in the file of the element at index (0, 0, ...), in bytes.
    """

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Size of the tensor once its elements lie side by side."""
        return self.num_elements * DTYPES[self.dtype].itemsize

    @property
    def contiguous(self) -> bool:
        """Whether its elements already lie side by side in row-major order."""
        return all(n == 1 or s == d for n, s, d in zip(self.shape, self.stride, row_major(self.shape), strict=True))

    @property
    def place(self) -> tuple[Any, ...]:
        """Equal for two names of the same values (tied weights)."""
        return self.path, self.offset, self.dtype, self.shape, self.stride

    def read(self) -> Array:
        """The tensor (shape `self.shape`, row-major); only its own bytes are read.

        Raises:
            MlxmathError: the file cannot be read or is shorter than it was.
        """
        result: Array = np.empty(self.num_elements, DTYPES[self.dtype].numpy)
        position = 0
        for block in self.blocks():
            result[position : position + block.size] = block
            position += block.size
        return result.reshape(self.shape)

    def blocks(self, *, multiple: int = 1, block_bytes: int = BLOCK_BYTES) -> Iterator[Array]:
        """Yield the elements in row-major order as flat arrays of about `block_bytes`.

        A yielded array is valid until the next one is asked for.

        Args:
            multiple: every block holds a multiple of this many elements (a row, say).
            block_bytes: size to aim at.

        Raises:
            MlxmathError: the file cannot be read or is shorter than it was.
        """
        if not self.num_elements:
            return
        kind = DTYPES[self.dtype].numpy
        per_block = max(block_bytes // (kind.itemsize * multiple), 1) * multiple
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.offset)
                if self.contiguous:
                    buffer: Array = np.empty(min(per_block, self.num_elements), kind)
                    for start in range(0, self.num_elements, per_block):
                        block = buffer[: self.num_elements - start]
                        self.fill(file, block)
                        yield block
                    return
                if (parts := self._parts(block_bytes)) is not None:
                    for part in parts:
                        yield from part.blocks(multiple=multiple, block_bytes=block_bytes)
                    return
                storage: Array = np.empty(self._span, kind)
                self.fill(file, storage)
        except OSError as error:
            raise MlxmathError(f"cannot read {self.path}: {error.strerror or error}") from error
        strides = tuple(s * kind.itemsize for s in self.stride)
        view = np.lib.stride_tricks.as_strided(storage, self.shape, strides, writeable=False)
        yield from _pieces(view, per_block)

    @property
    def _span(self) -> int:
        """Elements between its first and its last in the file, both included."""
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))

    def _parts(self, block_bytes: int) -> "list[TensorRef] | None":
        """The entries of its first dimension, if it is large and they lie apart (experts, each transposed)."""
        itemsize = DTYPES[self.dtype].itemsize
        if len(self.shape) < 3 or self._span * itemsize <= block_bytes:
            return None
        part = replace(self, shape=self.shape[1:], stride=self.stride[1:])
        if part._span > self.stride[0]:
            return None
        return [replace(part, offset=self.offset + i * self.stride[0] * itemsize) for i in range(self.shape[0])]

    def blocks_as(self, dtype: str, *, multiple: int = 1) -> Iterator[Array]:
        """`blocks`, converted to `dtype`.

        Raises:
            MlxmathError: as `blocks`; a value is beyond the range of `dtype`.
        """
        for block in self.blocks(multiple=multiple):
            yield self._converted(block, self.dtype, dtype)

    def _converted(self, block: Array, source: str, dtype: str) -> Array:
        values, num_infinite = convert(block, source, dtype)
        if num_infinite:
            raise MlxmathError(
                f"{self.path}: tensor {self.name!r} has values beyond the range of {dtype}; "
                f"choose --dtype bfloat16 or float32."
            )
        return values

    def fill(self, file: RawIOBase, array: Array) -> None:
        """Read exactly `array`'s bytes, of this tensor, from where the file stands."""
        rest = memoryview(array.view(np.uint8).data)
        while rest:
            count = file.readinto(rest)
            if not count:
                raise MlxmathError(f"{self.path} ends inside the tensor {self.name!r}; the file is truncated.")
            rest = rest[count:]


def _pieces(view: Array, per_block: int) -> Iterator[Array]:
    """Row-major flat copies of at most `per_block` elements; the last dimension is cut only when it is longer."""
    if view.size <= per_block:
        yield np.ascontiguousarray(view).reshape(-1)
        return
    rows = max(per_block // (view.size // view.shape[0]), 1)
    if view.ndim == 1 or view.size // view.shape[0] <= per_block:
        for start in range(0, view.shape[0], rows):
            yield np.ascontiguousarray(view[start : start + rows]).reshape(-1)
    else:
        for row in view:
            yield from _pieces(row, per_block)


@contextmanager
def uncached(path: Path, start: int = 0, num_bytes: int = 0) -> Iterator[Any]:
    """A file to be read, of which these bytes (0: all) do not stay in the system's cache.

    Raises:
        MlxmathError: it cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            if sys.platform == "darwin":
                import fcntl

                fcntl.fcntl(file.fileno(), fcntl.F_NOCACHE, 1)
            yield file
            if sys.platform == "linux":
                os.posix_fadvise(file.fileno(), start, num_bytes, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        raise MlxmathError(f"cannot read {path}: {error.strerror or error}") from error


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a tensor whose elements lie side by side."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * size)
    return tuple(reversed(strides))[: len(shape)]


def pieces(path: Path, spans: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str | None, memoryview]]:
    """All bytes of a file in order, cut where the spans begin and end.

    Args:
        path: the file.
        spans: name -> start and size in bytes.

    Yields:
        The name of the span, None between them, and up to `BLOCK_BYTES` of it, valid until the next are asked for.

    Raises:
        MlxmathError: the file cannot be read, it ends inside a span, or one span lies inside another.
    """
    buffer = memoryview(bytearray(BLOCK_BYTES))
    position = 0
    try:
        with path.open("rb", buffering=0) as file:
            for name, (start, size) in sorted(spans.items(), key=lambda item: item[1]):
                if start < position:
                    raise MlxmathError(f"{path}: {name!r} lies inside another tensor; the file is damaged.")
                for inside, rest in ((None, start - position), (name, size)):
                    while rest:
                        count = file.readinto(buffer[:rest])
                        if not count:
                            raise MlxmathError(f"{path} ends early; the file is truncated.")
                        yield inside, buffer[:count]
                        rest -= count
                position = start + size
            while count := file.readinto(buffer):
                yield None, buffer[:count]
    except OSError as error:
        raise MlxmathError(f"cannot read {path}: {error.strerror or error}") from error


def place_tensor(
    path: Path,
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    *,
    element: int,
    storage: tuple[int, int],
) -> TensorRef:
    """Check that a tensor lies inside its storage, and say where that is in the file.

    Args:
        path: the file.
        name: the tensor's name.
        dtype: name of its type.
        shape: its dimensions.
        stride: in elements.
        element: index of its first element in the storage.
        storage: the storage's position in the file and its size, both in bytes.

    Raises:
        MlxmathError: an unsupported type, a negative or overflowing number, or an element outside the storage.
    """
    where = f"{path}: tensor {name!r}"
    if dtype not in DTYPES:
        raise MlxmathError(
            f"{where} is of type {dtype}, which MLX cannot hold; expected one of {', '.join(DTYPES)}. "
            "Save the model in one of these types first."
        )
    numbers = (*shape, *stride, element)
    if len(shape) != len(stride) or len(shape) > MAX_DIMENSIONS or any(type(n) is not int or n < 0 for n in numbers):
        raise MlxmathError(f"{where} has a damaged shape {shape}, stride {stride} or offset {element}.")
    itemsize = DTYPES[dtype].itemsize
    if math.prod(n for n in shape if n) * itemsize >= 1 << 63:
        raise MlxmathError(f"{where} has a shape {shape} beyond any memory; the file is damaged.")
    start, num_bytes = storage
    if 0 in shape:
        return TensorRef(path, name, dtype, shape, row_major(shape), start)
    last = element + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    if (last + 1) * itemsize > num_bytes:
        raise MlxmathError(
            f"{where} (shape {shape}, stride {stride}, offset {element}) reaches {(last + 1) * itemsize} bytes "
            f"into a storage of {num_bytes}; the file is damaged."
        )
    return TensorRef(path, name, dtype, shape, stride, start + element * itemsize)


def same_values(first: TensorRef, second: TensorRef) -> bool:
    """Whether two tensors are equal bit for bit; without reading them where both are one region of one file."""
    if first.place == second.place:
        return True
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    pairs = zip(first.blocks(), second.blocks(), strict=True)
    return all(np.array_equal(a.view(np.uint8), b.view(np.uint8)) for a, b in pairs)
