"""What is trained of a block, and the gradients of one of its segments."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlxmath.models.numpy_linear import left_to_mlx

Gradients = dict[str, mx.array]
"""By the names of the parameters."""


@dataclass(frozen=True)
class Parameter:
    """A trainable array: `module[key]`."""

    name: str
    """In its block."""
    module: nn.Module
    key: str


@dataclass(frozen=True)
class Trained:
    """The trainable parameters of a block, by the half of it that they belong to."""

    attention: list[Parameter]
    mlp: list[Parameter]

    @classmethod
    def of(cls, block: nn.Module) -> "Trained":
        """Found once: to look through a block's modules takes as long as to build its graph."""

        def under(*names: str) -> list[Parameter]:
            return [
                Parameter(f"{name}.{inner}.{key}" if inner else f"{name}.{key}", module, key)
                for name in names
                for inner, module in block[name].named_modules()
                for key, value in module.items()
                if isinstance(value, mx.array) and module.trainable_parameter_filter(module, key, value)
            ]

        return cls(under("self_attn", "input_layernorm"), under("mlp", "post_attention_layernorm"))


def vjp(
    parameters: list[Parameter],
    function: Callable[..., tuple[mx.array, ...]],
    inputs: list[mx.array],
    cotangents: list[mx.array],
    *,
    known: bool = True,
) -> tuple[list[mx.array], Gradients]:
    """Gradients of `inputs` and, by their names, of the parameters; `known`: all that they need is computed already."""
    values = [each.module[each.key] for each in parameters]

    def of_everything(*arrays: mx.array) -> tuple[mx.array, ...]:
        _put(parameters, arrays[len(inputs) :])
        return function(*arrays[: len(inputs)])

    try:
        with left_to_mlx() if known else nullcontext():
            _, found = mx.vjp(of_everything, [*inputs, *values], cotangents)
    finally:
        _put(parameters, values)
    return list(found[: len(inputs)]), {
        each.name: gradient for each, gradient in zip(parameters, found[len(inputs) :], strict=True)
    }


def _put(parameters: list[Parameter], values: Sequence[mx.array]) -> None:
    for each, value in zip(parameters, values, strict=True):
        each.module[each.key] = value


def summed(*parts: Gradients) -> Gradients:
    """The sums of gradients of the same name."""
    total: Gradients = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total[name] + value if name in total else value
    return total


class Replay:
    """The random states at the beginning of each segment, so that dropout masks are those of the forward pass.

    Args:
        needed: whether anything is random.
        *segments: all but the last, which draw in this order; they are gone through for the states, and not computed.
    """

    def __init__(self, needed: bool, *segments: Callable[[], object]) -> None:
        self._states: list[mx.array] = []
        if not needed:
            return
        self._states.append(mx.array(mx.random.state[0]))
        for segment in segments:
            with left_to_mlx():
                segment()
            self._states.append(mx.array(mx.random.state[0]))
        mx.eval(self._states)

    def to(self, index: int) -> None:
        """Put the state of segment `index` back."""
        if self._states:
            mx.random.state[0][:] = self._states[index]
