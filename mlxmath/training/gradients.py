"""A micro-batch's loss and gradients, by the best way that the model and the device allow.

Block by block with the device's own kernels (the CPU), or by autodiff through the whole model, compiled where that
makes it faster, with the head split off where the model allows.

Shapes: B rows, L positions, D hidden width, N target positions, V vocabulary.
"""

from functools import partial
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlxmath.data.batches import Batch, packed_mask
from mlxmath.kernels.base import Kernels
from mlxmath.models.blockwise import Blockwise
from mlxmath.models.split import Split, split
from mlxmath.objectives.base import Objective

Tree = Any


class Gradients(Protocol):
    """Loss sums of a model."""

    how: str
    """The way that was chosen and why, for people."""

    def loss(self, batch: Batch) -> mx.array:
        """The loss sum (see `Objective`), without gradients."""

    def loss_and_gradients(self, batch: Batch) -> tuple[mx.array, Tree]:
        """The loss sum (see `Objective`) and its gradient, a tree like `model.trainable_parameters()`."""


def choose_gradients(
    model: nn.Module, objective: Objective, kernels: Kernels, *, compiled: bool, checkpoint_every: int = 0
) -> Gradients:
    """The way for `model`, whose adapters are in place.

    Args:
        model: in training mode.
        objective: what to minimize.
        kernels: the device's.
        compiled: compile the step, if the kernels may be.
        checkpoint_every: recompute every n-th block in the backward pass instead of keeping its arrays (0: none).
    """
    parts = split(model)
    if isinstance(parts, str):
        return AutodiffGradients(
            model, objective, kernels, None, f"full logits, since {parts}", compiled, checkpoint_every
        )
    if not kernels.compiles:
        reason = Blockwise.unsupported(model)
        if reason is None:
            return BlockwiseGradients(model, objective, kernels, parts, checkpoint_every)
        how = f"autodiff, since {reason}"
    else:
        how = "autodiff, compiled" if compiled else "autodiff"
    return AutodiffGradients(model, objective, kernels, parts, how, compiled, checkpoint_every)


