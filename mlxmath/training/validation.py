"""Loss on held-out rows: measured between steps, the best adapters kept, the run ended when it no longer falls.

A measurement changes nothing that training depends on: not the order of its rows, not random state, not the mode of
the model. So a run is bit for bit the same with and without it.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxmath.config.schema import TrainingConfig
from mlxmath.console import warn
from mlxmath.data.batches import Window
from mlxmath.errors import MlxmathError
from mlxmath.files import atomic_folder, disk_errors, link_or_copy
from mlxmath.lora.adapter import CONFIG, WEIGHTS, save_arrays
from mlxmath.lora.inject import adapter_arrays
from mlxmath.training.checkpoint import Checkpoint
from mlxmath.training.deadline import Deadline, StopRequest
from mlxmath.training.fit import Ending, Position, StepReport
from mlxmath.training.gradients import Gradients
from mlxmath.training.workers import Workers

BEST = "best"
"""Folder of the best adapters, in the adapter folder."""
Measure = Callable[[Callable[[], bool]], tuple[float, int, *tuple[float, ...]] | None]
"""Given `stopped`: a number to be low, how many items it is the mean of, and means of other things; None if `stopped()`
came true. All ranks call it, and get the same."""

_SAVED_BEST = "best.safetensors"
_SECTION = "validation"


@dataclass(frozen=True)
class Best:
    """A validation loss that was the lowest when it was measured."""

    step: int
    loss: float


@dataclass(frozen=True)
class Measurement:
    """A validation loss, in nats a target token; not finite if the model's output is not."""

    step: int
    epoch: int
    loss: float
    num_targets: int
    seconds: float
    lowest: Best | None
    """The lowest so far, this one included."""
    metrics: tuple[float, ...] = ()
    """Means of what the objective reports beside the loss."""

    @property
    def is_best(self) -> bool:
        """Whether this is the lowest so far."""
        return self.lowest is not None and self.lowest.step == self.step


def mean_loss(
    workers: Workers, windows: Iterable[Window], stopped: Callable[[], bool] = lambda: False
) -> tuple[float, int, *tuple[float, ...]] | None:
    """Mean loss over all target tokens of `windows`, each token counting the same, in evaluation mode.

    Each rank computes a part; all get the same.

    Returns:
        The mean, the number of target tokens and the means of what the objective reports besides, or None if
        `stopped()` came true before the last micro-batch.
    """
    random_state = mx.array(mx.random.state[0])
    model, training = workers.model, workers.model.training
    model.eval()

    def work(gradients: Gradients, share: tuple[tuple[Window, int], ...]) -> list[tuple[int, list[float]]]:
        found: list[tuple[int, list[float]]] = []
        for window, index in share:
            if stopped():
                break
            batch = window.batch(index)
            found.append((batch.num_targets, gradients.loss(batch).reshape(-1).tolist()))
        return found

    try:
        micro_batches = [(window, index) for window in windows for index in range(len(window.micro_batches))]
        shares = [tuple(micro_batches[first :: workers.num_in_all]) for first in range(workers.num_in_all)]
        own = [one for part in workers.run(work, workers.own(shares)) for one in part]
    finally:
        model.train(training)
        mx.random.state[0][:] = random_state
    found = [one for part in workers.ranks.gather("validation", own) for one in part]
    if len(found) < len(micro_batches):
        return None
    num_targets = sum(targets for targets, _ in found)
    columns = zip(*(sums for _, sums in found), strict=True)
    loss, *metrics = (
        (math.fsum(column) if all(map(math.isfinite, column)) else math.nan) / num_targets for column in columns
    )
    return loss, num_targets, *metrics


