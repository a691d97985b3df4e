"""Gradients of the preference losses: the policy's, with what the reference model says of each pair.

Shapes: B rows of a micro-batch (chosen, rejected, chosen, …).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxmath.data.batches import Batch
from mlxmath.training.checkpoint import Checkpoint
from mlxmath.training.gradients import Gradients, Tree
from mlxmath.training.workers import replica

_SECTION = "reference"


def frozen(model: nn.Module) -> nn.Module:
    """The model as it is now, for good, in evaluation mode. The arrays are shared until training replaces them."""
    twin = replica(model)
    twin.freeze()
    twin.eval()
    return twin


class ReferenceLogprobs:
    """The log-probabilities of pairs under the reference model, by the pair's number.

    Each is computed once, where it is first wanted, and goes into the checkpoints: so a resumed run goes on with the
    same, to the last bit.
    """

    def __init__(self) -> None:
        self.known: dict[int, tuple[float, float]] = {}
        """Of the chosen and of the rejected completion."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it, as JSON can."""
        return {_SECTION: [[number, *values] for number, values in sorted(self.known.items())]}

    def files(self) -> dict[str, Path]:
        """None."""
        return {}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where the checkpoint was."""
        self.known = {number: (chosen, rejected) for number, chosen, rejected in checkpoint.state[_SECTION]}


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
        """See `Gradients`."""
        return self._policy.loss(self._complete(batch))

    def loss_and_gradients(self, batch: Batch) -> tuple[mx.array, Tree]:
        """See `Gradients`."""
        return self._policy.loss_and_gradients(self._complete(batch))

    def _complete(self, batch: Batch) -> Batch:
        """The batch with `reference` (B,)."""
        known = self._kept.known
        numbers: list[int] = batch.more["numbers"].tolist()
        if any(number not in known for number in numbers):
            values = self._reference.loss(batch).tolist()
            for number, chosen, rejected in zip(numbers, values[0::2], values[1::2], strict=True):
                known.setdefault(number, (chosen, rejected))
        reference_B = mx.array([value for number in numbers for value in known[number]], mx.float32)
        return replace(batch, more={**batch.more, "reference": reference_B})
