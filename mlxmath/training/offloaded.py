"""Micro-batches that go through a model together, a block at a time, since its blocks are on the disk.

So a step reads each block twice, for its forward and its backward pass, however many micro-batches it has; what they
keep at the blocks' borders is in memory for all of them. Each micro-batch is computed by the same operations, in the
same order, as if it were alone.
"""

import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from itertools import pairwise
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlxmath.data.batch import Batch
from mlxmath.errors import MlxmathError
from mlxmath.models.blocks import kinds_of
from mlxmath.models.blockwise import Blockwise
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.layouts import Rows
from mlxmath.models.lm_head import split
from mlxmath.models.offload import HEAD, Offloaded
from mlxmath.models.whole_blocks import WholeBlocks
from mlxmath.training.gradients import BlockwiseGradients, Loss, Tree

Result = TypeVar("Result")


class OffloadedGradients(BlockwiseGradients):
    """Block by block on any device, for passes that wait before each unit for its weights to be there.

    Args:
        model: adapters in place: that of `offloaded`, or a replica of it.
        loss: of a micro-batch.
        kernels: the device's.
        offloaded: what brings the units.
        measured: see `choose_gradients`.

    Raises:
        MlxmathError: the model cannot be computed block by block.
    """

    def __init__(
        self, model: nn.Module, loss: Loss, kernels: Kernels, offloaded: Offloaded, measured: Loss | None = None
    ) -> None:
        self.offloaded = offloaded
        offloaded.attach(model)
        kinds, parts = kinds_of(model.layers), split(model)
        with offloaded.at_hand([kinds.index(kind) for kind in dict.fromkeys(kinds)]):
            reason = parts if isinstance(parts, str) else Blockwise.unsupported(model, kernels, parts)
            if not isinstance(parts, str) and not offloaded.holds(parts.head.layer):
                reason = "its logits are made by another layer than its head"
            whole = None
            if reason and not isinstance(parts, str) and offloaded.holds(parts.head.layer):
                reason = WholeBlocks.refused(model, parts, kernels)
                whole = None if reason else WholeBlocks(model, parts, kernels)
            if isinstance(parts, str) or reason:
                raise MlxmathError(
                    f"--offload on: this model cannot be trained with its blocks on the disk, since {reason}. Use "
                    "--offload off."
                )
            super().__init__(model, loss, kernels, parts, 1, whole, measured)
            if whole:
                self.how = "block by block, by autodiff of each"

    def cannot_share(self) -> str | None:
        """See `Gradients`."""
        return "its blocks are on the disk"

    def cannot_pack(self) -> str | None:
        """See `Gradients`."""
        return "its blocks are on the disk"

    def order(self, *, backward: bool) -> list[int]:
        """The units that `passes` or, without a backward pass, `loss_passes` wait for."""
        return [*self._blocks.numbers, HEAD, *(self._blocks.order if backward else ())]

    def passes(self, batch: Batch) -> Generator[int, None, tuple[mx.array, Tree]]:
        """`loss_and_gradients`."""
        total, found = yield from self._of_rows(batch, Rows(batch.inputs_BL))
        return total, tree_unflatten(list(found.items()))

    def loss_passes(self, batch: Batch) -> Generator[int, None, mx.array]:
        """`loss`."""
        hidden_BLD, _ = yield from self._blocks.forwards(Rows(batch.inputs_BL), keep=False)
        yield HEAD
        return self._measured(hidden_BLD.reshape(-1, hidden_BLD.shape[-1])[batch.positions_N], batch, self._head_alone)


class Together:
    """Lets a few workers go through the units of a model side by side.

    Args:
        offloaded: brings the units.
        order: of the units; what comes next begins with the first one again.
        num_workers: that call `results`, each once.
        stopped: asked before each unit.
    """

    def __init__(
        self, offloaded: Offloaded, order: Sequence[int], num_workers: int, stopped: Callable[[], bool]
    ) -> None:  # fmt: skip
        self._offloaded, self._order, self._stopped = offloaded, order, stopped
        self._left = pairwise([*order, order[0]])
        self._barrier = threading.Barrier(num_workers, self._bring)
        self._is_stopped = False

    def _bring(self) -> None:
        """What one of the workers does when all wait."""
        self._is_stopped = self._stopped()
        if not self._is_stopped:
            self._offloaded.bring(*next(self._left))

    def results(
        self,
        batches: Iterable[Batch],
        passes_of: Callable[[Batch], Generator[int, None, Result]],
        states: list[mx.array],
    ) -> list[tuple[Batch, Result]] | None:
        """What a worker's micro-batches come to, each beside its own.

        Args:
            batches: the micro-batches.
            passes_of: waits before every unit, in the order; evaluation of what is computed has begun by then.
            states: the random state in which each begins; overwritten.

        Returns:
            None if somebody asked to stop, or another worker failed.
        """
        results: dict[int, Result] = {}

        def go_on() -> None:
            for number, each in enumerate(passes):
                mx.random.state[0][:] = states[number]
                try:
                    next(each)
                except StopIteration as end:
                    results[number] = end.value
                    mx.eval(end.value)
                states[number] = mx.array(mx.random.state[0])
                mx.eval(states[number])
                mx.synchronize()  # nothing needs this unit any more

        try:
            taken = list(batches)
            passes = [passes_of(batch) for batch in taken]
            go_on()
            for _ in self._order:
                self._barrier.wait()
                if self._is_stopped:
                    return None
                go_on()
            return [(batch, results[number]) for number, batch in enumerate(taken)]
        except threading.BrokenBarrierError:
            return None  # the one that failed tells
        except BaseException:
            self._barrier.abort()
            raise
