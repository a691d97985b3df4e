"""What a model must be before it is trained or asked: of a type that can be trained, with weights that are numbers, and
with an embedding for every token id (an id beyond it would read memory that is not the table's).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import MODEL_REMAPPING

from mlxmath.errors import InputError, MlxmathError

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


_OF_POSITIONS = ("wpe", "position", "pos_emb")


def num_embeddings(model: nn.Module) -> int | None:
    """Rows of the embedding of the model's tokens; None where it has none of its own."""
    rows = [
        module.weight.shape[0]
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding | nn.QuantizedEmbedding) and not any(part in name for part in _OF_POSITIONS)
    ]
    return max(rows, default=None)


def check_ids(model: nn.Module, largest: int, what: str) -> None:
    """Refuse a token id that the model has no embedding for.

    Args:
        model: the model.
        largest: of the ids.
        what: where they are from, for the message.

    Raises:
        MlxmathError: it is beyond the embedding.
    """
    rows = num_embeddings(model)
    if rows is not None and largest >= rows:
        raise MlxmathError(
            f"{what} has the token id {largest}, but the embedding ends at {rows - 1}. The tokenizer is not this "
            "model's, or tokens were added to it and not to the embedding; use the tokenizer that came with the model."
        )


LARGEST = 1e10
"""Trained weights are below some hundreds; a square of 1e19 is no float32 any more."""
_AT_A_TIME = 1 << 24
"""Numbers that are looked at together, so that little memory is taken."""
_SHOWN = 5


def check_finite(source: Path, arrays: Mapping[str, mx.array]) -> None:
    """Refuse weights of which nothing sensible can come.

    Args:
        source: the file or folder that they are from.
        arrays: by name; arrays of whole numbers (packed weights) are passed over.

    Raises:
        MlxmathError: the arrays that hold NaN, an infinity or an absurd value are named, each with an example.
    """
    wrong = [f"{name} holds {found}" for name, array in arrays.items() if (found := _absurd(array)) is not None]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more arrays are like that" if len(wrong) > _SHOWN else ""
        raise MlxmathError(
            f"{source} is damaged or its training diverged: {', '.join(wrong[:_SHOWN])}{more}. Use another copy, or an "
            "earlier checkpoint."
        )


def _absurd(array: mx.array) -> float | None:
    """A value that a weight cannot have, if there is one."""
    if not mx.issubdtype(array.dtype, mx.floating):
        return None
    flat = array.reshape(-1)
    for start in range(0, flat.size, _AT_A_TIME):
        part = flat[start : start + _AT_A_TIME]
        is_wrong = ~(mx.abs(part) <= LARGEST)  # so that NaN is wrong too
        if is_wrong.any():
            value: float = part[mx.argmax(is_wrong)].item()
            return value
    return None
