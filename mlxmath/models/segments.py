"""A block's own modules, called in four parts, between which stand its attention and its SwiGLU.

A part is computed by calling the layer itself, whose attention or SwiGLU function gives way to a probe: one that notes
what it is given, or one that returns what was computed elsewhere. So any adapter on any of the layers takes part.

Gradients are those of what is trained in a part, by autodiff of that part alone.

Shapes: B rows, L positions, D hidden width, F width of the MLP, H heads.
"""

import functools
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn

from mlxmath.models.layouts import Attended, Rows
from mlxmath.models.linear import laziness, left_to_mlx

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
            return [parameter for name in names for parameter in parameters_of(block[name], f"{name}.")]

        return cls(under("self_attn", "input_layernorm"), under("mlp", "post_attention_layernorm"))


def parameters_of(module: nn.Module, path: str = "") -> list[Parameter]:
    """The trainable arrays in a module, which is at `path` in its block."""
    return [
        Parameter(f"{path}{inner}.{key}" if inner else f"{path}{key}", part, key)
        for inner, part in module.named_modules()
        for key, value in part.items()
        if isinstance(value, mx.array) and part.trainable_parameter_filter(part, key, value)
    ]


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


_ATTENTION, _SWIGLU = "scaled_dot_product_attention", "swiglu"
_PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")


def unsupported(block: nn.Module) -> str | None:
    """Why a block cannot be called in parts; None if it can, for all that its form tells."""
    if not all(hasattr(block, name) for name in _PARTS):
        return f"its blocks are not {', '.join(_PARTS)}"
    if not hasattr(_home(block.self_attn), _ATTENTION):
        return "its blocks compute attention in their own way"
    return None


def prepare(block: nn.Module) -> None:
    """Let the block's attention and SwiGLU give way to probes; needed once before its parts are called."""
    _make_replaceable(_home(block.self_attn), _ATTENTION)
    prepare_swiglu(block.mlp)


def prepare_swiglu(mlp: nn.Module) -> None:
    """Let the layer's SwiGLU, if it has one, give way."""
    if hasattr(_home(mlp), _SWIGLU):
        _make_replaceable(_home(mlp), _SWIGLU)


@contextmanager
def swiglu_by(function: Callable[[mx.array, mx.array], mx.array]) -> Iterator[None]:
    """Let `function` compute the SwiGLU of models that this thread calls."""
    _probes.by_name[_SWIGLU] = function
    try:
        yield
    finally:
        del _probes.by_name[_SWIGLU]


def prepare_attention(model: nn.Module) -> None:
    """Let all of a model's attention functions give way; needed once before `attention_by`."""
    for home in {_home(module) for module in model.modules()}:
        if hasattr(home, _ATTENTION):
            _make_replaceable(home, _ATTENTION)


@contextmanager
def attention_by(function: Callable[..., mx.array]) -> Iterator[None]:
    """In this thread models call `function` for mlx_lm's attention. May be nested."""
    before = dict(_probes.by_name)
    _probes.by_name[_ATTENTION] = function
    try:
        yield
    finally:
        _probes.by_name = before


def project(block: nn.Module, x: mx.array, rows: Rows) -> Attended:
    """Queries, keys and values of a block's input (B, L, D)."""
    seen: list[Attended] = []

    def probe(q: mx.array, k: mx.array, v: mx.array, cache: Any, scale: float, mask: Any) -> mx.array:  # noqa: ARG001
        if not is_causal(mask):
            raise ValueError("a mask of its own")
        seen.append(Attended(q, k, v, scale))
        return mx.zeros((*q.shape[:-1], v.shape[-1]), q.dtype)

    with _replaced(_ATTENTION, probe, wanted="before"):
        block.self_attn(block.input_layernorm(x), mask="causal", cache=rows.cache)
    return seen[0]


def output(block: nn.Module, x: mx.array, o: mx.array, rows: Rows) -> mx.array:
    """What attention's output `o` (B, H, L, D/H) adds to the block's input `x`."""
    with _replaced(_ATTENTION, lambda *_, **__: o, wanted="after"):
        return block.self_attn(block.input_layernorm(x), mask="causal", cache=rows.cache)


def gate_up(block: nn.Module, h: mx.array) -> tuple[mx.array, mx.array]:
    """The two inputs of SwiGLU (B, L, F), given what the MLP is added to."""
    seen: list[tuple[mx.array, mx.array]] = []

    def probe(gate: mx.array, up: mx.array) -> mx.array:
        seen.append((gate, up))
        return mx.zeros(gate.shape, gate.dtype)

    with _replaced(_SWIGLU, probe, wanted="before"):
        block.mlp(block.post_attention_layernorm(h))
    return seen[0]


def whole_mlp(block: nn.Module, h: mx.array) -> mx.array:
    """What the MLP adds to `h`, in one part: of experts, say, whose input counts for more than SwiGLU."""
    return block.mlp(block.post_attention_layernorm(h))


def is_causal(mask: Any) -> bool:
    """Whether an attention's mask is the plain causal one."""
    return isinstance(mask, str) and mask == "causal"


def down(block: nn.Module, h: mx.array, activated: mx.array) -> mx.array:
    """What SwiGLU's output `activated` (B, L, F) adds to `h`."""
    with _replaced(_SWIGLU, lambda *_: activated, wanted="after"):
        return block.mlp(block.post_attention_layernorm(h))


def _home(module: nn.Module) -> ModuleType:
    """The Python module in which a layer's class is defined, where it looks its functions up."""
    return sys.modules[type(module).__module__]


class _Probes(threading.local):
    """What stands in for a model's attention and SwiGLU, by their names, in this thread."""

    def __init__(self) -> None:
        self.by_name: dict[str, Callable[..., Any]] = {}


_probes = _Probes()


def _make_replaceable(home: ModuleType, name: str) -> None:
    """Let the function `name` of a module give way to this thread's probe, where there is one."""
    original = getattr(home, name)
    if hasattr(original, "gives_way"):
        return

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        return _probes.by_name.get(name, original)(*args, **kwargs)

    call.gives_way = True  # type: ignore[attr-defined]
    setattr(home, name, call)


@contextmanager
def _replaced(name: str, function: Callable[..., Any], *, wanted: Literal["before", "after"]) -> Iterator[None]:
    """Let the model call `function` for its function `name`; only products before, or after, that call are wanted."""
    was_lazy = laziness.on

    def call(*args: Any, **kwargs: Any) -> Any:
        laziness.on = was_lazy or wanted == "before"
        return function(*args, **kwargs)

    _probes.by_name[name] = call
    laziness.on = was_lazy or wanted == "after"
    try:
        yield
    finally:
        del _probes.by_name[name]
        laziness.on = was_lazy
