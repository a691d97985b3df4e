"""Gradients of the preference losses: the policy's, with what the reference model says of each pair.

Shapes: B rows of a micro-batch (chosen, rejected, chosen, …).
"""

import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxmath.data.batching import Batch
from mlxmath.errors import MlxmathError
from mlxmath.runtime.ranks import Ranks
from mlxmath.training.checkpoint import Checkpoint
from mlxmath.training.fit import StepReport
from mlxmath.training.gradients import Gradients, Tree
from mlxmath.training.workers import replica

_FILE = "reference.npy"
_KIND = np.dtype([("pair", "<i8"), ("chosen", "<f4"), ("rejected", "<f4")])


def frozen(model: nn.Module) -> nn.Module:
    """The model as it is now, for good, in evaluation mode. The arrays are shared until training replaces them."""
    twin = replica(model)
    twin.freeze()
    twin.eval()
    return twin


class ReferenceLogprobs:
    """The log-probabilities of pairs under the reference model.

    Those of a training pair are computed once, where it is first wanted, shared with all ranks after the step, and put
    into the checkpoints as an array of 16 bytes a pair: so a resumed run goes on with the same, to the last bit. Those
    of held-out pairs, which always share micro-batches with the same others, come out the same each time; they are kept
    in memory by the micro-batch.

    Args:
        ranks: the processes that train together.
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        self._ranks = ranks or Ranks()
        self.known: dict[int, tuple[float, float]] = {}
        """Of the chosen and of the rejected completion, by the pair's number."""
        self.of_batches: dict[tuple[int, ...], list[float]] = {}
        """(B,) by the numbers of the pairs of a held-out micro-batch."""
        self._own: dict[int, tuple[float, float]] = {}
        """Those that the other ranks do not know yet."""

    def add(self, number: int, chosen: float, rejected: float) -> None:
        """Note what this rank has computed; what is known already stays."""
        if number not in self.known:
            self.known[number] = self._own[number] = (chosen, rejected)

    def on_step(self, _: StepReport) -> None:
        """Tell the other ranks what is new; on all ranks, before what saves."""
        if self._ranks.size > 1:
            for part in self._ranks.gather("reference", [(pair, *both) for pair, both in self._own.items()]):
                self._know(part)
        self._own.clear()

    def _know(self, found: Iterable[tuple[int, float, float]]) -> None:
        for pair, chosen, rejected in found:
            self.known.setdefault(pair, (chosen, rejected))

    def state(self) -> dict[str, Any]:
        """Nothing: they are in a file."""
        return {}

    def files(self) -> dict[str, Path | bytes]:
        """An array of (pair, chosen, rejected)."""
        rows = np.array([(pair, *both) for pair, both in sorted(self.known.items())], _KIND)
        stream = io.BytesIO()
        np.save(stream, rows, allow_pickle=False)
        return {_FILE: stream.getvalue()}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where the checkpoint was, on all ranks: rank 0 has the file."""
        rows: list[tuple[int, float, float]] = []
        path = checkpoint.path / _FILE
        if self._ranks.first and path.is_file():
            try:
                found = np.load(path, allow_pickle=False)
                rows = [(int(pair), float(chosen), float(rejected)) for pair, chosen, rejected in found]
            except (OSError, ValueError, TypeError) as error:
                raise MlxmathError(f"{path} is not what a checkpoint of pairs holds: {error}") from None
        self.known = {}
        self._know(self._ranks.gather("reference", rows)[0])


class PreferenceGradients:
    """Loss sums and gradients of `mlxmath.objectives.dpo.PreferenceOptimization`; see `Gradients`.

    Args:
        policy: of the model that trains.
        reference: computes `mlxmath.objectives.dpo.RowLogprobs` of the reference model.
        kept: of several workers the same.
    """

    def __init__(self, policy: Gradients, reference: Gradients, kept: ReferenceLogprobs) -> None:
        self.how, self.takes_parts = policy.how, policy.takes_parts
        self._policy, self._reference, self._kept = policy, reference, kept

    def cannot_share(self) -> str | None:
        """See `Gradients`."""
        return self._policy.cannot_share()

    def cannot_pack(self) -> str | None:
        """See `Gradients`."""
        return self._policy.cannot_pack()

    def loss(self, batch: Batch) -> mx.array:
        """See `Gradients`; of pairs that are not trained on."""
        kept, key = self._kept.of_batches, tuple(batch.more["numbers"].tolist())
        if key not in kept:
            kept[key] = self._reference.loss(batch).tolist()
        return self._policy.loss(_with_reference(batch, kept[key]))

    def loss_and_gradients(self, batch: Batch) -> tuple[mx.array, Tree]:
        """See `Gradients`."""
        numbers: list[int] = batch.more["numbers"].tolist()
        known = self._kept.known
        if any(number not in known for number in numbers):
            values: list[float] = self._reference.loss(batch).tolist()
            for number, chosen, rejected in zip(numbers, values[0::2], values[1::2], strict=True):
                self._kept.add(number, chosen, rejected)
        return self._policy.loss_and_gradients(_with_reference(batch, [v for n in numbers for v in known[n]]))


def _with_reference(batch: Batch, values: list[float]) -> Batch:
    """The batch with `reference` (B,)."""
    return replace(batch, more={**batch.more, "reference": mx.array(values, mx.float32)})
