"""How many sequences are decoded together: as many as pay off on the device and fit its memory."""

from collections.abc import Mapping
from typing import Any

from mlxmath.backends.base import DeviceInfo
from mlxmath.errors import MlxmathError
from mlxmath.models.memory import ModelShape

_PAYS_OFF = {"cpu": 32, "metal": 64, "cuda": 256}
"""Sequences beyond which a device makes hardly more tokens a second."""
_SHARE = 0.6
"""Of the free memory; growing caches are copied, and so exist twice for a moment."""


def cache_bytes_per_token(shape: ModelShape, itemsize: int) -> int:
    """Bytes of a token's keys and values in all layers."""
    return 2 * shape.layers * shape.kv_heads * shape.head_width * itemsize


def choose_slots(
    model_config: Mapping[str, Any], device: DeviceInfo, *, held_bytes: int, longest: int
) -> tuple[int, str]:
    """Sequences to decode together, and why.

    Args:
        model_config: config.json.
        device: where it runs.
        held_bytes: memory in use already, the weights among it.
        longest: tokens of the longest prompt and answer together.
    """
    most = _PAYS_OFF[device.backend]
    try:
        shape = ModelShape.from_config(model_config)
    except MlxmathError:
        return min(most, 16), "the model's shape is not known"
    itemsize = 4 if device.compute_dtype == "float32" else 2
    each = 2 * cache_bytes_per_token(shape, itemsize) * longest + 3 * 4 * shape.vocab
    fitting = int(_SHARE * max(0, device.memory_bytes - held_bytes) / each)
    if fitting < most:
        return max(1, fitting), f"as many as fit: {each / 1e6:,.0f} MB each at {longest:,} tokens"
    return most, f"more do not pay off on {device.backend}"
