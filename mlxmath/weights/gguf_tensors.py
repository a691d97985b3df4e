"""Tensors of a GGUF file as those of a model in Hugging Face form, read some rows at a time.

Q4_0, Q4_1 and Q8_0 keep their bits: a block of 32 numbers d * q + m is a group of MLX's affine quantization, whose
scale is d and whose bias is m (Q4_0: q lies 8 above, so -8 d; Q8_0: 128 above). Both products are exact in float16.
All other types are computed in float32 by gguf's own functions.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mlxmath.errors import MlxmathError
from mlxmath.weights.dtypes import DTYPES, Array, convert
from mlxmath.weights.gguf_file import GgufTensor
from mlxmath.weights.tensors import BLOCK_BYTES, TensorRef, row_major

BITS = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}
"""Types of GGUF that MLX's affine quantization holds without loss -> bits a weight."""
GROUP_SIZE = 32
"""Weights of a block of these types."""
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
"""Types of GGUF that are stored as they are."""
COMPUTED = "float16"
"""Type in which the others are kept: they are products of float16 scales and small integers."""

Part = Literal["values", "packed", "scales", "biases"]


@dataclass(frozen=True)
class GgufRef(TensorRef):
    """A tensor, or a part of its packed form, made of what a GGUF file stores.

    Attributes:
        source: what is stored.
        part: "values": numbers; else a part of MLX's packed form.
        order: for each row of a head, the row of the stored head that it is; empty where rows are as stored.
        added: what was added to each number when it was stored.
    """

    source: GgufTensor
    part: Part
    order: tuple[int, ...] = ()
    added: int = 0

    @property
    def place(self) -> tuple[Any, ...]:
        """See `TensorRef.place`."""
        return self.path, self.offset, self.shape, self.dtype, self.part, self.order, self.added

    @property
    def contiguous(self) -> bool:
        """Its elements do not lie in a file."""
        return False

    def blocks(self, *, multiple: int = 1, block_bytes: int = BLOCK_BYTES) -> Iterator[Array]:
        """See `TensorRef.blocks`."""
        return self.blocks_as(self.dtype, multiple=multiple, block_bytes=block_bytes)

    def blocks_as(self, dtype: str, *, multiple: int = 1, block_bytes: int = BLOCK_BYTES) -> Iterator[Array]:
        """See `TensorRef.blocks_as`."""
        for stored in self._stored_rows(multiple, block_bytes):
            values, found = self._decoded(stored)
            yield self._converted(values.reshape(-1), found, dtype) if found != dtype else values.reshape(-1)

    def _stored_rows(self, multiple: int, block_bytes: int) -> Iterator[Array]:
        """Rows as bytes (any, bytes of a row), in this tensor's order; together a multiple of `multiple` elements."""
        columns = self.shape[-1] if len(self.shape) > 1 else 1 if self.order else self.shape[0]
        num_rows = self.num_elements // columns
        row_bytes = self.source.num_bytes // num_rows
        together = math.lcm(columns * max(len(self.order), 1), multiple) // columns
        step = max(block_bytes // (row_bytes * together), 1) * together
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.source.offset)
                for start in range(0, num_rows, step):
                    rows: Array = np.empty((min(step, num_rows - start), row_bytes), np.uint8)
                    self.fill(file, rows.reshape(-1))
                    if self.order:
                        heads = rows.reshape(-1, len(self.order), row_bytes)
                        rows = heads[:, self.order].reshape(rows.shape)
                    yield rows
        except OSError as error:
            raise MlxmathError(f"cannot read {self.path}: {error.strerror or error}") from error

    def _decoded(self, stored: Array) -> tuple[Array, str]:
        """What rows of bytes stand for, and the type of that."""
        kind = self.source.kind
        if self.part != "values":
            return _part(stored, kind, self.part, self), self.dtype
        if kind in FLOATS:
            values, dtype = stored.view(DTYPES[FLOATS[kind]].numpy), FLOATS[kind]
        else:
            values, dtype = dequantized(stored, kind), "float32"
        if self.added:
            values, dtype = convert(values, dtype, "float32")[0] - np.float32(self.added), "float32"
        return values, dtype


