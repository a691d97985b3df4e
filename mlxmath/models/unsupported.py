"""Model types of mlx_lm that cannot be trained, whatever the device, each with its reason."""

from collections.abc import Mapping
from typing import Any

from mlx_lm.utils import MODEL_REMAPPING

from mlxmath.errors import InputError

CANNOT_BE_TRAINED = {
    "bitnet": "its ternary weights are multiplied by a Metal kernel that has no gradient",
    "deepseek_v41": "what its attention looks at is chosen by indices through which mlx_lm has no gradient",
    "gemma3n": "its last blocks share keys and values where mlx_lm answers, and not where it takes a whole text at "
    "once, so that what trains would not be what answers",
    "muse_spark": "its attention is a Metal kernel that has no gradient",
    "olmo": "mlx_lm's attention fails on it for texts of more than one token (its successors, olmo2 and olmo3, train)",
    "phi3small": "mlx_lm's block-sparse attention shows each token the ones that come after it, the targets",
}
"""By mlx_lm's name of the type (of mlx_lm 0.32.2)."""


def refuse_untrainable(config: Mapping[str, Any]) -> None:
    """Say of a model that cannot be trained why not.

    Args:
        config: its config.json.

    Raises:
        InputError: it cannot be.
    """
    model_type = str(config.get("model_type"))
    reason = CANNOT_BE_TRAINED.get(MODEL_REMAPPING.get(model_type, model_type))
    if reason is not None:
        raise InputError(
            f"--model: models of type {model_type} cannot be trained: {reason}. Choose another base model."
        )
