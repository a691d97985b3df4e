"""Stored tensors that the original model computes with and mlx_lm's does not: `sanitize` drops them in silence."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlxmath.errors import MlxmathError
from mlxmath.weights.architecture import Built, build, shortened
from mlxmath.weights.tensors import TensorRef

_BUFFERS = re.compile(
    r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$|\.(masked_bias|position_ids)$|\.(attn|attention)\.bias$"
)
"""What models have saved besides their weights, and compute themselves."""
_OF_OTHER_PARTS = re.compile(r"(^|[._])(vision|visual|image|audio|speech|mtp|nextn|multi_modal|mm)([._]|$)")
"""Of what sees or hears, and of heads that predict further tokens: no part of a language model."""


def left_out(config: Mapping[str, Any], tensors: Mapping[str, TensorRef], built: Built) -> str | None:
    """A sentence that names what of a language model mlx_lm drops, although it is not zero; None if there is nothing.

    A tensor of which the model keeps no trace is one without which it comes out the same. Those of all blocks with one
    name are tried at once.

    Args:
        config: config.json as mlx_lm reads it.
        tensors: by the names with which the model was built.
        built: the model for all of them.
    """
    taken = frozenset(built.origins.values())
    groups: dict[str, list[str]] = {}
    for name in tensors:
        if name not in taken and not _is_no_part(name, config):
            groups.setdefault(re.sub(r"\d+", "#", name), []).append(name)
    dropped = [
        name
        for names in groups.values()
        if _same_without(frozenset(names), config, tensors, built)
        for name in names
        if not _is_zero(tensors[name])
    ]
    if not dropped:
        return None
    return (
        f"mlx_lm's model does without {len(dropped)} tensors that the original computes with, so it answers otherwise: "
        f"{shortened(dropped, 3)}"
    )


def _is_no_part(name: str, config: Mapping[str, Any]) -> bool:
    """Whether the original language model has no use for a tensor either."""
    inner = config.get("text_config")
    table = {**config, **inner} if isinstance(inner, dict) else config
    is_tied = table.get("tie_word_embeddings") is not False and name.endswith("lm_head.weight")
    return is_tied or is_spare(name, config) or _OF_OTHER_PARTS.search(name) is not None


def is_spare(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a tensor is one that a model computes itself, or of a block after the last: that predicts more tokens."""
    inner = config.get("text_config")
    table = inner if isinstance(inner, dict) else config
    count = next((table[key] for key in ("num_hidden_layers", "num_layers", "n_layer") if key in table), None)
    number = re.search(r"layers\.(\d+)\.", name)
    more = table.get("num_nextn_predict_layers") or 0
    is_beyond = isinstance(count, int) and number is not None and count <= int(number[1]) < count + more
    return is_beyond or _BUFFERS.search(name) is not None


def _same_without(
    names: frozenset[str], config: Mapping[str, Any], tensors: Mapping[str, TensorRef], built: Built
) -> bool:
    declared = [(name, each.dtype, each.shape) for name, each in tensors.items() if name not in names]
    try:
        other = build(config, declared)
    except MlxmathError:
        return False
    return (other.problems, dict(other.origins), _shapes(other)) == (
        built.problems, dict(built.origins), _shapes(built)
    )  # fmt: skip


def _shapes(built: Built) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in built.arrays.items()}


def _is_zero(tensor: TensorRef) -> bool:
    """Whether all elements are zero, of either sign."""
    sign = np.uint16(0x8000) if tensor.dtype == "bfloat16" else None  # held as its bits
    return not any(np.any(block if sign is None else block & ~sign) for block in tensor.blocks())
