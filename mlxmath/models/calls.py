"""Lets a function stand in for a module's own call for a while: to see what a model gives its parts, or to part it.

Only the one instance changes, by its class, so replicas of a model may be used in several threads at once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn

ERRORS = (AttributeError, IndexError, KeyError, NotImplementedError, TypeError, ValueError)
"""What a model raises that is called in a way it is not made for."""
_FUNCTION = "stands_in"


@contextmanager
def standing_in(module: nn.Module, function: Callable[..., Any], method: str = "__call__") -> Iterator[None]:
    """While it lasts, `module.method(…)` is `function(…)`. May be nested for one module; the innermost is called."""
    kind: Any = type(module)
    before = vars(module).get(_FUNCTION)
    module.__class__ = _giving_way(kind, method)
    object.__setattr__(module, _FUNCTION, function)
    try:
        yield
    finally:
        module.__class__ = kind
        if before is None:
            object.__delattr__(module, _FUNCTION)
        else:
            object.__setattr__(module, _FUNCTION, before)


@cache
def _giving_way(kind: Any, method: str) -> Any:
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return vars(self)[_FUNCTION](*args, **kwargs)

    return type(kind.__name__, (kind,), {method: call})


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Dropout would make a difference of its own, and draw random numbers that are the training's."""
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout) and module.training]
    for module in dropouts:
        module.eval()
    try:
        yield
    finally:
        for module in dropouts:
            module.train()


def looks_at_values(model: nn.Module, forward: Callable[[mx.array], object]) -> bool:
    """Whether a model, in training mode, looks at what it computes, which `mx.compile` refuses. Nothing is computed."""
    try:
        with without_dropout(model):
            mx.compile(lambda tokens_BL: forward(tokens_BL))(mx.zeros((1, 2), mx.int32))
    except ValueError as error:  # anything else is raised again, where a step is computed
        return "[eval]" in str(error)
    return False


class _Reached(Exception):  # noqa: N818 (not an error: the way out of a model at the point wanted)
    def __init__(self, module: nn.Module, array: mx.array) -> None:
        super().__init__()
        self.module, self.array = module, array


def given_to(module: nn.Module, run: Callable[[], object], method: str = "__call__") -> mx.array:
    """The first argument with which `run()` first calls `module.method`; the rest of `run()` is left out.

    Raises:
        ValueError: it never does.
    """

    def leave(first: mx.array, *_: Any, **__: Any) -> None:
        raise _Reached(module, first)

    return _left(module, run, leave, method)


def made_by(module: nn.Module, run: Callable[[], object]) -> mx.array:
    """What `module(…)` first returns in `run()`, the rest of which is left out.

    Raises:
        ValueError: it is never called.
    """
    call = type(module).__call__

    def leave(*args: Any, **kwargs: Any) -> None:
        raise _Reached(module, call(module, *args, **kwargs))

    return _left(module, run, leave, "__call__")


def _left(module: nn.Module, run: Callable[[], object], leave: Callable[..., None], method: str) -> mx.array:
    with standing_in(module, leave, method):
        try:
            run()
        except _Reached as reached:
            if reached.module is not module:
                raise
            return reached.array
    raise ValueError(f"the model does not call its {type(module).__name__}")
