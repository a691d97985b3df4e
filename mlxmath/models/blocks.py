"""A model's blocks: where they are, of which kinds, whether they follow one another, and the model with only some.

Shapes: B rows, L positions, D hidden width.
"""

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlxmath.models import segments
from mlxmath.models.calls import ERRORS, standing_in
from mlxmath.models.layouts import Rows
from mlxmath.models.linear import left_to_mlx

_LONG = 1 << 20
"""Positions, more than any window has."""


def path_of_blocks(model: nn.Module) -> str:
    """Where the list of the model's blocks is, for example `model.layers`."""
    first = model.layers[0]
    return next(path for path, module in model.named_modules() if module is first).rpartition(".")[0]


def kinds_of(blocks: Sequence[nn.Module]) -> list[Hashable]:
    """The kind of each block: its modules, the arrays' shapes and types, what is trained, and its settings.

    A number that only counts the blocks is no setting.
    """
    settings = [_settings(block) for block in blocks]
    counts = {name for name in settings[0] if _counts([each.get(name) for each in settings])}
    return [
        (
            *((path, type(module)) for path, module in block.named_modules()),
            *((path, array.shape, array.dtype) for path, array in tree_flatten(block.parameters())),
            *(path for path, _ in tree_flatten(block.trainable_parameters())),
            *((name, value) for name, value in each.items() if name not in counts),
        )
        for block, each in zip(blocks, settings, strict=True)
    ]


def _settings(block: nn.Module) -> dict[str, Any]:
    """Plain values that a block's modules hold, by path."""
    return {
        f"{path}.{name}": value
        for path, module in block.named_modules()
        for name, value in {**vars(module), **module}.items()
        if isinstance(value, bool | int | float | str) and name != "_training"
    }


def _counts(values: Sequence[Any]) -> bool:
    return all(type(value) is int for value in values) and len({value - i for i, value in enumerate(values)}) == 1


def few_of(blocks: Sequence[nn.Module], run: Callable[[], object], most: int) -> list[int]:
    """The numbers of the first blocks of each kind; of all if some give more than an array on, as `run()` shows."""
    passes = True

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def watch(*args: Any, **kwargs: Any) -> Any:
            nonlocal passes
            output = call(*args, **kwargs)
            passes = passes and isinstance(output, mx.array)
            return output

        return watch

    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(standing_in(block, watched(partial(type(block).__call__, block))))
        run()
    seen: Counter[Hashable] = Counter()
    chosen = []
    for number, kind in enumerate(kinds_of(blocks)):
        seen[kind] += 1
        if seen[kind] <= most or not passes:
            chosen.append(number)
    return chosen


@contextmanager
def only(blocks: Sequence[nn.Module], chosen: Collection[int], added: mx.array | None = None) -> Iterator[None]:
    """All blocks but the chosen ones pass on what they are given, to which `added` is added before the first of all."""
    with ExitStack() as stack:
        for number, block in enumerate(blocks):
            call = partial(type(block).__call__, block) if number in chosen else _through
            if number == 0 and added is not None:
                call = _after_adding(added, call)
            if number not in chosen or number == 0:
                stack.enter_context(standing_in(block, call))
        yield


def _through(x: mx.array, *_: Any, **__: Any) -> mx.array:
    return x


def _after_adding(added: mx.array, call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, *args, **kwargs: call(x + added, *args, **kwargs)


def against_a_chain(model: nn.Module, hidden: Callable[[mx.array], mx.array]) -> str | None:
    """What is against blocks that follow one another, each given the last one's output and a causal mask alone.

    Seen from what the model gives its blocks for a row longer than any window, of which nothing is computed.

    Args:
        model: its blocks are looked at.
        hidden: its hidden states (B, L, D) of tokens (B, L).
    """
    passed: list[mx.array] = []
    reason: str | None = None
    kinds = kinds_of(model.layers)

    def noted(number: int) -> Any:
        def call(x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
            nonlocal reason
            given = [value for value in (*args, *kwargs.values()) if value is not None]
            if number != len(passed) or (passed and x is not passed[-1]):
                reason = reason or "its blocks do not follow one another"
            if any(isinstance(value, mx.array) and value.shape[-2:] == (_LONG, _LONG) for value in given):
                reason = reason or "its attention is windowed, or has another mask of its own"
            elif not all(map(segments.is_causal, given)):
                reason = reason or "its blocks are given more than a causal mask"
            passed.append(mx.broadcast_to(mx.zeros((), x.dtype), x.shape))
            return passed[-1]

        return call

    try:
        with left_to_mlx(), ExitStack() as stack:
            for number, block in enumerate(model.layers):
                stack.enter_context(standing_in(block, noted(number)))
            hidden(mx.broadcast_to(mx.zeros((), mx.int32), (1, _LONG)))
            if reason or len(passed) != len(kinds):
                return reason or "its blocks do not follow one another"
            for number in map(kinds.index, dict.fromkeys(kinds)):
                a = segments.project(model.layers[number], passed[0], Rows(mx.zeros((1, 1), mx.int32)))
                if a.k.shape[2] != _LONG:
                    return "its attention is windowed"
    except ERRORS as error:
        return f"its blocks need other arguments ({error})"
    return None
