"""A transformer's forward and backward pass, block by block, with the few arrays kept that are worth keeping.

Autodiff over a whole model keeps what each operation needs and must see every operation. Here a block is five segments
with two kernels between them; the arrays between the segments are kept (or, under checkpointing, only the block's
input), and the backward pass differentiates one segment at a time. MLX is lazy, so a segment's own products are not
computed again: only its gradients are asked for.

    q, k, v = project(norm(x))        kept: x, q, k, v
    o = attention(q, k, v)            kept: o              (a kernel)
    h = x + output(o)                 kept: h
    g, u = gate(norm(h)), up(norm(h)) kept: g, u
    y = h + down(swiglu(g, u))                             (swiglu is a kernel, computed again if down is trained)

The segments are the model's own modules, called with its attention and swiglu functions replaced by probes, so any
adapter on any of their layers takes part.

Shapes: B rows, L positions, D hidden width.
"""

import functools
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlxmath.kernels.base import Kernels
from mlxmath.kernels.portable import PortableKernels
from mlxmath.models.layouts import Attended, Layout, Output, Rows
from mlxmath.models.numpy_linear import laziness

Gradients = dict[str, mx.array]
_ATTENTION, _SWIGLU = "scaled_dot_product_attention", "swiglu"


@dataclass
class _Kept:
    """What a block's forward pass leaves for its backward pass; under checkpointing only `x` and the random state."""

    x: mx.array
    random_state: mx.array | None
    inner: tuple[Attended, Output, mx.array, mx.array, mx.array] | None = None


@dataclass
class Tape:
    """The arrays that a backward pass needs."""

    blocks: list[_Kept]
    last: mx.array
    rows: Layout


