"""LongRoPE as other programs compute it: a converted config.json has the factors for short texts twice, for mlx_lm."""

import copy
from collections.abc import Mapping
from typing import Any

from mlxmath.weights.architecture import text_part
from mlxmath.weights.rotary import LONG_FACTORS, kind_of, longrope_attention


def with_long_factors(config: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The configuration of a converted model with the source's factors for long texts, and notes for the user.

    A model that was converted before these were kept ends where they would begin.

    Args:
        config: config.json, or the part of it that describes the text model.
    """
    found, notes = copy.deepcopy(dict(config)), list[str]()
    if inner := text_part(found):
        found["text_config"], of_part = with_long_factors(inner)
        notes += of_part
    factors = found.pop(LONG_FACTORS, None)
    ropes = [rope for name in ("rope_scaling", "rope_parameters") if isinstance(rope := found.get(name), dict)]
    for rope in ropes:
        if kind_of(rope) != "longrope":
            continue
        original = int(rope.get("original_max_position_embeddings") or found["original_max_position_embeddings"])
        whole = int(config.get("max_position_embeddings") or original)
        if factors is not None:
            rope["long_factor"] = factors
        elif whole > original:
            rope.setdefault("attention_factor", longrope_attention(original, whole))  # else it follows from the context
            found["max_position_embeddings"] = original
            notes.append(
                f"LongRoPE's factors for texts beyond {original:,} tokens were not kept when the model was converted, "
                "so its context is written as that; convert it again to keep them"
            )
    return found, tuple(dict.fromkeys(notes))
