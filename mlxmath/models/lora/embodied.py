"""Gives a skeleton the few weights with which it can be tried.

Of each kind of block one gets weights, which all of that kind share; of a vocabulary a few rows are left; one of a
stack of experts stands for all.
"""

from collections.abc import Hashable
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxmath.models.blocks import kinds_of, path_of_blocks
from mlxmath.models.lora.layers import EXPERTS, AdapterLayer
from mlxmath.runtime.device import machine_memory_bytes

VOCABULARY = 64
"""Rows that are left of the embedding and of the head."""
_POOL = 1_000_003
"""Random numbers from which all weights are made. A prime: no two rows of a matrix are the same."""
_LARGE = 1 << 28
"""Bytes of an array outside the blocks that stays without memory of its own."""
_SHARE = 1 / 8
"""Of the machine's memory that a block's weights may take. Of larger ones, one row of each matrix stands for all."""

_DEVIATION = 0.02
"""Of weights."""
_EXPONENT = 120
"""Of a scale of MXFP4 or MXFP8: 2 to the power of this less 127."""


def embody(model: nn.Module, vocab_size: int) -> None:
    """Give weights to one block of each kind, which the others of that kind share, and to what is not in blocks."""
    blocks, path = model.layers, path_of_blocks(model) + "."
    first: dict[Hashable, nn.Module] = {}
    for kind, block in zip(kinds_of(blocks), blocks, strict=True):
        if kind not in first:
            first[kind] = block
            own_bytes = sum(
                array.nbytes // (len(array) if isinstance(module, EXPERTS) else 1)
                for module in block.modules()
                for array in own_arrays(module).values()
            )
            for module in block.modules():
                _fill(module, in_full=own_bytes <= _SHARE * machine_memory_bytes())
        block.update(first[kind].parameters())
    for name, module in model.named_modules():
        if not name.startswith(path):
            if "weight" in module and module.weight.ndim > 1 and len(module.weight) == vocab_size:
                for key, array in own_arrays(module).items():
                    module[key] = array[:VOCABULARY] if len(array) == vocab_size else array
            _fill(module, in_full=True)
    mx.eval(model.parameters())


def _fill(module: nn.Module, *, in_full: bool) -> None:
    """Random numbers for a module's own arrays: the first expert stands for all; not `in_full`, the first row."""
    if isinstance(module, AdapterLayer):
        return
    for name, array in own_arrays(module).items():
        if not array.ndim or array.nbytes > _LARGE * (len(array) if isinstance(module, EXPERTS) else 1):
            continue
        shape = array.shape
        if isinstance(module, EXPERTS):
            shape = (1, *shape[1:])
        if not in_full and len(shape) > 1:
            shape = (*shape[:-2], 1, shape[-1])
        made = _random(shape, array.dtype)
        if hasattr(module, "bits") and name in ("scales", "biases"):
            made = mx.full(shape, _packing(name, module.bits, array.dtype), array.dtype)
        module[name] = mx.broadcast_to(made, array.shape)


def _packing(name: str, bits: int, dtype: mx.Dtype) -> float:
    """With which random words of so many bits are weights around zero, of the deviation of the others."""
    if dtype == mx.uint8:
        return _EXPONENT
    return _DEVIATION * 12**0.5 / 2**bits if name == "scales" else -_DEVIATION * 3**0.5


def _random(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """Of a deviation that weights have; vectors are ones, packed words any, other whole numbers zero."""
    if dtype == mx.uint32:
        return mx.array(np.resize(_pool().view(np.uint32), shape))
    if not mx.issubdtype(dtype, mx.floating):
        return mx.zeros(shape, dtype)
    return mx.ones(shape, dtype) if len(shape) == 1 else mx.array(np.resize(_pool(), shape)).astype(dtype)


@cache
def _pool() -> Any:
    return np.random.default_rng(0).standard_normal(_POOL, np.float32) * np.float32(_DEVIATION)


def own_arrays(module: nn.Module) -> dict[str, mx.array]:
    """A module's own parameters."""
    return {name: value for name, value in module.items() if isinstance(value, mx.array) and not name.startswith("_")}


def unpacked_bytes(module: nn.Module) -> int:
    """Of a quantized linear layer's weight, dequantized."""
    if not isinstance(module, nn.QuantizedLinear):
        return 0
    return int(module.weight.size * 32 // module.bits * module.scales.itemsize)
