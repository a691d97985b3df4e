"""Measuring on what is held out: before the first step, between steps and at the end; the best adapters are kept.

A measurement changes nothing that training depends on: not the order of its rows, not random state, not the mode of
the model. So a run is bit for bit the same with and without it.

All measurements of a run together take at most `SHARE` of its deadline. Where that is too little for everything that
is held out, a fixed seeded part of it is measured on, chosen once, before the first step, and kept in the checkpoints.
"""

import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlxmath.config.training import TrainingConfig
from mlxmath.errors import MlxmathError
from mlxmath.models.lora.adapter import CONFIG, WEIGHTS, load_weights, save_arrays
from mlxmath.models.lora.inject import adapter_arrays
from mlxmath.runtime.console import duration, say, warn
from mlxmath.runtime.files import atomic_folder, disk_errors, link_or_copy
from mlxmath.runtime.sealed import sealed_json
from mlxmath.training.accumulate import Workers
from mlxmath.training.checkpoint import Checkpoint, Ending, Part, Position, share_adapters
from mlxmath.training.deadline import Deadline, StopRequest
from mlxmath.training.held_out import LOSS, Best, HeldOut, Measurement
from mlxmath.training.schedule import MARKS

HELD_OUT = "held_out.json"
"""In the adapter folder, with `row_losses`: of each held-out row its number, the best adapters' sum and its targets."""
BEST = "best"
"""Folder of the best adapters, in the adapter folder."""
SHARE = 0.1
"""Of the deadline, for all measurements together."""
CLOSING_S = 10.0
"""A run that a signal ends is measured once more only if that takes no longer: whoever asked may not wait."""
_TRIAL_SHARE, _TRIAL_S, _LONGEST_TRIAL = 0.005, 2.0, 0.02
"""A trial that took this share of the deadline, or these seconds, tells enough of the speed; none may take more than
the last share."""
_STEPS_BETWEEN, _PARTS = 25, 8
"""Unless told otherwise, long epochs are measured in parts, too, of at least 25 steps and an eighth of the run."""
_SECTION, _SAVED_BEST = "validation", "best.safetensors"


