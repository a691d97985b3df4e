"""The training loop. It never knows which objective it runs, nor on what."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import mlx.core as mx
import mlx.optimizers as optim

from mlxmath.data.batching import Window
from mlxmath.errors import MlxmathError
from mlxmath.runtime.console import warn
from mlxmath.training.deadline import Deadline, StopRequest
from mlxmath.training.step import WindowSum, accumulate, is_out_of_memory, over_ranks, update
from mlxmath.training.workers import Workers

MAX_BAD_WINDOWS = 5
"""Windows in a row without a finite gradient after which a run gives up."""

_STOPPED, _OUT_OF_MEMORY, _NUM_METRICS = 1, 2, 4
"""What the ranks vote on after their part of a window; the last is the first bit of a number."""

Ending = Literal["finished", "early_stopped", "deadline", "stopped", "diverged", "no_signal"]


@dataclass(frozen=True)
class Position:
    """How far a run is: `window` is the next one of `epoch`; `step` counts windows over all epochs."""

    step: int = 0
    epoch: int = 0
    window: int = 0
    num_tokens: int = 0
    num_targets: int = 0
    num_skipped: int = 0
    num_skipped_in_a_row: int = 0

    def after(self, window: Window, num_tokens: int, num_targets: int, *, skipped: bool) -> "Position":
        """The position once `window` is done."""
        return replace(
            self,
            step=self.step + 1,
            epoch=window.epoch,
            window=window.index + 1,
            num_tokens=self.num_tokens + num_tokens,
            num_targets=self.num_targets + num_targets,
            num_skipped=self.num_skipped + skipped,
            num_skipped_in_a_row=self.num_skipped_in_a_row + 1 if skipped else 0,
        )


@dataclass(frozen=True)
class StepReport:
    """One finished step, as hooks see it. `loss` is nats a target token; both are not finite if it was skipped."""

    position: Position
    loss: float
    grad_norm: float
    learning_rate: float
    num_tokens: int
    num_targets: int
    seconds: float
    applied: bool
    metric_sums: tuple[float, ...] = ()
    """Over the targets, what the objective reports beside the loss."""

    @property
    def metrics(self) -> tuple[float, ...]:
        """The means of `metric_sums`."""
        return tuple(value / self.num_targets for value in self.metric_sums)


Hook = Callable[[StepReport], Ending | None]
"""Called after a window; may say why the run should end."""


def fit(
    workers: Workers,
    windows: Iterable[Window],
    optimizer: optim.Optimizer,
    learning_rate: Callable[[int], float],
    *,
    max_grad_norm: float,
    deadline: Deadline,
    stop: StopRequest,
    hooks: Sequence[Hook] = (),
    position: Position = Position(),
) -> tuple[Ending, Position]:
    """Train on `windows` until they end, time is up or somebody asks to stop.

    A window whose loss or gradient is not finite is not applied and its rows are named; a window during which a stop is
    requested is abandoned, and random state is put back, so that a resumed run repeats it exactly.

    Several ranks (`workers.ranks`) give the same `windows`, of which each computes a part, and end in the same one.

    Args:
        workers: compute loss sums and gradients of micro-batches; their model's trainable parameters are those not
            frozen.
        windows: micro-batches of one optimizer step each, starting at `position`.
        optimizer: its learning rate is set before each step.
        learning_rate: rate by step number.
        max_grad_norm: global norm to clip to.
        deadline: asked before each window.
        stop: asked before each micro-batch.
        hooks: called after each window, in order, all of them; the first ending that one of them returns ends the run.
        position: where to start counting.

    Returns:
        Why it ended, and how far it got. "diverged": `MAX_BAD_WINDOWS` windows in a row were not finite; the parameters
        are the last good ones.
    """
    model, ranks = workers.model, workers.ranks
    model.train()
    for window in windows:
        if ranks.any("deadline", deadline.reached()):
            return "deadline", position
        start = time.perf_counter()
        random_state = mx.array(mx.random.state[0])
        sums = _accumulate(workers, window, stop, random_state)
        if sums is None:
            mx.random.state[0][:] = random_state
            return "stopped", position
        rate = learning_rate(position.step)
        loss = sums.loss_sum / sums.num_targets
        norm = update(model, optimizer, sums, rate, max_grad_norm) if math.isfinite(loss) else math.nan
        applied = math.isfinite(norm)
        position = position.after(window, sums.num_tokens, sums.num_targets, skipped=not applied)
        seconds = time.perf_counter() - start
        deadline.note_window(seconds)
        report = StepReport(
            position, loss, norm, rate, sums.num_tokens, sums.num_targets, seconds, applied, sums.metric_sums
        )
        if not applied:
            rows = window.row_numbers(sums.bad_rows or window.row_ids)
            warn(
                f"step {position.step}: {'gradient' if math.isfinite(loss) else 'loss'} is not finite, the step is "
                f"not applied; rows {', '.join(map(str, rows))}"
            )
        del sums  # the next window needs the memory
        endings = [ending for hook in hooks if (ending := hook(report))]
        if endings:
            return endings[0], position
        if position.num_skipped_in_a_row >= MAX_BAD_WINDOWS:
            return "diverged", position
    return "finished", position


def _accumulate(workers: Workers, window: Window, stop: StopRequest, random_state: mx.array) -> WindowSum | None:
    """`accumulate`, in ever smaller micro-batches while the device has too little memory; the sums stay the same."""
    while True:
        sums, shortage = None, ""
        try:
            sums = accumulate(workers, window, stopped=lambda: bool(stop))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            shortage = str(error) or "no more"
        own = _OUT_OF_MEMORY if shortage else _STOPPED if sums is None else _NUM_METRICS * len(sums.metric_sums)
        found = workers.ranks.vote("window", own)
        if found & _STOPPED:
            return None
        if not found & _OUT_OF_MEMORY:
            assert sums is not None
            return over_ranks(sums, workers.ranks, found // _NUM_METRICS)
        del sums
        finer = window.finer()
        if finer is None:
            raise MlxmathError(
                f"out of memory with a single row of the window ({shortage or 'on another rank'}). Use "
                "--grad-checkpoint 1, a smaller --max-seq-len, or --quantize 4."
            )
        window = finer
        warn(f"out of memory; micro-batches of at most {window.plan.max_rows} rows from now on, the same steps")
        mx.clear_cache()
        mx.random.state[0][:] = random_state
