"""A micro-batch's loss and gradients, by the best way that the model and the device allow.

Block by block with the device's own kernels (the CPU), or by autodiff through the whole model, compiled where faster,
with the head split off where the model allows. Each shorter way is taken only where its gradients agree with those of
autodiff over whole texts (`mlxmath.models.trust`).

Shapes: B rows, L positions, D hidden width, N target positions, V vocabulary.
"""

import copy
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlxmath.data.batch import Batch
from mlxmath.models.attention import TrainingAttention
from mlxmath.models.blocks import only
from mlxmath.models.blockwise import Blockwise
from mlxmath.models.calls import looks_at_values
from mlxmath.models.checkpointing import checkpoint_blocks
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.layouts import ContinuedRows, PackedCache, PromptRows, Rows, SharedPrompts, continued
from mlxmath.models.linear_ce import FullLogits, FusedHead, LossHead
from mlxmath.models.lm_head import Split, called, split
from mlxmath.models.masks import Mask
from mlxmath.models.offload import HEAD, finished
from mlxmath.models.segments import summed
from mlxmath.models.trust import Outcome, Trial

MOST_GRAPHS = 128
"""That are held at a time. MLX keeps one for each shape, with memory of its own; Metal allows so many pieces in all."""
Tree = Any
Loss = Callable[[mx.array, Batch, LossHead], mx.array]
"""A loss SUM over a micro-batch, of the model's outputs (N, X) at the target positions; the trainer divides by the
step's targets once. Float32 and differentiable in the outputs: a scalar, or the first element of a vector whose other
elements are sums to be reported."""


class Gradients(Protocol):
    """Loss sums of a model."""

    how: str
    """The way that was chosen and why, for people."""
    takes_parts: bool
    """Whether rows that go on from prompts are computed in the batch's `parts`, one after the other."""

    def cannot_share(self) -> str | None:
        """Why rows cannot go on from `Batch.prompts`, None if they can."""

    def cannot_pack(self) -> str | None:
        """Why rows cannot be packed, as `Batch.texts_BL` has it; None if they can."""

    def loss(self, batch: Batch) -> mx.array:
        """The loss sum (see `Loss`), without gradients."""

    def loss_and_gradients(self, batch: Batch) -> tuple[mx.array, Tree]:
        """The loss sum (see `Loss`) and its gradient, a tree like `model.trainable_parameters()`."""


def choose_gradients(
    model: nn.Module, loss: Loss, kernels: Kernels, *, compiled: bool, checkpoint_every: int = 0,
    measured: Loss | None = None,
) -> "BlockwiseGradients | AutodiffGradients":  # fmt: skip
    """The way for `model`, which is in training mode and has its adapters.

    `compiled`: compile the step, if kernels and model may be. `checkpoint_every`: recompute every n-th block (0: none).
    `measured`: what `loss` gives without gradients (None: the same).
    """
    found = split(model)
    parts = None if isinstance(found, str) else found
    refused = compiled and kernels.compiles and looks_at_values(model, parts.hidden if parts else model)
    compiled = compiled and not refused
    if parts is None:
        how = f"full logits, since {found}"
    elif refused:
        how = "autodiff, not compiled, since the model looks at what it computes"
    elif kernels.compiles:
        how = "autodiff, compiled" if compiled else "autodiff"
    elif reason := Blockwise.unsupported(model, kernels, parts):
        how = f"autodiff, since {reason}"
    else:
        return BlockwiseGradients(model, loss, kernels, parts, checkpoint_every, measured=measured)
    return AutodiffGradients(model, loss, kernels, parts, how, compiled, checkpoint_every, measured)


