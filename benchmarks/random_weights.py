"""Checkpoints of random weights, of any size, made quickly: normal with a deviation of 0.02, norms one, biases zero."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shapes import Shape

ITEM_BYTES = {"float32": 4, "bfloat16": 2}
SHARD_BYTES = 4_000_000_000
_POOL = 16_777_259  # prime: no two rows of a matrix are the same slice of the pool


def write_weights(shape: Shape, folder: Path, dtype: str) -> None:
    """Write the random checkpoint, in shards with an index where it is large.

    Written by hand, so that the only thing it needs is numpy: a length, a JSON header, the data.
    """
    pool = _stored(np.random.default_rng(0).standard_normal(_POOL, np.float32) * np.float32(0.02), dtype)
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    filled = 0
    for name, size in shape.tensors():
        num_bytes = math.prod(size) * ITEM_BYTES[dtype]
        if filled and filled + num_bytes > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append((name, size))
        filled += num_bytes
    index: dict[str, str] = {}
    offset = 0
    for number, tensors in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        index |= dict.fromkeys((name for name, _ in tensors), file)
        offset = _write_shard(folder / file, tensors, pool, offset, dtype)
    if len(shards) > 1:
        total = shape.num_parameters * ITEM_BYTES[dtype]
        record = {"metadata": {"total_size": total}, "weight_map": index}
        (folder / "model.safetensors.index.json").write_text(json.dumps(record))


def _write_shard(
    path: Path, tensors: list[tuple[str, tuple[int, ...]]], pool: np.ndarray, offset: int, dtype: str
) -> int:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, size in tensors:
        start, end = end, end + math.prod(size) * ITEM_BYTES[dtype]
        kind = {"float32": "F32", "bfloat16": "BF16"}[dtype]
        header[name] = {"dtype": kind, "shape": list(size), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, size in tensors:
            count = math.prod(size)
            if len(size) == 1:
                file.write(_stored(np.full(count, 0.0 if name.endswith("bias") else 1.0, np.float32), dtype))
                continue
            while count:
                part = pool[offset : offset + count]
                file.write(part)
                offset = (offset + len(part)) % _POOL
                count -= len(part)
    return offset


def _stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """bfloat16 is the upper half of a float32 (cut off, not rounded: these are random numbers)."""
    return (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat16" else values
