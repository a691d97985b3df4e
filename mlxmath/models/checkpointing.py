"""Blocks that are computed again in the backward pass, whose activations are not kept."""

from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from mlxmath.models.layouts import PackedCache

Tree = Any
_PLAIN = "computes_once"
"""Of a checkpointed class, the class that keeps its activations."""


def checkpoint_blocks(model: nn.Module, every: int) -> None:
    """Recompute every n-th block in the backward pass (0: none), and no other. Changes these instances only.

    Not where a block is given an object in which blocks leave arrays for later ones (Kimi K3's residuals, the keys and
    values that AFM 7 uses again): `mx.checkpoint` sees no gradient in it. The random state goes into a block and comes
    out of it, so that what is drawn again is the same.
    """
    for number, block in enumerate(model.layers):
        plain: Any = getattr(type(block), _PLAIN, type(block))
        block.__class__ = _checkpointed(plain) if every and number % every == 0 else plain


@cache  # blocks of one kind are of one class
def _checkpointed(plain: Any) -> Any:
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not all(_is_plain(value) for value in (*args, *kwargs.values())):
            return plain.__call__(self, *args, **kwargs)

        def inner(parameters: Tree, *args: Any, **kwargs: Any) -> Any:
            self.update(parameters)
            args, kwargs = tree_map(_without_gradient, (args, kwargs))
            return plain.__call__(self, *args, **kwargs)

        def drawing(parameters: Tree, state: mx.array, *args: Any, **kwargs: Any) -> Any:
            before = mx.array(mx.random.state[0])
            mx.random.state[0][:] = mx.stop_gradient(state)
            output, after = inner(parameters, *args, **kwargs), mx.array(mx.random.state[0])
            mx.random.state[0][:] = before
            return output, after

        parameters = self.trainable_parameters()
        if not any(isinstance(module, nn.Dropout) and module._p_1 < 1 for module in self.modules()):
            return mx.checkpoint(inner)(parameters, *args, **kwargs)
        output, after = mx.checkpoint(drawing)(parameters, mx.array(mx.random.state[0]), *args, **kwargs)
        mx.random.state[0][:] = mx.stop_gradient(after)
        return output

    return type(f"Checkpointed{plain.__name__}", (plain,), {"__call__": call, _PLAIN: plain})


def _without_gradient(value: Any) -> Any:
    """A mask or indices, whose gradient `mx.checkpoint` would ask for: CUDA's attention has none, and MLX raises."""
    is_whole = isinstance(value, mx.array) and not mx.issubdtype(value.dtype, mx.inexact)
    return mx.stop_gradient(value) if is_whole else value


def _is_plain(value: Any) -> bool:
    """Whether all arrays in an argument of a block are to be seen, or have no gradient."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, mx.array | str | int | float | PackedCache)
