"""Noise on the embeddings while training (NEFTune, Jain et al. 2023, arXiv:2310.05914).

To a row's embeddings e (L, D) comes noise of the uniform distribution between −α / √(L D) and α / √(L D). L are the
positions of a row of the micro-batch, as in transformers: padding counts, and so do all texts of a packed row.

Shapes: B rows, L positions, D hidden width.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxmath.data.batch import Batch
from mlxmath.models.load import token_embedding
from mlxmath.training.gradients import Gradients, Tree

_ALPHA = "noise_alpha"


class NoisyGradients:
    """Gradients with noise on the embeddings, losses without; see `Gradients`.

    The noise comes of MLX's random state, which is a key of each micro-batch's own: a resumed run draws the same.

    Args:
        model: whose embedding it is.
        inner: computes both.
        alpha: α.

    Raises:
        MlxmathError: the model has no embedding.
    """

    def __init__(self, model: nn.Module, inner: Gradients, alpha: float) -> None:
        self.how, self.takes_parts = f"{inner.how}, with noise on the embeddings", inner.takes_parts
        self.cannot_share, self.cannot_pack, self.loss = inner.cannot_share, inner.cannot_pack, inner.loss
        self._embedding, self._inner, self._alpha = token_embedding(model), inner, alpha

    def loss_and_gradients(self, batch: Batch) -> tuple[mx.array, Tree]:
        """See `Gradients`."""
        with noisy(self._embedding, self._alpha):
            return self._inner.loss_and_gradients(batch)


@contextmanager
def noisy(embedding: nn.Module, alpha: float) -> Iterator[None]:
    """While it lasts, this one instance gives its vectors with noise."""
    kind: Any = type(embedding)
    embedding.__class__ = _noisy(kind)
    object.__setattr__(embedding, _ALPHA, alpha)
    try:
        yield
    finally:
        embedding.__class__ = kind
        object.__delattr__(embedding, _ALPHA)


@cache
def _noisy(kind: Any) -> Any:
    def call(self: nn.Module, tokens_BL: mx.array) -> mx.array:
        vectors_BLD: mx.array = kind.__call__(self, tokens_BL)
        most = vars(self)[_ALPHA] / math.sqrt(vectors_BLD.shape[-2] * vectors_BLD.shape[-1])
        return vectors_BLD + mx.random.uniform(-most, most, vectors_BLD.shape, vectors_BLD.dtype)

    return type(kind.__name__, (kind,), {"__call__": call})