class Validation:
    """Measures when it is time to, keeps the best adapters in `best/`, and says when there is no point in going on.

    All ranks measure together and find the same; rank 0 keeps the best adapters and tells the listeners.

    Args:
        workers: their model holds the adapters.
        measure: what is measured, such as `mean_loss`; None: nothing ever is.
        folder: the adapter folder, with its adapter_config.json.
        config: `eval_every`, `early_stopping_patience` and `early_stopping_min_delta`.
        windows_per_epoch: steps from one epoch's end to the next.
        total_steps: the run's last step, after which it is measured in any case.
        deadline: a measurement that does not fit into the time left is abandoned, and with it the run.
        stop: likewise.
        listeners: told of each measurement, on rank 0.
    """

    def __init__(
        self,
        workers: Workers,
        measure: Measure | None,
        folder: Path,
        config: TrainingConfig,
        *,
        windows_per_epoch: int,
        total_steps: int,
        deadline: Deadline,
        stop: StopRequest,
        listeners: Sequence[Callable[[Measurement], None]] = (),
    ) -> None:
        self._workers, self._folder, self._ranks = workers, folder, workers.ranks
        self._measured = measure
        self._config, self._windows_per_epoch, self._total_steps = config, windows_per_epoch, total_steps
        self._deadline, self._stop = deadline, stop
        self.listeners = listeners
        self._seconds = 0.0
        self.history: list[tuple[int, float]] = []
        """(step, loss) of all measurements."""
        self.best: Best | None = None
        """What the folder `best/` holds: the lowest, unless it could not be written."""
        self._reference = math.inf
        """The loss to fall below by more than the least difference that counts."""
        self.num_without_improvement = 0

    def on_step(self, report: StepReport) -> Ending | None:
        """Measure if it is time to; tell why the run should end, if it should."""
        return self._measure(report.position) if self._is_due(report.position) else None

    def catch_up(self, position: Position) -> Ending | None:
        """What a resumed run does first: the measurement that its checkpoint came too early for."""
        if self._is_due(position) and not (self.history and self.history[-1][0] == position.step):
            return self._measure(position)
        return self._verdict()

    def _is_due(self, position: Position) -> bool:
        if self._measured is None or position.step == 0:
            return False
        every = self._config.eval_every or self._windows_per_epoch
        return position.step % every == 0 or position.step == self._total_steps

    def _measure(self, position: Position) -> Ending | None:
        if self._ranks.any("time to validate", self._deadline.left_s < self._seconds):
            return "deadline"
        start = time.perf_counter()
        assert self._measured is not None
        found = self._measured(lambda: bool(self._stop) or self._deadline.reached())
        if found is None:
            return "stopped" if self._ranks.any("stopped", bool(self._stop)) else "deadline"
        self._seconds = time.perf_counter() - start
        loss, num_targets, *metrics = found
        self.history.append((position.step, loss))
        if loss < self._reference - self._config.early_stopping_min_delta:
            self._reference, self.num_without_improvement = loss, 0
        else:
            self.num_without_improvement += 1
        if math.isfinite(loss) and (self.best is None or loss < self.best.loss):
            self._keep(position.step, loss)
        lowest = min((Best(*entry) for entry in self.history if math.isfinite(entry[1])), key=_loss, default=None)
        measurement = Measurement(
            position.step, position.epoch, loss, num_targets, self._seconds, lowest, tuple(metrics)
        )
        for listener in self.listeners if self._ranks.first else ():
            listener(measurement)
        return self._verdict()

    def _verdict(self) -> Ending | None:
        patience = self._config.early_stopping_patience
        return "early_stopped" if patience is not None and self.num_without_improvement >= patience else None

    def _keep(self, step: int, loss: float) -> None:
        """Write `best/`. A disk that is full now may not be at the next one: the run goes on."""
        if not self._ranks.first:
            self.best = Best(step, loss)
            return
        metadata = {"format": "mlx", "step": str(step), "validation_loss": repr(loss)}
        arrays = adapter_arrays(self._workers.model)
        folder = self._folder / BEST
        try:
            if (folder / CONFIG).is_file():
                save_arrays(folder / WEIGHTS, arrays, metadata)
            else:
                with atomic_folder(folder) as temporary:
                    shutil.copyfile(self._folder / CONFIG, temporary / CONFIG)
                    save_arrays(temporary / WEIGHTS, arrays, metadata)
        except MlxmathError as error:
            warn(f"the best adapters so far, of step {step}, are not kept: {error}")
        else:
            self.best = Best(step, loss)

    def summary(self) -> dict[str, Any] | None:
        """For run.json; None before the first measurement."""
        if not self.history:
            return None
        step, loss = self.history[-1]
        return {
            "measurements": len(self.history),
            "last": {"step": step, "loss": _finite(loss)},
            "best": vars(self.best) if self.best else None,
            "without_improvement": self.num_without_improvement,
        }

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it, as JSON can."""
        return {
            _SECTION: {
                "history": [[step, _finite(loss)] for step, loss in self.history],
                "best": vars(self.best) if self.best else None,
                "reference": _finite(self._reference),
                "without_improvement": self.num_without_improvement,
            }
        }

    def files(self) -> dict[str, Path]:
        """Files that a checkpoint takes in: the best adapters, which a later step may replace."""
        return {_SAVED_BEST: self._folder / BEST / WEIGHTS} if self.best else {}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where the checkpoint was, `best/` too."""
        saved = checkpoint.state.get(_SECTION, {})
        self.history = [(step, math.nan if loss is None else loss) for step, loss in saved.get("history", ())]
        self.best = Best(**saved["best"]) if saved.get("best") else None
        reference = saved.get("reference")
        self._reference = math.inf if reference is None else reference
        self.num_without_improvement = saved.get("without_improvement", 0)
        if not self._ranks.first:
            return
        folder = self._folder / BEST
        if self.best is None:
            with disk_errors(folder):
                shutil.rmtree(folder, ignore_errors=True)
            return
        with atomic_folder(folder) as temporary:
            shutil.copyfile(self._folder / CONFIG, temporary / CONFIG)
            link_or_copy(checkpoint.path / _SAVED_BEST, temporary / WEIGHTS)


def _loss(best: Best) -> float:
    return best.loss


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
