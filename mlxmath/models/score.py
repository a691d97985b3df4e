"""The score head of a reward model: a vector whose scalar product with a hidden state is a score.

Shapes: D hidden width.
"""

import math

import mlx.core as mx
import mlx.nn as nn

from mlxmath.errors import MlxmathError
from mlxmath.models.lm_head import split


def add_score_head(model: nn.Module) -> None:
    """Give the model a trainable `score`, (1, D) in float32, drawn normally with deviation 1 / √(D + 1).

    Raises:
        MlxmathError: the model's hidden states cannot be had.
    """
    parts = split(model)
    if isinstance(parts, str):
        raise MlxmathError(f"a reward model needs hidden states, which this model does not give: {parts}.")
    width = parts.hidden(mx.array([[0]])).shape[-1]
    model.score = nn.Linear(width, 1, bias=False)
    model.score.weight = mx.random.normal((1, width)) / math.sqrt(width + 1)
    mx.eval(model.score.weight)
