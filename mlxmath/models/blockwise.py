"""A transformer's forward and backward pass, block by block, with the few arrays kept that are worth keeping.

Autodiff over a whole model keeps what each operation needs and must see every operation. Here a block is four segments
with two kernels between them; the arrays between the segments are kept (or, under checkpointing, only the block's
input), and the backward pass differentiates one segment at a time. MLX is lazy, so a segment's own products are not
computed again: only its gradients are asked for.

    q, k, v = project(norm(x))        kept: x, q, k, v
    o = attention(q, k, v)            kept: o              (a kernel)
    h = x + output(o)                 kept: h
    g, u = gate(norm(h)), up(norm(h)) kept: g, u
    y = h + down(swiglu(g, u))                             (swiglu is a kernel, computed again if down is trained)

`mlxmath.models.segments` has the four that are not a kernel, `mlxmath.models.trained` their gradients.

Shapes: B rows, L positions, D hidden width.
"""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlxmath.kernels.base import Kernels
from mlxmath.kernels.portable import PortableKernels
from mlxmath.models import segments
from mlxmath.models.layouts import Attended, Layout, Output, Rows
from mlxmath.models.trained import Gradients, Replay, Trained, summed, vjp


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
            segments.prepare(block)
        self._checkpoint_every = checkpoint_every
        self._trained = [Trained.of(block) for block in self._body.layers]
        having = (i for i, trained in enumerate(self._trained) if trained.attention or trained.mlp)
        self._first = next(having, len(self._body.layers))
        self._random = any(isinstance(m, nn.Dropout) and m._p_1 < 1 for m in model.modules())

    @staticmethod
    def unsupported(model: nn.Module) -> str | None:
        """Why the model cannot be computed block by block; None if it can."""
        body = getattr(model, "model", None)
        if body is None or not all(hasattr(body, name) for name in ("embed_tokens", "layers", "norm")):
            return "its body is not embedding, blocks and norm"
        for block in body.layers:
            if reason := segments.unsupported(block):
                return reason
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

    def _block_forward(self, number: int, x: mx.array, rows: Layout) -> tuple[mx.array, Any]:
        block = self._body.layers[number]
        a = segments.project(block, x, rows)
        attended = rows.attention(self._kernels, number, a)
        h = x + segments.output(block, x, attended[0], rows)
        gate, up = segments.gate_up(block, h)
        y = h + segments.down(block, h, self._kernels.swiglu(gate, up))
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
        replay = Replay(
            self._random,
            lambda: segments.project(block, x, rows),
            lambda: segments.output(block, x, attended[0], rows),
            lambda: segments.gate_up(block, h),
        )
        # only a trained layer that follows needs its value: else it is never computed
        activated = kernels.swiglu(gate, up) if trained.mlp else self._portable.swiglu(gate, up)
        replay.to(3)
        (d_activated,), g4 = vjp(trained.mlp, lambda s: (segments.down(block, h, s),), [activated], [d_y])
        d_gate, d_up = kernels.swiglu_backward(gate, up, d_activated)
        replay.to(2)
        (d_h,), g3 = vjp(trained.mlp, lambda t: segments.gate_up(block, t), [h], [d_gate, d_up])
        d_h = d_h + d_y
        replay.to(1)
        (d_o,), g2 = vjp(trained.attention, lambda o: (segments.output(block, x, o, rows),), [attended[0]], [d_h])
        d_q, d_k, d_v = rows.attention_backward(kernels, number, a, attended, d_o)

        def project(t: mx.array) -> tuple[mx.array, ...]:
            found = segments.project(block, t, rows)
            return found.q, found.k, found.v

        replay.to(0)
        (d_x,), g1 = vjp(trained.attention, project, [x], [d_q, d_k, d_v])
        return (d_h if last else d_x + d_h), summed(g1, g2, g3, g4)