def dequantized(stored: Array, kind: str) -> Array:
    """Rows of bytes (any, bytes of a row) of a type of ggml as float32, by gguf's own functions."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    with np.errstate(all="ignore"):
        return dequantize(stored, GGMLQuantizationType[kind])


def can_dequantize(kind: str) -> bool:
    """Whether gguf can."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        dequantized(np.zeros((1, GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _part(stored: Array, kind: str, part: Part, ref: GgufRef) -> Array:
    """A part of MLX's packed form of rows of blocks."""
    head = 4 if kind == "Q4_1" else 2
    blocks = stored.reshape(-1, head + GROUP_SIZE * BITS[kind] // 8)
    if part == "packed":
        codes = blocks[:, head:]
        if kind == "Q8_0":
            return np.ascontiguousarray(codes ^ np.uint8(0x80)).view("<u4")
        # a byte holds elements i and i + 16 of the block in GGUF, 2 i and 2 i + 1 in MLX
        elements = np.concatenate([codes & 15, codes >> 4], axis=1)
        return np.ascontiguousarray(elements[:, ::2] | elements[:, 1::2] << np.uint8(4)).view("<u4")
    scale = np.ascontiguousarray(blocks[:, :2]).view("<f2")
    if part == "scales":
        return scale
    if kind == "Q4_1":
        return np.ascontiguousarray(blocks[:, 2:4]).view("<f2")
    with np.errstate(over="ignore", invalid="ignore"):
        bias = scale * np.float16(-8 if kind == "Q4_0" else -128)
    if np.any(np.isinf(bias) & ~np.isinf(scale)):
        raise MlxmathError(
            f"{ref.path}: tensor {ref.source.name!r} has scales so large that MLX's packed form cannot hold them; "
            "dequantize it with --dtype float32."
        )
    return bias


def values_of(
    tensor: GgufTensor, name: str, *, order: tuple[int, ...] = (), added: int = 0, dtype: str = ""
) -> TensorRef:
    """A tensor as numbers.

    Args:
        tensor: what is stored.
        name: in Hugging Face form.
        order: of the rows of a head.
        added: to each number when it was stored.
        dtype: as which it is read if no other type is asked for ("": the stored one, or `COMPUTED`).
    """
    dtype = dtype or FLOATS.get(tensor.kind, COMPUTED)
    shape = tensor.shape
    if FLOATS.get(tensor.kind) == dtype and not order and not added:
        return TensorRef(tensor.path, name, dtype, shape, row_major(shape), tensor.offset)
    return GgufRef(
        tensor.path, name, dtype, shape, row_major(shape), tensor.offset, tensor, "values", order=order, added=added
    )


def packed_of(tensor: GgufTensor, path: str, *, order: tuple[int, ...] = ()) -> list[TensorRef]:
    """The tensors that are a packed weight in MLX: weight (..., in * bits / 32), scales and biases (..., in / 32).

    Args:
        tensor: of a type of `BITS`.
        path: of the layer.
        order: of the rows of a head.
    """
    *rows, columns = tensor.shape
    parts: tuple[tuple[str, Part, str, int], ...] = (
        ("weight", "packed", "uint32", columns * BITS[tensor.kind] // 32),
        ("scales", "scales", COMPUTED, columns // GROUP_SIZE),
        ("biases", "biases", COMPUTED, columns // GROUP_SIZE),
    )
    return [
        GgufRef(
            tensor.path, f"{path}.{end}", dtype, (*rows, width), row_major((*rows, width)), tensor.offset, tensor, part,
            order=order,
        )
        for end, part, dtype, width in parts
    ]  # fmt: skip