class Validation(Part):
    """Measures when it is time to, keeps the best adapters in `best/`, and says when there is no point in going on.

    It is time before the first step; after every `eval_every` steps (unset: at each epoch's end, or more often if
    epochs are long); in a run that its deadline will end, also at marks in time; and at the end of the run, however it
    ends. All ranks measure together and find the same; rank 0 keeps the best adapters and tells the listeners.

    Args:
        workers: their model holds the adapters.
        held_out: what is measured; None: nothing ever is.
        folder: the adapter folder, with its adapter_config.json.
        config: `eval_every`, `early_stopping_patience` and `early_stopping_min_delta`.
        steps_per_epoch: steps from one epoch's end to the next.
        total_steps: the run's last planned step.
        deadline: learns how long measuring takes, so that there is time for the last one.
        stop: a measurement that a signal comes to is abandoned.
        is_marked: whether it is time to after a step, by the clock, on all ranks alike.
        clock: monotonic seconds.
        listeners: told of each measurement, on rank 0.
    """

    def __init__(
        self, workers: Workers, held_out: HeldOut | None, folder: Path, config: TrainingConfig, *,
        steps_per_epoch: int, total_steps: int, deadline: Deadline, stop: StopRequest,
        is_marked: Callable[[int], bool] = lambda _: False, clock: Callable[[], float] = time.perf_counter,
        listeners: Sequence[Callable[[Measurement], None]] = (),
    ) -> None:  # fmt: skip
        self._workers, self._folder, self._ranks = workers, folder, workers.ranks
        self._held_out, self._metric = held_out, held_out.metric if held_out else LOSS
        self._config, self._total_steps = config, total_steps
        num_parts = max(1, int(steps_per_epoch // max(_STEPS_BETWEEN, total_steps / _PARTS)))
        self._every = config.eval_every or max(1, math.ceil(steps_per_epoch / num_parts))
        self._span = self._every if config.eval_every else max(1, steps_per_epoch)
        """Steps at whose end it is always time, and counted anew."""
        self._deadline, self._stop, self._is_marked, self._clock = deadline, stop, is_marked, clock
        self.listeners = listeners
        self.count = held_out.num_items if held_out else 0
        """Items measured on."""
        self._is_chosen = self._told = False
        self._seconds = self._spent_s = 0.0
        """That the last measurement took, and all in this process."""
        self.history: list[tuple[int, float]] = []
        """(step, value) of all measurements."""
        self.best: Best | None = None
        """What the folder `best/` holds: the best, unless it could not be written."""
        self._reference = self._metric.worst
        """The value to be better than, by more than the least difference that counts."""
        self.num_without_improvement = 0

    def begin(self, position: Position) -> Ending | None:
        """What comes before the first step: how many items to measure on, and where the run starts from.

        A resumed run goes on with those of its checkpoint, and makes up for the measurement that this came too early
        for.
        """
        if self._held_out is None:
            return None
        if not self._is_chosen:
            self._choose(position)
        if not self.history or (self._is_due(position) and not self._is_measured(position)):
            return self._measure(position)
        step, value = self.history[-1]
        found = f", the best {self.best.value:.4f} at step {self.best.step}" if self.best else ""
        say(f"measured so far: validation {self._metric.name} {value:.4f} at step {step}{found}")
        return self._verdict()

    def after(self, position: Position) -> Ending | None:
        """Measure if it is time to; tell why the run should end, if it should."""
        if self._held_out is None or not (self._is_due(position) or self._is_marked(position.step)):
            return None
        if position.step != self._total_steps and self._is_over(position.step):
            return None
        return self._measure(position)

    def close(self, ending: Ending, position: Position) -> bool:
        """Measure once more what the run has come to, if there is time. Not counted as one without improvement.

        Returns:
            Whether it was measured now.
        """
        if self._held_out is None or not self.history or self._is_measured(position):
            return False
        by_signal = ending == "stopped"
        start, asked_before = self._clock(), by_signal or bool(self._stop)
        reason = "the time is up" if self._deadline.must_save() else None
        if by_signal and self._seconds > CLOSING_S:
            reason = "a signal ended the run"
        if self._ranks.any("last validation", reason is not None):
            say(f"not measured once more at the end: {reason}, and it takes {duration(self._seconds)}")
            return False

        def stopped() -> bool:
            late = by_signal and self._clock() - start > 2 * CLOSING_S
            return late or (bool(self._stop) and not asked_before) or self._deadline.must_save()

        is_taken = self._take(position, stopped, counts=self._is_due(position))
        if not is_taken:
            say("not measured once more at the end: there was no time to finish it")
        return is_taken

    def measure_rows(self, fingerprint: str | None) -> None:
        """Write held_out.json: the best adapters on each row. The model has them afterwards; it trains no more.

        Args:
            fingerprint: of what is held out, by which others' rows are known to be the same.
        """
        if self._held_out is None or self._held_out.measure_rows is None or self.best is None:
            return
        if self._ranks.first:
            load_weights(self._workers.model, self._folder / BEST / WEIGHTS)
        share_adapters(self._workers.model, self._ranks)
        found = self._held_out.measure_rows(self.count, lambda: bool(self._stop) or self._deadline.must_save())
        if found is None:
            say(f"not measured row by row: there was no time to finish it; {HELD_OUT} is not written")
        elif self._ranks.first:
            rows = [[row, _finite(value), count] for row, value, count in found]
            told = {"step": self.best.step, "metric": self._metric.name, "fingerprint": fingerprint, "rows": rows}
            sealed_json(self._folder / HELD_OUT, told)

    def _is_due(self, position: Position) -> bool:
        is_time = position.step % self._span % self._every == 0
        return position.step > 0 and (is_time or position.step == self._total_steps)

    def _is_measured(self, position: Position) -> bool:
        return bool(self.history) and self.history[-1][0] == position.step

    def _is_over(self, step: int) -> bool:
        """Whether this measurement and the last one would take more than all may together."""
        allowed_s = SHARE * self._deadline.limit_s
        is_due = self._ranks.first and self._spent_s + 2 * self._seconds > allowed_s
        is_over = self._ranks.any("validations are over", is_due)
        if is_over and not self._told:
            self._told = True
            used = f"{duration(self._spent_s)} of the {duration(allowed_s)} for validation"
            say(f"step {step}: measured next at the end of the run: {used} ({SHARE:.0%} of the deadline) are used up")
        return is_over

    def _choose(self, position: Position) -> None:
        """Find out how many items all measurements of the run have time for, by trials on ever more of them."""
        assert self._held_out is not None
        held_out, limit_s, start = self._held_out, self._deadline.limit_s, self._clock()
        all_items, longest_s = held_out.num_items, _LONGEST_TRIAL * limit_s
        count, is_growing = max(1, min(all_items, held_out.at_once)), True
        while True:
            before = self._clock()
            found = held_out.measure(count, lambda: bool(self._stop) or self._clock() - before > longest_s)  # noqa: B023
            took = self._ranks.gather("trial", self._clock() - before)[0]
            if found is None and self._ranks.any("stopped", bool(self._stop)):
                return
            if found is None and count > 1:  # too long
                count, is_growing = max(1, count // 4), False
                continue
            if not is_growing or count == all_items or took >= min(_TRIAL_S, _TRIAL_SHARE * limit_s):
                break
            count = min(all_items, 4 * count)
        item_s = took / count
        steps = min(max(0, self._total_steps - position.step), limit_s / max(held_out.step_items * item_s, 1e-9))
        times = 2 + min(steps, MARKS) + steps / self._every
        self._spent_s += self._ranks.gather("trials", self._clock() - start)[0]
        room_s = max(0.0, SHARE * limit_s - self._spent_s)
        self.count = max(1, min(all_items, int(room_s / times / max(item_s, 1e-9))))
        self._is_chosen, is_all = True, self.count == all_items
        why = "" if is_all else f", so that {SHARE:.0%} of the deadline is enough"
        part = f"{'all' if is_all else f'{self.count:,} of'} {all_items:,} held-out {held_out.unit}"
        say(f"validation on {part}, {duration(self.count * item_s)} each time{why}")

    def _measure(self, position: Position) -> Ending | None:
        """Measure, unless the run has to end first."""
        if not self._take(position, lambda: bool(self._stop) or self._deadline.reached(), counts=True):
            return "stopped" if self._ranks.any("stopped", bool(self._stop)) else "deadline"
        return self._verdict()

    def _take(self, position: Position, stopped: Callable[[], bool], *, counts: bool) -> bool:
        """Measure and keep what is best; whether it came to its end."""
        assert self._held_out is not None
        start = self._clock()
        found = self._held_out.measure(self.count, stopped)
        if found is None:
            return False
        self._seconds = self._clock() - start
        self._spent_s += self._seconds
        self._deadline.note_validation(self._seconds)
        value, num_targets, *metrics = found
        self.history.append((position.step, value))
        if self._metric.is_better(value, self._reference, self._config.early_stopping_min_delta):
            self._reference, self.num_without_improvement = value, 0
        elif counts:
            self.num_without_improvement += 1
        if math.isfinite(value) and (self.best is None or self._metric.is_better(value, self.best.value)):
            self._keep(position.step, value)
        of_all = max if self._metric.higher_is_better else min
        finite = (Best(step, other) for step, other in self.history if math.isfinite(other))
        best = of_all(finite, key=lambda each: each.value, default=None)
        step, epoch = position.step, position.epoch
        measurement = Measurement(step, epoch, value, num_targets, self._seconds, best, tuple(metrics), self._metric)
        for listener in self.listeners if self._ranks.first else ():
            listener(measurement)
        return True

    def _verdict(self) -> Ending | None:
        patience = self._config.early_stopping_patience
        return "early_stopped" if patience is not None and self.num_without_improvement >= patience else None

    def _keep(self, step: int, value: float) -> None:
        """Write `best/`. A disk that is full now may not be at the next one: the run goes on, on all ranks alike."""
        failed = False
        metadata = {"format": "mlx", "step": str(step), f"validation_{self._metric.name}": repr(value)}
        folder, arrays = self._folder / BEST, adapter_arrays(self._workers.model)
        try:
            if self._ranks.first and (folder / CONFIG).is_file():
                save_arrays(folder / WEIGHTS, arrays, metadata)
            elif self._ranks.first:
                with atomic_folder(folder) as temporary:
                    shutil.copyfile(self._folder / CONFIG, temporary / CONFIG)
                    save_arrays(temporary / WEIGHTS, arrays, metadata)
        except MlxmathError as error:
            warn(f"the best adapters so far, of step {step}, are not kept: {error}")
            failed = True
        if not self._ranks.any("best not kept", failed):
            self.best = Best(step, value)

    def summary(self) -> dict[str, Any] | None:
        """For run.json; None before the first measurement."""
        if not self.history or self._held_out is None:
            return None

        def plain(step: int, value: float) -> dict[str, Any]:
            return {"step": step, self._metric.name: _finite(value)}

        return {
            "measurements": len(self.history),
            "metric": self._metric.name,
            "measured_on": self.count,
            "held_out": self._held_out.num_items,
            "first": plain(*self.history[0]),
            "last": plain(*self.history[-1]),
            "best": plain(self.best.step, self.best.value) if self.best else None,
            "without_improvement": self.num_without_improvement,
        }

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it, as JSON can."""
        return {
            _SECTION: {
                "metric": self._metric.name,
                "measured_on": self.count if self._is_chosen else None,
                "history": [[step, _finite(value)] for step, value in self.history],
                "best": vars(self.best) if self.best else None,
                "reference": _finite(self._reference),
                "without_improvement": self.num_without_improvement,
            }
        }

    def files(self) -> dict[str, Path | bytes]:
        """Files that a checkpoint takes in: the best adapters, which a later step may replace."""
        return {_SAVED_BEST: self._folder / BEST / WEIGHTS} if self.best else {}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where the checkpoint was, `best/` too."""
        saved = checkpoint.state.get(_SECTION, {})
        if saved.get("metric") != self._metric.name:  # of version 0.1, which measured something else, or on all
            saved = {}
        self.history = [(step, math.nan if value is None else value) for step, value in saved.get("history", ())]
        self.best = Best(**saved["best"]) if saved.get("best") else None
        reference = saved.get("reference")
        self._reference = self._metric.worst if reference is None else reference
        self.num_without_improvement = saved.get("without_improvement", 0)
        if self._held_out is not None and saved.get("measured_on"):
            self.count, self._is_chosen = min(saved["measured_on"], self._held_out.num_items), True
        folder = self._folder / BEST
        if self._ranks.first and self.best is None:
            with disk_errors(folder):
                shutil.rmtree(folder, ignore_errors=True)
        elif self._ranks.first:
            with atomic_folder(folder) as temporary:
                shutil.copyfile(self._folder / CONFIG, temporary / CONFIG)
                link_or_copy(checkpoint.path / _SAVED_BEST, temporary / WEIGHTS)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
