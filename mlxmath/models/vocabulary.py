"""Token ids against the embedding: an id beyond it would read memory that is not the table's."""

import mlx.nn as nn

from mlxmath.errors import MlxmathError

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