class Blockwise:
    """Computes hidden states and the gradients of the blocks' trainable parameters.

    Args:
        model: an mlx_lm model that `unsupported` has nothing against.
        kernels: the device's.
        checkpoint_every: keep only the input of every n-th block and compute the rest again (0: of none, 1: of all).
    """

    def __init__(self, model: nn.Module, kernels: Kernels, checkpoint_every: int = 0) -> None:
        self._body = model.model
        self._kernels, self._portable = kernels, PortableKernels()
        for block in self._body.layers:
            _make_replaceable(_home(block.self_attn), _ATTENTION)
            _make_replaceable(_home(block.mlp), _SWIGLU)
        self._checkpoint_every = checkpoint_every
        self._trained = [_Trained.of(block) for block in self._body.layers]
        having = (i for i, trained in enumerate(self._trained) if trained.attention or trained.mlp)
        self._first = next(having, len(self._body.layers))
        self._random = any(isinstance(m, nn.Dropout) and m._p_1 < 1 for m in model.modules())

    @staticmethod
    def unsupported(model: nn.Module) -> str | None:
        """Why the model cannot be computed block by block; None if it can."""
        body = getattr(model, "model", None)
        parts = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
        if body is None or not all(hasattr(body, name) for name in ("embed_tokens", "layers", "norm")):
            return "its body is not embedding, blocks and norm"
        for block in body.layers:
            if not all(hasattr(block, name) for name in parts):
                return f"its blocks are not {', '.join(parts)}"
            if not hasattr(_home(block.self_attn), _ATTENTION) or not hasattr(_home(block.mlp), _SWIGLU):
                return "its blocks compute attention or SwiGLU in their own way"
            if getattr(block, "use_sliding", False):
                return "its attention is windowed"
        outside = [name for name, _ in tree_flatten(model.trainable_parameters()) if ".layers." not in f".{name}"]
        if outside:
            return "more than its blocks is trained"
        tokens_BL = mx.arange(7)[None] % body.embed_tokens.weight.shape[0]
        was_training = model.training
        model.eval()
        expected = body(tokens_BL)
        try:
            found, _ = Blockwise(model, PortableKernels()).forward(Rows(tokens_BL))
        except (AttributeError, TypeError, ValueError, KeyError) as error:
            return f"its blocks need other arguments ({error})"
        finally:
            model.train(was_training)
        tolerance = 1e-3 if expected.dtype == mx.float32 else 5e-2
        if not mx.allclose(found.astype(mx.float32), expected.astype(mx.float32), rtol=tolerance, atol=tolerance):
            return "its blocks are put together in another way"
        return None

    def forward(self, rows: Layout, *, keep: bool = True) -> tuple[mx.array, Tape]:
        """Hidden states (B, L, D) after the last norm, and the tape (of no use without `keep`)."""
        x = self._body.embed_tokens(rows.tokens_BL)
        kept = []
        for number in range(len(self._body.layers)):
            entry = _Kept(x, mx.array(mx.random.state[0]) if self._random else None)
            x, inner = self._block_forward(number, x, rows)
            if not (rows.recomputed or (self._checkpoint_every and number % self._checkpoint_every == 0)):
                entry.inner = inner
            mx.async_eval(x)
            if keep and number >= self._first:
                kept.append(entry)
        return self._body.norm(x), Tape(kept, x, rows)

    def backward(self, tape: Tape, d_hidden_BLD: mx.array) -> Gradients:
        """Gradients of the trainable parameters by their full names, given those of the hidden states.

        Frees the tape as it goes.
        """
        gradients: Gradients = {}
        _, (d,) = mx.vjp(self._body.norm, [tape.last], [d_hidden_BLD])
        state_after = mx.array(mx.random.state[0]) if self._random else None
        for number in range(len(self._body.layers) - 1, self._first - 1, -1):
            entry = tape.blocks.pop()
            if entry.random_state is not None:
                mx.random.state[0][:] = entry.random_state
            d, found = self._block_backward(number, entry, tape.rows, d, last=number == self._first)
            mx.async_eval(d, found)
            gradients |= {f"model.layers.{number}.{name}": value for name, value in found.items()}
        if state_after is not None:
            mx.random.state[0][:] = state_after
        return gradients

    # The five segments. Each takes the block and its inputs and gives its outputs.

    @staticmethod
    def _project(block: nn.Module, x: mx.array, rows: Layout) -> Attended:
        seen: list[Attended] = []

        def probe(q: mx.array, k: mx.array, v: mx.array, cache: Any, scale: float, mask: Any) -> mx.array:  # noqa: ARG001
            seen.append(Attended(q, k, v, scale))
            return mx.zeros(q.shape, q.dtype)

        with _replaced(_ATTENTION, probe, wanted="before"):
            block.self_attn(block.input_layernorm(x), mask="causal", cache=rows.cache)
        return seen[0]

    @staticmethod
    def _output(block: nn.Module, x: mx.array, o: mx.array, rows: Layout) -> mx.array:
        with _replaced(_ATTENTION, lambda *_, **__: o, wanted="after"):
            return block.self_attn(block.input_layernorm(x), mask="causal", cache=rows.cache)

    @staticmethod
    def _gate_up(block: nn.Module, h: mx.array) -> tuple[mx.array, mx.array]:
        seen: list[tuple[mx.array, mx.array]] = []

        def probe(gate: mx.array, up: mx.array) -> mx.array:
            seen.append((gate, up))
            return mx.zeros(gate.shape, gate.dtype)

        with _replaced(_SWIGLU, probe, wanted="before"):
            block.mlp(block.post_attention_layernorm(h))
        return seen[0]

    @staticmethod
    def _down(block: nn.Module, h: mx.array, activated: mx.array) -> mx.array:
        with _replaced(_SWIGLU, lambda *_: activated, wanted="after"):
            return block.mlp(block.post_attention_layernorm(h))

    def _block_forward(self, number: int, x: mx.array, rows: Layout) -> tuple[mx.array, Any]:
        block = self._body.layers[number]
        a = self._project(block, x, rows)
        attended = rows.attention(self._kernels, number, a)
        h = x + self._output(block, x, attended[0], rows)
        gate, up = self._gate_up(block, h)
        y = h + self._down(block, h, self._kernels.swiglu(gate, up))
        return y, (a, attended, h, gate, up)

    def _block_backward(
        self, number: int, entry: _Kept, rows: Layout, d_y: mx.array, *, last: bool
    ) -> tuple[mx.array, Gradients]:
        """`last`: nothing before this block is trained, so the gradient of its input is not needed."""
        block, x, kernels = self._body.layers[number], entry.x, self._kernels
        if entry.inner is None:
            state = mx.array(mx.random.state[0])
            entry.inner = self._block_forward(number, x, rows)[1]
            mx.random.state[0][:] = state
        a, attended, h, gate, up = entry.inner
        trained = self._trained[number]
        replay = _Replay(self._random)
        # segments draw random numbers in the forward pass's order: go through them, lazily, to find the states
        states = replay.states(
            lambda: self._project(block, x, rows),
            lambda: self._output(block, x, attended[0], rows),
            lambda: self._gate_up(block, h),
        )
        # only a trained layer that follows needs its value: else it is never computed
        activated = kernels.swiglu(gate, up) if trained.mlp else self._portable.swiglu(gate, up)
        replay.to(states, 3)
        (d_activated,), g4 = _vjp(trained.mlp, lambda s: (self._down(block, h, s),), [activated], [d_y])
        d_gate, d_up = kernels.swiglu_backward(gate, up, d_activated)
        replay.to(states, 2)
        (d_h,), g3 = _vjp(trained.mlp, lambda t: self._gate_up(block, t), [h], [d_gate, d_up])
        d_h = d_h + d_y
        replay.to(states, 1)
        (d_o,), g2 = _vjp(trained.attention, lambda o: (self._output(block, x, o, rows),), [attended[0]], [d_h])
        d_q, d_k, d_v = rows.attention_backward(kernels, number, a, attended, d_o)

        def project(t: mx.array) -> tuple[mx.array, ...]:
            found = self._project(block, t, rows)
            return found.q, found.k, found.v

        replay.to(states, 0)
        (d_x,), g1 = _vjp(trained.attention, project, [x], [d_q, d_k, d_v])
        return (d_h if last else d_x + d_h), summed(g1, g2, g3, g4)