class BlockwiseGradients:
    """Block by block; see `Blockwise`."""

    def __init__(
        self, model: nn.Module, objective: Objective, kernels: Kernels, parts: Split, checkpoint_every: int
    ) -> None:
        self.how = "block by block, with the device's own kernels"
        self._blocks = Blockwise(model, kernels, checkpoint_every)
        self._loss = partial(objective.from_hidden, head=parts.head, kernels=kernels)

    def loss(self, batch: Batch) -> mx.array:
        """See `Gradients`."""
        hidden_BLD, _ = self._blocks.forward(batch.inputs_BL, _mask(batch), keep=False)
        return self._loss(hidden_BLD.reshape(-1, hidden_BLD.shape[-1])[batch.positions_N], batch)

    def loss_and_gradients(self, batch: Batch) -> tuple[mx.array, Tree]:
        """See `Gradients`."""
        hidden_BLD, tape = self._blocks.forward(batch.inputs_BL, _mask(batch))
        flat_shape = (-1, hidden_BLD.shape[-1])
        chosen_ND = hidden_BLD.reshape(flat_shape)[batch.positions_N]
        mx.eval(chosen_ND)
        (_, total), d_chosen_ND = mx.value_and_grad(lambda hidden: _loss_first(self._loss(hidden, batch)))(chosen_ND)
        d_hidden = mx.zeros((hidden_BLD.size // hidden_BLD.shape[-1], hidden_BLD.shape[-1]), hidden_BLD.dtype)
        d_hidden_BLD = d_hidden.at[batch.positions_N].add(d_chosen_ND).reshape(hidden_BLD.shape)
        mx.eval(total, d_hidden_BLD)
        del chosen_ND, d_chosen_ND, hidden_BLD
        return total, tree_unflatten(list(self._blocks.backward(tape, d_hidden_BLD).items()))


class AutodiffGradients:
    """Autodiff through the whole model."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        kernels: Kernels,
        parts: Split | None,
        how: str,
        compiled: bool,
        checkpoint_every: int,
    ) -> None:
        self.how = how
        self._model, self._objective, self._kernels, self._parts = model, objective, kernels, parts
        if checkpoint_every:
            checkpoint_blocks(model, checkpoint_every)
        step = nn.value_and_grad(model, lambda _, *arrays: _loss_first(self._total(*arrays)))
        if compiled and kernels.compiles:
            state = [model.state, mx.random.state]  # out as well as in: tracing leaves placeholders in the model
            step = mx.compile(step, inputs=state, outputs=state)
        self._step = step

    def loss(self, batch: Batch) -> mx.array:
        """See `Gradients`."""
        return self._total(*_arrays(batch))

    def loss_and_gradients(self, batch: Batch) -> tuple[mx.array, Tree]:
        """See `Gradients`."""
        (_, total), gradients = self._step(self._model.trainable_parameters(), *_arrays(batch))
        return total, gradients

    def _total(
        self,
        inputs_BL: mx.array,
        positions_N: mx.array,
        targets_N: mx.array,
        weights_N: mx.array,
        more: dict[str, mx.array],
        texts_BL: mx.array | None = None,
    ) -> mx.array:
        batch = Batch(inputs_BL, positions_N, targets_N, weights_N, (), 0, 0, more, texts_BL)
        mask = _mask(batch)
        cache = None if mask is None else [PackedCache(mask)] * len(self._model.layers)
        if self._parts is None:
            logits_BLV = self._model(inputs_BL, cache=cache)
            return self._objective.from_logits(logits_BLV.reshape(-1, logits_BLV.shape[-1])[positions_N], batch)
        hidden_BLD = self._parts.hidden(inputs_BL, cache=cache)
        hidden_ND = hidden_BLD.reshape(-1, hidden_BLD.shape[-1])[positions_N]
        return self._objective.from_hidden(hidden_ND, batch, self._parts.head, self._kernels)


def _mask(batch: Batch) -> mx.array | None:
    return None if batch.texts_BL is None else packed_mask(batch.texts_BL)


def _arrays(batch: Batch) -> tuple[Any, ...]:
    arrays = (batch.inputs_BL, batch.positions_N, batch.targets_N, batch.weights_N, dict(batch.more))
    return arrays if batch.texts_BL is None else (*arrays, batch.texts_BL)


def _loss_first(sums: mx.array) -> tuple[mx.array, mx.array]:
    """The scalar to differentiate, and everything."""
    return (sums[0] if sums.ndim else sums), sums


class PackedCache:
    """What brings a packed row's mask to the attention of any mlx_lm model: a cache that keeps nothing.

    Positions go on from text to text, which rotary embeddings, being relative, do not notice.
    """

    offset = 0

    def __init__(self, mask_B1LL: mx.array) -> None:
        self._mask_B1LL = mask_B1LL

    def make_mask(self, length: int, return_array: bool = False, window_size: int | None = None) -> mx.array:  # noqa: ARG002
        """Backwards within a text, and within the window if there is one."""
        if window_size is None:
            return self._mask_B1LL
        place = mx.arange(length)
        return self._mask_B1LL & (place[:, None] < place[None] + window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """The keys and values of the row itself."""
        return keys, values


def checkpoint_blocks(model: nn.Module, every: int) -> None:
    """Recompute every n-th block in the backward pass. Wraps these instances only, and each only once."""
    for block in model.layers[::every]:
        if type(block).__name__.startswith("Checkpointed"):
            continue
        plain = type(block)

        def call(self: nn.Module, *args: Any, _plain: type = plain, **kwargs: Any) -> Any:
            def inner(parameters: Tree, *args: Any, **kwargs: Any) -> Any:
                self.update(parameters)
                return _plain.__call__(self, *args, **kwargs)

            return mx.checkpoint(inner)(self.trainable_parameters(), *args, **kwargs)

        block.__class__ = type(f"Checkpointed{plain.__name__}", (plain,), {"__call__": call})
