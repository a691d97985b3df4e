"""A model whose base stays on the disk: its blocks and its head are in memory while they are at hand.

Training without them in memory goes through the units of a model, its blocks and its head, one after the other
(`mlxmath.training.offloaded`). Two units are held: the one at hand and the next, which is read meanwhile, into the
memory of the one before. Elsewhere a frozen array is a hollow one, of the same shape and type, which takes no memory.
Of the embedding the rows of the tokens at hand are read. Adapters and the norm after the blocks stay in memory.
"""

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from numpy.typing import NDArray

from mlxmath.errors import MlxmathError
from mlxmath.models.blocks import path_of_blocks
from mlxmath.models.load import check_finite, load_model, num_embeddings, suit
from mlxmath.models.skeleton import hollowed
from mlxmath.weights.dtypes import DTYPES, Array, convert
from mlxmath.weights.tensors import TensorRef, uncached

HEAD = -1
"""The unit that is no block."""
_EMBEDDINGS = nn.Embedding | nn.QuantizedEmbedding
_PIECE = 1 << 20
"""Numbers that are converted at a time."""
_MOST_ROWS_BYTES = 16 << 20
"""Of the embedding, that are kept for the next tokens."""


@dataclass(frozen=True)
class _Stored:
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


class _Rows:
    """Rows of an embedding, read when they are first asked for."""

    def __init__(self, arrays: Sequence[_Stored]) -> None:
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
        if sum(table.nbytes for table in self._read.values()) > _MOST_ROWS_BYTES:
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

    rows: _Rows

    def __call__(self, x: mx.array) -> mx.array:
        """Apply the layer."""
        return self.rows.of(x)["weight"]


class DiskQuantizedEmbedding(nn.QuantizedEmbedding):
    """A quantized embedding whose rows are on the disk."""

    rows: _Rows

    def __call__(self, x: mx.array) -> mx.array:
        """Apply the layer."""
        rows = self.rows.of(x)
        return mx.dequantize(
            rows["weight"], scales=rows["scales"], biases=rows.get("biases"), group_size=self.group_size,
            bits=self.bits, mode=self.mode,
        )  # fmt: skip


Spare = dict[tuple[tuple[int, ...], np.dtype[Any]], list[mx.array]]
"""Arrays whose memory may be filled anew, by shape and NumPy's type."""


