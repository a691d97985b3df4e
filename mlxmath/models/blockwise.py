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

An MLP whose input counts for more than SwiGLU, as that of experts does, is one segment, y = h + mlp(norm(h)), computed
again in the backward pass. Which it is, and whether the blocks are put together like this at all, is decided by their
gradients (`mlxmath.models.trust`). What comes before the first block and after the last is the model's own. The four
segments and their gradients are in `mlxmath.models.segments`.

Shapes: B rows, L positions, D hidden width.
"""

from collections.abc import Collection, Generator, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlxmath.models import segments
from mlxmath.models.blocks import against_a_chain, kinds_of, only, path_of_blocks
from mlxmath.models.calls import ERRORS, given_to, standing_in, without_dropout
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.layouts import Attended, Output, PromptRows, Rows
from mlxmath.models.lm_head import Split, split
from mlxmath.models.offload import finished
from mlxmath.models.segments import Gradients, Replay, Trained, summed, vjp
from mlxmath.models.trust import Outcome, autodiff, cotangent_of, disagreement, remembered, stand_in, tokens_of


@dataclass
class _Kept:
    """What a block's forward pass leaves for its backward pass; under checkpointing only `x` and the random state."""

    x: mx.array
    random_state: mx.array | None
    inner: tuple[Attended, Output, mx.array, tuple[mx.array, mx.array] | None] | None = None


@dataclass
class Tape:
    """The arrays that a backward pass needs."""

    blocks: list[Any]
    last: mx.array
    rows: Rows


