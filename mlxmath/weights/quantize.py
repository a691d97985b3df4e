"""Tensors that are computed while converting: quantized by mlx_lm's rules, made of several as mlx_lm does on loading.

mlx_lm decides by building the model: every layer with `to_quantized` whose last dimension the group size divides, less
those that the model's own predicate leaves out. A weight that the model takes as it is stored is quantized a block of
rows at a time: `mx.quantize` works row by row, so blocks give the same bits. One that mlx_lm puts together on loading
(experts, stacked) is made whole, quantized and forgotten before the next. mlx_lm's own `sanitize` says how to make it,
lazily. What it needs is read from the source's files if MLX can read these, else from a copy that is written for the
purpose and removed afterwards.
"""

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlxmath.errors import MlxmathError
from mlxmath.weights.architecture import Built, probe
from mlxmath.weights.dtypes import DTYPES, FLOAT8, Array, readable
from mlxmath.weights.packing import Packing
from mlxmath.weights.quantized import ScaledTensor
from mlxmath.weights.safetensor import SafetensorsWriter, write_hollow
from mlxmath.weights.tensors import TensorRef

CHUNK_ELEMENTS = 1 << 22
"""Elements of an array in memory that are quantized at once."""
CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class QuantizationPlan:
    """
    Attributes:
        packings: name of each weight that is quantized -> its form.
        settings: what config.json says under "quantization".
        skipped: layers that stay as they are because the group size, or that which the model wants for them, does not
            divide their last dimension.
    """

    packings: Mapping[str, Packing]
    settings: dict[str, Any]
    skipped: tuple[str, ...]


def plan_quantization(
    built: Built, packing: Packing, by_layer: Mapping[str, Packing] | None = None
) -> QuantizationPlan:
    """Decide what is quantized.

    Args:
        built: the model.
        packing: the form of all layers that have none of their own.
        by_layer: path of a layer -> its form, where that was chosen for each; the others stay as they are.
    """
    chosen: dict[str, Packing] = {}
    skipped = []
    settings = packing.settings
    predicate = getattr(built.model, "quant_predicate", None)
    for path, module in packable(built.model):
        if by_layer is not None:
            if path in by_layer:
                settings[path] = by_layer[path].settings
                chosen[f"{path}.weight"] = by_layer[path]
            continue
        if module.weight.shape[-1] % packing.group_size:
            skipped.append(path)
            continue
        answer = True if predicate is None else predicate(path, module)
        if isinstance(answer, dict):
            own = Packing.of(answer)
            if module.weight.shape[-1] % own.group_size:
                skipped.append(path)
                continue
            settings[path] = answer
            chosen[f"{path}.weight"] = own
        elif answer:
            chosen[f"{path}.weight"] = packing
    return QuantizationPlan(chosen, settings, tuple(skipped))


def packable(model: Any) -> list[tuple[str, Any]]:
    """(path, layer) of all layers that MLX can quantize."""
    from mlx.nn.layers.base import Module
    from mlx.utils import tree_flatten

    leaves: Any = tree_flatten(model.leaf_modules(), is_leaf=Module.is_module)
    return [(path, module) for path, module in leaves if hasattr(module, "to_quantized")]


def quantized_blocks(rows_of: Iterator[Any], packing: Packing) -> Iterator[Array]:
    """Quantize a weight: all packed rows, then all scales, then all biases.

    Args:
        rows_of: yields its rows in order, as arrays (any, in) of MLX, of the type that affine scales will have.
        packing: the form.
    """
    import mlx.core as mx

    beside: list[list[Array]] = []
    for rows in rows_of:
        packed, *others = mx.quantize(rows, packing.group_size, packing.bits, mode=packing.mode)
        beside.append([as_numpy(other) for other in others])
        yield np.array(packed)
    for kind in zip(*beside, strict=True):
        yield from kind


def stored_rows(tensor: TensorRef, dtype: str) -> Iterator[Any]:
    """The rows of a stored weight (..., in) as arrays of MLX, some at a time."""
    import mlx.core as mx

    columns = tensor.shape[-1]
    for values in tensor.blocks_as(dtype, multiple=columns):
        rows = mx.array(values.reshape(-1, columns))
        yield rows.view(mx.bfloat16) if dtype == "bfloat16" else rows