class Offloaded:
    """A model and its units on the disk; see the module.

    Args:
        folder: the model's, as `load_model` has it.
        dtype: likewise.

    Raises:
        MlxmathError: as `load_model`; the files do not have a block's arrays as mlx_lm wants them.
    """

    def __init__(self, folder: Path, dtype: str) -> None:
        loaded = load_model(folder, dtype, lazy=True)
        self.model, self._folder = loaded.model, folder
        suit(self.model, dtype)
        self._units: dict[int, list[_Stored]] = defaultdict(list)
        arrays = _in_blocks_and_vocabulary(self.model)
        if missing := [name for name in arrays if name not in loaded.stored]:
            raise MlxmathError(
                f"{folder} cannot be read block by block: {missing[0]} and {len(missing) - 1} more of its arrays are "
                "made of several tensors. Convert the model with `mlxmath convert`, or train with --offload off."
            )
        embeddings: dict[int, list[_Stored]] = defaultdict(list)
        heads: dict[bool, list[_Stored]] = defaultdict(list)
        for name, (unit, module, key) in arrays.items():
            array = module[key]
            stored = _Stored(module, key, name, array.shape, array.dtype, loaded.stored[name])
            module[key] = hollowed(array)
            if unit != HEAD:
                self._units[unit].append(stored)
            elif isinstance(module, _EMBEDDINGS):
                embeddings[id(module)].append(stored)
                heads[True].append(stored)
            else:
                heads[False].append(stored)
        self._units[HEAD] = heads[False] or heads[True]  # a head of its own, or the embedding
        for of_one in embeddings.values():
            module = of_one[0].module
            kind = DiskEmbedding if isinstance(module, nn.Embedding) else DiskQuantizedEmbedding
            module.__class__, module.rows = kind, _Rows(of_one)
        mx.eval(self.model.parameters())
        check_finite(
            folder, {name: array for name, array in tree_flatten(self.model.parameters()) if name not in arrays}
        )
        self._checked: set[int] = set()
        self._held: dict[int, list[mx.array]] = {}
        self._installed: int | None = None
        self._next: tuple[int, Future[list[mx.array]]] | None = None
        self._modules: list[dict[int, list[nn.Module]]] = []
        self._reader = ThreadPoolExecutor(1, "reader")

    def close(self) -> None:
        """End the thread that reads."""
        self._reader.shutdown(cancel_futures=True)

    def holds(self, layer: nn.Module) -> bool:
        """Whether a layer of a model that is attached is the head."""
        return any(module is layer for modules in self._modules for module in modules[HEAD])

    def attach(self, model: nn.Module) -> None:
        """Bring units to this model too: the one itself, with its adapters, or a replica of it."""
        paths = {id(module): path for path, module in self.model.named_modules()}
        modules = dict(model.named_modules())
        self._modules.append(
            {unit: [modules[paths[id(each.module)]] for each in arrays] for unit, arrays in self._units.items()}
        )

    def bring(self, unit: int, following: int) -> None:
        """Have a unit at hand, and only that; begin to read the one that follows, if it is not there yet.

        Raises:
            MlxmathError: it cannot be read, or its weights are not finite.
        """
        pending, self._next = self._next, None
        if pending:
            self._held[pending[0]] = pending[1].result()
        if self._installed not in (unit, None):
            self._install(self._installed, None)
        spare: Spare = defaultdict(list)
        for other in self._held.keys() - {unit, following}:
            for array, each in zip(self._held.pop(other), self._units[other], strict=True):
                spare[array.shape, each.host].append(array)
        if unit not in self._held:
            self._held[unit] = self._read(unit, spare)
        if self._installed != unit:
            self._install(unit, self._held[unit])
        if following not in self._held:
            self._next = following, self._reader.submit(self._read, following, spare)

    @contextmanager
    def at_hand(self, units: Sequence[int]) -> Iterator[None]:
        """Have several units for a moment."""
        for unit in units:
            self._install(unit, self._read(unit, {}))
        try:
            yield
        finally:
            for unit in units:
                self._install(unit, None)

    def _read(self, unit: int, spare: Spare) -> list[mx.array]:
        """The bits of a unit's arrays, in memory that is spare where there is some of the size."""
        found = []
        for each in self._units[unit]:
            fitting = spare.get((each.shape, each.host))
            array = fitting.pop() if fitting else mx.array(np.empty(each.shape, each.host))
            each.read(np.asarray(array))
            found.append(array)
        return found

    def _install(self, unit: int, read: list[mx.array] | None) -> None:
        """Give the models a unit's arrays, hollow ones for None."""
        stored = self._units[unit]
        arrays = (
            [hollowed(each.module[each.key]) for each in stored] if read is None
            else [array.view(each.dtype) for array, each in zip(read, stored, strict=True)]
        )  # fmt: skip
        mx.eval(arrays)
        if read is not None and unit not in self._checked:
            check_finite(self._folder, {each.name: array for each, array in zip(stored, arrays, strict=True)})
            self._checked.add(unit)
        self._installed = None if read is None else unit
        for modules in self._modules:
            for module, each, array in zip(modules[unit], stored, arrays, strict=True):
                module[each.key] = array


def _in_blocks_and_vocabulary(model: nn.Module) -> dict[str, tuple[int, nn.Module, str]]:
    """The arrays of a model's blocks and of its layers over the vocabulary, by name: unit, module and key."""
    path, modules, num_tokens = path_of_blocks(model), dict(model.named_modules()), num_embeddings(model)
    found = {}
    for name, _ in tree_flatten(model.parameters()):
        owner, _, key = name.rpartition(".")
        module = modules[owner]
        if name.startswith(f"{path}."):
            found[name] = int(name[len(path) + 1 :].partition(".")[0]), module, key
        elif "weight" in module and module.weight.ndim == 2 and len(module.weight) == num_tokens:
            found[name] = HEAD, module, key
    return found


def bytes_at_hand(model: nn.Module) -> int:
    """Of a model's weights, those that are held at most where its units are on the disk."""
    of_units: dict[int, int] = defaultdict(int)
    arrays = dict(tree_flatten(model.parameters()))
    for name, (unit, _, _) in _in_blocks_and_vocabulary(model).items():
        of_units[unit] += arrays.pop(name).nbytes
    head, block = of_units.pop(HEAD, 0), max(of_units.values())
    return sum(array.nbytes for array in arrays.values()) + block + max(block, head)
