"""A model whose base stays on the disk: its blocks and its head are in memory while they are at hand.

Training without them in memory goes through the units of a model, its blocks and its head, one after the other
(`mlxmath.training.offloaded`). Two units are held: the one at hand and the next, which is read meanwhile, into the
memory of the one before. Elsewhere a frozen array is a hollow one, of the same shape and type, which takes no memory.
Of the embedding the rows of the tokens at hand are read. Adapters and the norm after the blocks stay in memory.
"""

import math
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlxmath.errors import MlxmathError
from mlxmath.models.blocks import path_of_blocks
from mlxmath.models.load import check_finite, load_model, num_embeddings, suit
from mlxmath.models.skeleton import hollowed
from mlxmath.models.stored import DiskEmbedding, DiskQuantizedEmbedding, Rows, Stored

HEAD = -1
"""The unit that is no block."""
_EMBEDDINGS = nn.Embedding | nn.QuantizedEmbedding


Result = TypeVar("Result")
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
        self.model, self.config, self._folder = loaded.model, loaded.config, folder
        suit(self.model, dtype)
        self._units: dict[int, list[Stored]] = defaultdict(list)
        arrays = _in_blocks_and_vocabulary(self.model)
        if missing := [name for name in arrays if name not in loaded.stored]:
            raise MlxmathError(
                f"{folder} cannot be read block by block: {missing[0]} and {len(missing) - 1} more of its arrays are "
                "made of several tensors. Convert the model with `mlxmath convert`, or use --offload off."
            )
        embeddings: dict[int, list[Stored]] = defaultdict(list)
        heads: dict[bool, list[Stored]] = defaultdict(list)
        for name, (unit, module, key) in arrays.items():
            array = module[key]
            stored = Stored(module, key, name, array.shape, array.dtype, loaded.stored[name])
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
            module.__class__, module.rows = kind, Rows(of_one)
        mx.eval(self.model.parameters())
        check_finite(
            folder, {name: array for name, array in tree_flatten(self.model.parameters()) if name not in arrays}
        )
        files = {each.tensor.path for arrays in self._units.values() for each in arrays}
        self._files = {file: _identity(file) for file in files}
        self.num_bytes = sum(each.tensor.num_bytes for arrays in self._units.values() for each in arrays)
        """Of all units on the disk."""
        self._absent = 0.0
        self._checked: set[int] = set()
        self._held: dict[int, list[mx.array]] = {}
        self._installed: int | None = None
        self._next: tuple[int, Future[list[mx.array]]] | None = None
        self._attached: list[nn.Module] = []
        self._modules: list[dict[int, list[nn.Module]]] = []
        self._reader = ThreadPoolExecutor(1, "reader")

    def close(self) -> None:
        """End the thread that reads, and give the units' memory back."""
        self._reader.shutdown(cancel_futures=True)
        self._put_away()
        self._held, self._next = {}, None

    def poison(self) -> None:
        """Have NaN from now on where weights are not at hand, so that their use shows."""
        self._absent = math.nan
        for unit in self._units:
            self._install(unit, None)

    def holds(self, layer: nn.Module) -> bool:
        """Whether a layer of a model that is attached is the head."""
        return any(module is layer for modules in self._modules for module in modules[HEAD])

    def attach(self, model: nn.Module) -> None:
        """Bring units to this model too: the one itself, with its adapters, or a replica of it."""
        if any(each is model for each in self._attached):
            return
        self._attached.append(model)
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
        if self._installed != unit:
            self._put_away()
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
        self._put_away()
        for unit in units:
            self._install(unit, self._read(unit, {}))
        try:
            yield
        finally:
            for unit in units:
                self._install(unit, None)

    def _read(self, unit: int, spare: Spare) -> list[mx.array]:
        """The bits of a unit's arrays, in memory that is spare where there is some of the size.

        Raises:
            MlxmathError: the file cannot be read, or is no longer what it was.
        """
        found = []
        for each in self._units[unit]:
            fitting = spare.get((each.shape, each.host))
            array = fitting.pop() if fitting else mx.array(np.empty(each.shape, each.host))
            each.read(np.asarray(array))
            found.append(array)
        for file in {each.tensor.path for each in self._units[unit]}:
            if _identity(file) != self._files[file]:
                raise MlxmathError(f"{file} has been changed since this run began, which reads it in every step.")
        return found

    def _put_away(self) -> None:
        """Have no unit at hand."""
        if self._installed is not None:
            self._install(self._installed, None)

    def _install(self, unit: int, read: list[mx.array] | None) -> None:
        """Give the models a unit's arrays, hollow ones for None."""
        stored = self._units[unit]
        arrays = (
            [hollowed(each.module[each.key], value=self._absent) for each in stored] if read is None
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


def _identity(file: Path) -> tuple[int, int, int] | None:
    """What changes if a file is replaced or written to; None if it is gone."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def finished(passing: Generator[Any, None, Result]) -> Result:
    """What a pass comes to that waits before each unit, where all are in memory."""
    while True:
        try:
            next(passing)
        except StopIteration as end:
            result: Result = end.value
            return result


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