def made_rows(array: Any) -> Iterator[Any]:
    """The rows of an array (..., in), some at a time."""
    rows = array.reshape(-1, array.shape[-1])
    step = max(CHUNK_ELEMENTS // rows.shape[1], 1)
    for start in range(0, rows.shape[0], step):
        yield rows[start : start + step]


def as_numpy(array: Any) -> Array:
    """An array of MLX for numpy, bfloat16 as its bits."""
    import mlx.core as mx

    return np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


@dataclass
class MadeTensor:
    """A tensor that is made when it is asked for, once.

    Attributes:
        name: in the model.
        dtype: a name of `DTYPES`.
        shape: its dimensions.
        source: where it is made.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: "Made" = field(repr=False)

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return math.prod(self.shape)

    def rows(self, dtype: str) -> Iterator[Any]:
        """Its rows (any, last dimension) as arrays of MLX of type `dtype`."""
        yield from made_rows(self.source.take(self.name, dtype))

    def blocks_as(self, dtype: str) -> Iterator[Array]:
        """Its elements in row-major order, converted to `dtype`."""
        flat = self.source.take(self.name, dtype).reshape(-1)
        step = CHUNK_BYTES // DTYPES[dtype].itemsize
        for start in range(0, flat.size, step):
            yield as_numpy(flat[start : start + step])


class Made:
    """The tensors of a model that mlx_lm makes of stored ones.

    Args:
        config: config.json for them.
        tensors: the stored ones.
        built: the model for them.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, TensorRef], built: Built) -> None:
        self.names = frozenset(name for name in built.arrays if name not in built.origins)
        self.largest = 0
        """Bytes of the largest of them."""
        self._config = dict(config)
        self._tensors = dict(tensors)
        self._taken = frozenset(built.origins.values())
        self._arrays: dict[str, Any] = {}

    def tensor(self, name: str, array: Any) -> MadeTensor:
        """One of them, given the stand-in that `build` made for it."""
        dtype = str(array.dtype).removeprefix("mlx.core.").rstrip("_")
        made = MadeTensor(name, dtype, tuple(array.shape), self)
        self.largest = max(self.largest, made.num_elements * DTYPES[dtype].itemsize)
        return made

    @contextmanager
    def opened(self, folder: Path) -> Iterator[None]:
        """While this lasts, tensors can be taken.

        Args:
            folder: a place for temporary files.

        Raises:
            MlxmathError: a stored tensor cannot be read.
        """
        import mlx.core as mx

        with tempfile.TemporaryDirectory(prefix="made-", dir=folder) as name:
            place = Path(name)
            (place / "config.json").write_text(json.dumps(self._config), encoding="utf-8")
            built = self._copied(place) if self._must_copy() else self._linked(place)
            self._arrays = {key: built.arrays[key] for key in self.names}
            del built
            yield
            self._arrays = {}
            mx.clear_cache()

    def take(self, name: str, dtype: str) -> Any:
        """Make a tensor as type `dtype`, and forget it.

        Raises:
            MlxmathError: the source is damaged; a value is beyond the range of `dtype`.
        """
        import mlx.core as mx

        made = array = self._arrays.pop(name)
        if array.dtype != getattr(mx, dtype + "_" if dtype == "bool" else dtype):
            array = made.astype(getattr(mx, dtype))
        try:
            mx.eval(array)
            is_beyond = dtype == "float16" and made is not array and mx.any(mx.isinf(array) & ~mx.isinf(made)).item()
        except RuntimeError as error:
            raise MlxmathError(f"{name} cannot be made of what the source holds: {error}") from error
        if is_beyond:
            raise MlxmathError(f"{name} has values beyond the range of float16; choose --dtype bfloat16 or float32.")
        mx.clear_cache()
        return array

    @property
    def copied_bytes(self) -> int:
        """Size of the temporary copy."""
        return sum(tensor.num_bytes for tensor in self._needed.values()) if self.names and self._must_copy() else 0

    @property
    def _needed(self) -> dict[str, TensorRef]:
        """What they are made of, and what the model has no use for."""
        return {name: tensor for name, tensor in self._tensors.items() if name not in self._taken}

    def _must_copy(self) -> bool:
        """Whether MLX cannot read what they are made of where it lies."""
        return any(
            tensor.path.suffix != ".safetensors"
            or isinstance(tensor, ScaledTensor)
            or not tensor.contiguous
            or readable(tensor.dtype) != tensor.dtype
            for tensor in self._needed.values()
        )

    def _linked(self, place: Path) -> Built:
        names = {tensor.name: name for name, tensor in self._tensors.items()}
        paths = {tensor.path for tensor in self._tensors.values() if tensor.path.suffix == ".safetensors"}
        for number, path in enumerate(sorted(paths)):  # in the hub's cache they are links to files without a suffix
            (place / f"model-{number}.safetensors").symlink_to(path.resolve())
        return probe(place, names)

    def _copied(self, place: Path) -> Built:
        """Copy what they are made of; the rest is a hole, which is not read."""
        needed = self._needed
        hollow = [
            (name, readable(tensor.dtype), tensor.shape)
            for name, tensor in self._tensors.items()
            if name in self._taken
        ]
        write_hollow(place / "model-taken.safetensors", hollow)
        dtypes = {
            name: "float32" if tensor.dtype in FLOAT8 else readable(tensor.dtype) for name, tensor in needed.items()
        }
        order = sorted(needed, key=lambda name: -DTYPES[dtypes[name]].itemsize)
        declared = [(name, dtypes[name], needed[name].shape) for name in order]
        with SafetensorsWriter(place / "model-needed.safetensors", declared) as writer:
            for name in order:
                for block in needed[name].blocks_as(dtypes[name]):
                    writer.write(block)
        return probe(place)