class _Replay:
    """Random states at the beginning of each segment, so that dropout masks are those of the forward pass."""

    def __init__(self, needed: bool) -> None:
        self._needed = needed

    def states(self, *segments: Callable[[], Any]) -> list[mx.array]:
        """The state before each of the segments and after the last."""
        if not self._needed:
            return []
        found = [mx.array(mx.random.state[0])]
        for segment in segments:
            with _only_gradients():
                segment()
            found.append(mx.array(mx.random.state[0]))
        mx.eval(found)
        return found

    def to(self, states: list[mx.array], index: int) -> None:
        """Put the state of segment `index` back."""
        if self._needed:
            mx.random.state[0][:] = states[index]


@dataclass(frozen=True)
class _Parameter:
    """A trainable array: `module[key]`."""

    name: str
    """In its block."""
    module: nn.Module
    key: str


@dataclass(frozen=True)
class _Trained:
    """The trainable parameters of a block, by the half of it that they belong to."""

    attention: list[_Parameter]
    mlp: list[_Parameter]

    @classmethod
    def of(cls, block: nn.Module) -> "_Trained":
        """Found once: to look through a block's modules takes as long as to build its graph."""

        def under(*names: str) -> list[_Parameter]:
            return [
                _Parameter(f"{name}.{inner}.{key}" if inner else f"{name}.{key}", module, key)
                for name in names
                for inner, module in block[name].named_modules()
                for key, value in module.items()
                if isinstance(value, mx.array) and module.trainable_parameter_filter(module, key, value)
            ]

        return cls(under("self_attn", "input_layernorm"), under("mlp", "post_attention_layernorm"))


def _vjp(
    parameters: list[_Parameter],
    function: Callable[..., tuple[mx.array, ...]],
    inputs: list[mx.array],
    cotangents: list[mx.array],
) -> tuple[list[mx.array], Gradients]:
    """Gradients of `inputs` and, by their names, of the parameters."""
    values = [each.module[each.key] for each in parameters]

    def of_everything(*arrays: mx.array) -> tuple[mx.array, ...]:
        _put(parameters, arrays[len(inputs) :])
        return function(*arrays[: len(inputs)])

    try:
        with _only_gradients():
            _, found = mx.vjp(of_everything, [*inputs, *values], cotangents)
    finally:
        _put(parameters, values)
    return list(found[: len(inputs)]), {
        each.name: gradient for each, gradient in zip(parameters, found[len(inputs) :], strict=True)
    }


def _put(parameters: list[_Parameter], values: Sequence[mx.array]) -> None:
    for each, value in zip(parameters, values, strict=True):
        each.module[each.key] = value


def summed(*parts: Gradients) -> Gradients:
    """The sums of gradients of the same name."""
    total: Gradients = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total[name] + value if name in total else value
    return total


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


@contextmanager
def _only_gradients() -> Iterator[None]:
    """No product of a segment is wanted for itself."""
    laziness.on = True
    try:
        yield
    finally:
        laziness.on = False