class BlockwiseGradients:
    """Block by block; see `Blockwise`."""

    takes_parts = True

    def __init__(
        self, model: nn.Module, loss: Loss, kernels: Kernels, parts: Split, checkpoint_every: int,
        blocks: Blockwise | None = None, measured: Loss | None = None,
    ) -> None:  # fmt: skip
        self.how, self.head = "block by block, with the device's own kernels", parts.head
        self._model, self._kernels, self._parts = model, kernels, parts
        self._blocks = blocks or Blockwise(model, kernels, checkpoint_every, parts=parts)
        self._loss, self._measured, self._fused = loss, measured or loss, FusedHead(parts.head, kernels)
        self._head_alone = FusedHead(replace(parts.head, differentiable=False), kernels)

    def cannot_share(self) -> str | None:
        """See `Gradients`."""

        def of_prompts(blocks: Sequence[int], rows_BL: mx.array, prompts: SharedPrompts, at_N: mx.array) -> Outcome:
            computed = PromptRows(prompts)
            return self._few(blocks).trial(ContinuedRows(rows_BL, prompts, computed), at_N, computed)

        return self._trial.cannot_share(of_prompts)

    def cannot_pack(self) -> str | None:
        """See `Gradients`."""
        return self._trial.cannot_pack(lambda few, row, mask, at_N: self._few(few).trial(Rows(row, mask), at_N))

    @property
    def _trial(self) -> Trial:
        parts, way = self._parts, ("blockwise", type(self._kernels))
        return Trial(self._model, parts.hidden, parts.head.vocab_size, way, most=2)

    def of_blocks(self, numbers: Sequence[int]) -> Callable[[Batch], tuple[mx.array, Tree]]:
        """`loss_and_gradients` of the model with these blocks alone; the others pass on what they are given."""
        few = copy.copy(self)
        few._blocks = self._blocks.of(self._model, numbers)
        return few.loss_and_gradients

    def _few(self, blocks: Sequence[int]) -> Blockwise:
        return Blockwise(self._model, self._kernels, parts=self._parts, chosen=blocks)

    def loss(self, batch: Batch) -> mx.array:
        """See `Gradients`."""
        rows: Rows = Rows(batch.inputs_BL, batch.mask)
        if batch.prompts is not None:
            self._blocks.forward(computed := PromptRows(batch.prompts), keep=False)
            rows = ContinuedRows(batch.inputs_BL, batch.prompts, computed)
        hidden_BLD, _ = self._blocks.forward(rows, keep=False)
        return self._measured(hidden_BLD.reshape(-1, hidden_BLD.shape[-1])[batch.positions_N], batch, self._head_alone)

    def loss_and_gradients(self, batch: Batch) -> tuple[mx.array, Tree]:
        """See `Gradients`. Rows that go on from prompts are computed part after part."""
        if batch.prompts is None:
            total, found = finished(self._of_rows(batch, Rows(batch.inputs_BL, batch.mask)))
            return total, tree_unflatten(list(found.items()))
        prompts = PromptRows(batch.prompts, recomputed=bool(batch.parts))
        hidden_GPD, tape = self._blocks.forward(prompts)
        total, found = mx.zeros(()), {}
        for part in batch.parts or (batch,):
            assert part.prompts is not None
            rows = ContinuedRows(part.inputs_BL, part.prompts, prompts)
            of_part, gradients = finished(self._of_rows(part, rows))
            total, found = total + of_part, summed(found, gradients)
            mx.eval(total, found)
        found = summed(found, self._blocks.backward(tape, mx.zeros_like(hidden_GPD)))
        return total, tree_unflatten(list(found.items()))

    def _of_rows(self, batch: Batch, rows: Rows) -> Generator[int, None, tuple[mx.array, dict[str, mx.array]]]:
        """The loss sum, and the gradients by the parameters' names; waits for each block and the head to be there."""
        hidden_BLD, tape = yield from self._blocks.forwards(rows)
        yield HEAD
        chosen_ND = hidden_BLD.reshape(-1, hidden_BLD.shape[-1])[batch.positions_N]
        mx.eval(chosen_ND)
        differentiated = mx.value_and_grad(lambda hidden: _loss_first(self._loss(hidden, batch, self._fused)))
        (_, total), d_chosen_ND = differentiated(chosen_ND)
        d_hidden = mx.zeros((hidden_BLD.size // hidden_BLD.shape[-1], hidden_BLD.shape[-1]), hidden_BLD.dtype)
        d_hidden_BLD = d_hidden.at[batch.positions_N].add(d_chosen_ND).reshape(hidden_BLD.shape)
        mx.async_eval(total, d_hidden_BLD)
        del chosen_ND, d_chosen_ND, hidden_BLD
        return total, (yield from self._blocks.backwards(tape, d_hidden_BLD))[1]


class AutodiffGradients:
    """Autodiff through the whole model."""

    takes_parts = False

    def __init__(
        self, model: nn.Module, loss: Loss, kernels: Kernels, parts: Split | None, how: str, compiled: bool,
        checkpoint_every: int, measured: Loss | None = None,
    ) -> None:  # fmt: skip
        self.how, self.head = how, parts.head if parts else None
        self._model, self._loss, self._kernels, self._parts = model, loss, kernels, parts
        self._measured = measured or loss
        self._head: LossHead = FusedHead(parts.head, kernels) if parts else FullLogits()
        self._extra: Any = None  # the type of what the batches have besides
        self._forward = parts.hidden if parts else partial(called, model)
        self._checkpoint_every, self._compiled = checkpoint_every, compiled
        self._attention = TrainingAttention(model, multiple=kernels.attention_multiple, looks=not kernels.compiles)
        if checkpoint_every:
            checkpoint_blocks(model, checkpoint_every)
        self._step = self._eager_step = nn.value_and_grad(
            model, lambda _, *arrays: _loss_first(self._total(loss, *arrays))
        )
        self._shapes: set[Any] = set()
        if compiled and kernels.compiles:
            self._compile()

    def _compile(self) -> None:
        """Begin without a graph."""
        state = [self._model.state, mx.random.state]  # out as well as in: tracing leaves placeholders in the model
        self._shapes.clear()
        self._step = mx.compile(partial(self._eager_step), inputs=state, outputs=state)

    def loss(self, batch: Batch) -> mx.array:
        """See `Gradients`."""
        self._extra = type(batch.extra)
        with self._attention.in_place():
            return self._total(self._measured, *_arrays(batch))

    def loss_and_gradients(self, batch: Batch) -> tuple[mx.array, Tree]:
        """See `Gradients`. With prompts the shapes are too many to compile each."""
        self._extra = type(batch.extra)
        step, arrays = self._eager_step, _arrays(batch)
        if batch.prompts is None:
            shape = tuple((name, array.shape) for name, array in tree_flatten(arrays) if array is not None)
            if len(self._shapes) == MOST_GRAPHS and shape not in self._shapes:
                self._compile()
            self._shapes.add(shape)
            step = self._step
        with self._attention.in_place():
            (_, total), gradients = step(self._model.trainable_parameters(), *arrays)
        return total, gradients

    def of_blocks(self, numbers: Sequence[int]) -> Callable[[Batch], tuple[mx.array, Tree]]:
        """`loss_and_gradients` of the model with these blocks alone, compiled anew; the others pass on their input."""
        checkpoint_blocks(self._model, self._checkpoint_every)  # another way over this model may have others
        few = AutodiffGradients(self._model, self._loss, self._kernels, self._parts, self.how, self._compiled, 0)

        def of_few(batch: Batch) -> tuple[mx.array, Tree]:
            with only(self._model.layers, numbers):
                return few.loss_and_gradients(batch)

        return of_few

    def cannot_share(self) -> str | None:
        """See `Gradients`."""
        trial = self._trial
        if self._checkpoint_every:
            return "blocks are computed again in the backward pass"
        with self._attention.in_place():
            return trial.cannot_share(
                lambda few, rows, prompts, at: trial.autodiff(few, lambda: self._outputs(rows, prompts=prompts), at)
            )

    def cannot_pack(self) -> str | None:
        """See `Gradients`."""
        trial = self._trial
        with self._attention.in_place():
            return trial.cannot_pack(
                lambda few, row, mask, at: trial.autodiff(few, lambda: self._outputs(row, mask), at)
            )

    @property
    def _trial(self) -> Trial:
        vocab_size = self._parts.head.vocab_size if self._parts else None
        return Trial(
            self._model, self._forward, vocab_size, ("autodiff", self._parts is None, self._checkpoint_every > 0)
        )

    def _outputs(
        self, tokens_BL: mx.array, mask: Mask | None = None, prompts: SharedPrompts | None = None
    ) -> mx.array:  # fmt: skip
        """Hidden states, or logits where the head is not split off."""
        forward, num_layers = self._forward, len(self._model.layers)
        if prompts is not None:
            return continued(forward, num_layers, tokens_BL, prompts)
        return forward(tokens_BL) if mask is None else forward(tokens_BL, cache=[PackedCache(mask)] * num_layers)

    def _total(
        self, loss: Loss, inputs_BL: mx.array, positions_N: mx.array, targets_N: mx.array, weights_N: mx.array,
        extra: dict[str, mx.array], texts_BL: mx.array | None = None, prompts: tuple[mx.array, ...] | None = None,
    ) -> mx.array:  # fmt: skip
        shared = None if prompts is None else SharedPrompts(*prompts)
        named = self._extra(**extra) if extra else None
        batch = Batch(inputs_BL, positions_N, targets_N, weights_N, (), 0, 0, named, texts_BL, shared)
        outputs_BLX = self._outputs(inputs_BL, batch.mask, shared)
        outputs_NX = outputs_BLX.reshape(-1, outputs_BLX.shape[-1])[positions_N]
        return loss(outputs_NX, batch, self._head)


def _arrays(batch: Batch) -> tuple[Any, ...]:
    prompts = None if batch.prompts is None else tuple(batch.prompts)
    named = batch.extra._asdict().items() if batch.extra is not None else ()
    extra = {name: array for name, array in named if array is not None}
    arrays = (batch.inputs_BL, batch.positions_N, batch.targets_N, batch.weights_N, extra)
    return (*arrays, batch.texts_BL, prompts) if prompts or batch.texts_BL is not None else arrays


def _loss_first(sums: mx.array) -> tuple[mx.array, mx.array]:
    """The scalar to differentiate, and everything."""
    return (sums[0] if sums.ndim else sums), sums
