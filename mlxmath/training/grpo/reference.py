"""What GRPO's KL is to: the model as it was at the start."""

from typing import Any

import mlx.core as mx

from mlxmath.data.batch import RolloutTargets
from mlxmath.data.batching import StepBatch
from mlxmath.models.lora.inject import adapter_arrays
from mlxmath.runtime.ranks import Ranks
from mlxmath.training.gradients import Gradients


class Reference:
    """Log-probabilities under the model as it was at the start: the base, or the adapter that the run started from.

    Args:
        model: at the start.
        logprobs: computes `target_logprobs` of a micro-batch.
        ranks: each computes a part; all get all.
    """

    def __init__(self, model: Any, logprobs: Gradients, ranks: Ranks | None = None) -> None:
        self._model, self._logprobs, self._ranks = model, logprobs, ranks or Ranks()
        self._arrays = {name: mx.array(array) for name, array in adapter_arrays(model).items()}
        mx.eval(list(self._arrays.values()))

    def __call__(self, step: StepBatch) -> dict[int, list[float]]:
        """By the row of the step, of each of its targets."""
        now = adapter_arrays(self._model)
        self._model.load_weights(list(self._arrays.items()), strict=False)
        self._model.eval()
        found: dict[int, list[float]] = {}
        ranks = self._ranks
        try:
            for index, ids in list(enumerate(step.micro_batches))[ranks.rank :: ranks.size]:
                batch = step.batch(index)
                values: list[float] = self._logprobs.loss(batch).tolist()
                assert isinstance(batch.extra, RolloutTargets)
                rows = batch.extra.rows_N.tolist()[: batch.num_targets]
                for position, value in zip(rows, values, strict=False):
                    found.setdefault(ids[position], []).append(value)
        finally:
            self._model.load_weights(list(now.items()), strict=False)
            self._model.train()
        return {row: values for part in ranks.gather("reference", list(found.items())) for row, values in part}