class Blockwise:
    """Computes hidden states and the gradients of the blocks' trainable parameters.

    Args:
        model: an mlx_lm model that `unsupported` has nothing against.
        kernels: the device's.
        checkpoint_every: keep only the input of every n-th block and compute the rest again (0: of none, 1: of all).
        parts: of the model (None: found here).
        chosen: numbers of the blocks that take part (None: all); the others pass on what they are given.
        whole_mlps: of the blocks, those whose MLP is one segment (None: found here).
    """

    def __init__(
        self, model: nn.Module, kernels: Kernels, checkpoint_every: int = 0, *, parts: Split | None = None,
        chosen: Sequence[int] | None = None, whole_mlps: Collection[int] | None = None,
    ) -> None:  # fmt: skip
        found = parts or split(model)
        assert not isinstance(found, str)
        self._parts, self._all = found, model.layers
        self.numbers: list[int] = list(range(len(model.layers)) if chosen is None else chosen)
        self._blocks = [model.layers[number] for number in self.numbers]
        self._kernels, self._portable = kernels, Kernels()
        self._path = path_of_blocks(model)
        for block in self._blocks:
            segments.prepare(block)
        if whole_mlps is None:
            reason, whole_mlps = _tried(model, found, kernels)
            assert reason is None
        self._whole_mlps = [number in whole_mlps for number in self.numbers]
        self._checkpoint_every = checkpoint_every
        self._trained = [Trained.of(block) for block in self._blocks]
        having = (i for i, trained in enumerate(self._trained) if trained.attention or trained.mlp)
        self._first = next(having, len(self._blocks))
        self.order = self.numbers[self._first :][::-1]  # that of the backward pass
        self._random = any(isinstance(m, nn.Dropout) and m._p_1 < 1 for m in model.modules())

    @staticmethod
    def unsupported(model: nn.Module, kernels: Kernels | None = None, parts: Split | None = None) -> str | None:
        """Why the model cannot be computed block by block; None if it can."""
        for block in model.layers:
            if reason := segments.unsupported(block):
                return reason
        blocks = path_of_blocks(model) + "."
        if any(not name.startswith(blocks) for name, _ in tree_flatten(model.trainable_parameters())):
            return "more than its blocks is trained"
        found = parts or split(model)
        return found if isinstance(found, str) else _tried(model, found, kernels or Kernels())[0]

    def of(self, model: nn.Module, chosen: Sequence[int]) -> "Blockwise":
        """The same with only these blocks of the model."""
        whole = {number for number, is_whole in zip(self.numbers, self._whole_mlps, strict=True) if is_whole}
        return Blockwise(
            model, self._kernels, self._checkpoint_every, parts=self._parts, chosen=chosen, whole_mlps=whole
        )

    def forward(self, rows: Rows, *, keep: bool = True) -> tuple[mx.array, Tape]:
        """Hidden states (B, L, D) after the last norm (not of prompts), and the tape (of no use without `keep`)."""
        return finished(self.forwards(rows, keep=keep))

    def forwards(self, rows: Rows, *, keep: bool = True) -> Generator[int, None, tuple[mx.array, Tape]]:
        """`forward`, which waits before each block, with its number, for its weights to be there."""
        x = given_to(self._all[0], lambda: self._parts.hidden(rows.tokens_BL))
        kept = []
        for number in range(len(self._blocks)):
            yield self.numbers[number]
            entry = _Kept(x, mx.array(mx.random.state[0]) if self._random else None)
            x, inner = self._block_forward(number, x, rows)
            if not (rows.recomputed or (self._checkpoint_every and number % self._checkpoint_every == 0)):
                entry.inner = inner
            mx.async_eval(x)
            del inner  # else what waits for the next block holds it
            if keep and number >= self._first:
                kept.append(entry)
        return self._after(x, rows.tokens_BL), Tape(kept, x, rows)

    def backward(self, tape: Tape, d_hidden_BLD: mx.array) -> Gradients:
        """Gradients of what is trained by their full names, given those of the hidden states; frees the tape."""
        return finished(self.backwards(tape, d_hidden_BLD))[1]

    def trial(
        self, rows: Rows, positions_N: mx.array, prompts: PromptRows | None = None, *, to_input: bool = False
    ) -> Outcome:
        """Hidden states and gradients as `mlxmath.models.trust.autodiff` has them.

        Args:
            rows: may go on from prompts.
            positions_N: those that count, of B · L.
            prompts: which are computed first.
            to_input: with the gradient of "input", the first block's.
        """
        self._first = 0
        before = self.forward(prompts) if prompts else None
        hidden_BLD, tape = self.forward(rows)
        flat_ND = hidden_BLD.reshape(-1, hidden_BLD.shape[-1])
        hidden_ND = flat_ND[positions_N]
        d_flat_ND = mx.zeros_like(flat_ND).at[positions_N].add(cotangent_of(hidden_ND))
        d_x, gradients = finished(self.backwards(tape, d_flat_ND.reshape(hidden_BLD.shape), to_input=to_input))
        if prompts and before:
            gradients = summed(gradients, self.backward(before[1], mx.zeros_like(before[0])))
        found = {name.removeprefix(f"{self._path}."): array for name, array in gradients.items()}
        return hidden_ND, {"input": d_x, **found} if to_input else found

    def _after(self, x: mx.array, tokens_BL: mx.array) -> mx.array:
        """What the model makes of what its last block gives."""
        with ExitStack() as stack:
            for block in self._all:
                stack.enter_context(standing_in(block, lambda *_, **__: x))
            return self._parts.hidden(tokens_BL)

    def backwards(
        self, tape: Tape, d_hidden_BLD: mx.array, *, to_input: bool = False
    ) -> Generator[int, None, tuple[mx.array, Gradients]]:
        """The gradient of the input, if it is wanted, and `backward`; waits before each block as `forwards` does."""
        gradients: Gradients = {}
        _, (d,) = mx.vjp(lambda x: self._after(x, tape.rows.tokens_BL), [tape.last], [d_hidden_BLD])
        state_after = mx.array(mx.random.state[0]) if self._random else None
        for number in range(len(self._blocks) - 1, self._first - 1, -1):
            yield self.numbers[number]
            entry = tape.blocks.pop()
            if entry.random_state is not None:
                mx.random.state[0][:] = entry.random_state
            d, found = self._block_backward(number, entry, tape.rows, d, last=number == self._first and not to_input)
            mx.async_eval(d, found)
            del entry  # else what waits for the next block holds it
            gradients |= {f"{self._path}.{self.numbers[number]}.{name}": value for name, value in found.items()}
        if state_after is not None:
            mx.random.state[0][:] = state_after
        return d, gradients

    def _block_forward(self, number: int, x: mx.array, rows: Rows) -> tuple[mx.array, Any]:
        block = self._blocks[number]
        a = segments.project(block, x, rows)
        if isinstance(rows, PromptRows) and number + 1 == len(self._blocks):  # what else it made would be of no use
            rows.keep(number, a)
            return x, None
        attended = rows.attention(self._kernels, number, a)
        h = x + segments.output(block, x, attended[0], rows)
        if self._whole_mlps[number]:
            return h + segments.whole_mlp(block, h), (a, attended, h, None)
        gate, up = segments.gate_up(block, h)
        return h + segments.down(block, h, self._kernels.swiglu(gate, up)), (a, attended, h, (gate, up))

    def _block_backward(
        self, number: int, entry: _Kept, rows: Rows, d_y: mx.array, *, last: bool
    ) -> tuple[mx.array, Gradients]:
        """`last`: nothing before this block is trained, so the gradient of its input is not needed."""
        block, x, kernels = self._blocks[number], entry.x, self._kernels

        def project(t: mx.array) -> tuple[mx.array, ...]:
            found = segments.project(block, t, rows)
            return found.q, found.k, found.v

        trained = self._trained[number]
        if isinstance(rows, PromptRows) and number + 1 == len(self._blocks):
            (d_x,), g1 = vjp(trained.attention, lambda t: project(t)[1:], [x], list(rows.given_back(number)))
            return d_x, g1
        if entry.inner is None:
            state = mx.array(mx.random.state[0])
            entry.inner = self._block_forward(number, x, rows)[1]
            mx.random.state[0][:] = state
        a, attended, h, gate_up = entry.inner
        replay = Replay(
            self._random,
            lambda: segments.project(block, x, rows),
            lambda: segments.output(block, x, attended[0], rows),
            *(() if gate_up is None else (lambda: segments.gate_up(block, h),)),
        )
        if gate_up is None:
            replay.to(2)
            (d_h,), g3 = vjp(trained.mlp, lambda t: (segments.whole_mlp(block, t),), [h], [d_y], known=False)
            g4: Gradients = {}
        else:
            # only a trained layer that follows needs its value: else it is never computed
            activated = (kernels if trained.mlp else self._portable).swiglu(*gate_up)
            replay.to(3)
            (d_activated,), g4 = vjp(trained.mlp, lambda s: (segments.down(block, h, s),), [activated], [d_y])
            d_gate, d_up = kernels.swiglu_backward(gate_up[0], gate_up[1], d_activated)
            replay.to(2)
            (d_h,), g3 = vjp(trained.mlp, lambda t: segments.gate_up(block, t), [h], [d_gate, d_up])
        d_h = d_h + d_y
        replay.to(1)
        (d_o,), g2 = vjp(trained.attention, lambda o: (segments.output(block, x, o, rows),), [attended[0]], [d_h])
        d_q, d_k, d_v = rows.attention_backward(kernels, number, a, attended, d_o)
        replay.to(0)
        (d_x,), g1 = vjp(trained.attention, project, [x], [d_q, d_k, d_v])
        return (d_h if last else d_x + d_h), summed(g1, g2, g3, g4)


