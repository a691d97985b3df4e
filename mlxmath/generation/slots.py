"""How many sequences are decoded together: as many as pay off on the device and fit its memory."""

from collections.abc import Mapping
from typing import Any

from mlxmath.errors import MlxmathError
from mlxmath.models.memory import ModelShape, slot_bytes
from mlxmath.runtime.device import DeviceInfo

_PAYS_OFF = {"cpu": 128, "metal": 64, "cuda": 256}
"""Sequences beyond which a device makes hardly more tokens a second. With half of them it makes some 15 % less."""
_ON_DISK = 4
"""Times as many where each step waits for the disk."""
_WORTH_MEMORY = {"cpu": 32, "metal": 32, "cuda": 128}
"""Sequences that are worth memory which nothing else needs."""
_SHARE = 0.8
"""Of the free memory."""


def choose_slots(
    model_config: Mapping[str, Any],
    device: DeviceInfo,
    *,
    held_bytes: int,
    longest: int,
    prompt: int = 0,
    group_size: int = 1,
    needed_bytes: int | None = None,
    asked: int | None = None,
    on_disk: bool = False,
) -> tuple[int, str]:
    """Sequences to decode together, and why.

    Args:
        model_config: config.json.
        device: where it runs.
        held_bytes: memory in use already, the weights among it.
        longest: tokens of the longest prompt and answer together.
        prompt: those of its prompt that are held once for `group_size` answers.
        group_size: answers to a prompt.
        needed_bytes: memory in use and needed later anyway. More is taken only for the sequences that are worth it.
        asked: as many as somebody asks for.
        on_disk: each step reads the model's blocks, so that more sequences pay off.
    """
    if asked is not None:
        return asked, "asked for"
    most = _PAYS_OFF[device.backend] * (_ON_DISK if on_disk else 1)
    try:
        shape = ModelShape.from_config(model_config)
    except MlxmathError:
        return min(most, 16), "the model's shape is not known"
    itemsize = 4 if device.compute_dtype == "float32" else 2
    each = slot_bytes(shape, itemsize, prompt=prompt, own=longest - prompt, group_size=group_size)
    fitting = int(_SHARE * max(0, device.memory_bytes - held_bytes) / each)
    size = f"{each / 1e6:,.0f} MB each at {longest:,} tokens"
    enough = most if needed_bytes is None else max(_WORTH_MEMORY[device.backend], (needed_bytes - held_bytes) // each)
    if fitting < min(most, enough):
        return max(1, fitting), f"as many as fit: {size}"
    if enough < most:
        return enough, f"more would take more memory than learning: {size}"
    return most, f"more do not pay off on {device.backend}"