def _tried(model: nn.Module, parts: Split, kernels: Kernels) -> tuple[str | None, Collection[int]]:
    """Why the blocks of a model cannot be computed one by one, or those whose MLP is one segment."""
    kinds = kinds_of(model.layers)
    distinct = list(dict.fromkeys(kinds))
    with without_dropout(model):
        reason, whole = remembered(
            "blockwise", model, (type(kernels), len(kinds)), lambda: _try(model, parts, kernels, kinds)
        )
    return reason, {number for number, kind in enumerate(kinds) if distinct.index(kind) in whole}


def _try(
    model: nn.Module, parts: Split, kernels: Kernels, kinds: Sequence[Hashable]
) -> tuple[str | None, Collection[int]]:
    """The same, by the numbers of the kinds."""
    for block in model.layers:
        segments.prepare(block)
    if reason := against_a_chain(model, parts.hidden):
        return reason, ()
    whole = set()
    for number_of_kind, kind in enumerate(dict.fromkeys(kinds)):
        block = kinds.index(kind)
        try:
            parted, together = _wrong(model, parts, kernels, block)
        except ERRORS as error:
            return f"its blocks need other arguments ({error})", ()
        if parted and together:
            return f"its blocks are put together in another way ({together})", ()
        if parted:
            whole.add(number_of_kind)
    return None, whole


@contextmanager
def one_block(model: nn.Module, parts: Split, number: int) -> Iterator[tuple[mx.array, Outcome]]:
    """With block `number` alone, on a stand-in: the tokens (1, L) that it is tried on, and what autodiff gives."""
    tokens_1L = mx.array([tokens_of(parts.head.vocab_size)])

    def hidden(added: mx.array) -> mx.array:
        with only(model.layers, [number], added):
            return parts.hidden(tokens_1L)[0]

    with stand_in(model, [number]):
        added = mx.zeros_like(given_to(model.layers[0], lambda: parts.hidden(tokens_1L)))
        yield tokens_1L, autodiff(model, [number], hidden, added)


def _wrong(model: nn.Module, parts: Split, kernels: Kernels, number: int) -> tuple[str | None, str | None]:
    """How block `number` alone disagrees with autodiff, its MLP in segments and, if it does, as one; None: not."""
    with one_block(model, parts, number) as (tokens_1L, expected):

        def differs(whole_mlps: Collection[int]) -> str | None:
            blocks = Blockwise(model, kernels, parts=parts, chosen=[number], whole_mlps=whole_mlps)
            try:
                found = blocks.trial(Rows(tokens_1L), mx.arange(tokens_1L.size), to_input=True)
            except ERRORS as error:
                return str(error)
            return disagreement(found, expected)

        parted = differs([])
        return parted, parted and differs([number])
