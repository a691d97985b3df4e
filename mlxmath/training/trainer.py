"""The part of a run that all methods share: one optimizer step after the other, until the run ends, saved.

A method's page (`sft.py`, `dpo.py`, `reward_model.py`, `grpo/train.py`) drives it:

    trainer = Trainer(run, run.gradients(loss))      optimizer, gradients, what the checkpoint holds
    with trainer.running(batches, held_out, log):    signals are caught, the run's files are begun and ended
        for batch in trainer.steps():                until the last step, the deadline, a signal
            sums = trainer.loss_and_grads(batch)     micro-batches summed on all workers and ranks
            step = trainer.update(sums)              divided once, checked finite, clipped
            log.step(step)
            trainer.validate_if_due()                on what is held out; the best adapters are kept
            trainer.save_if_due()                    a checkpoint that continues the run bit for bit
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import islice

import mlx.core as mx
import mlx.nn as nn

from mlxmath import __version__
from mlxmath.data.batching import BatchSampler, StepBatch
from mlxmath.data.load import TrainingData
from mlxmath.errors import MlxmathError
from mlxmath.runtime.console import duration, fail, say, size, warn
from mlxmath.runtime.energy import Meter, counters
from mlxmath.runtime.trouble import SHORT_OF_MEMORY, trouble
from mlxmath.training import record
from mlxmath.training.accumulate import StepSums, Workers, accumulate, over_ranks
from mlxmath.training.checkpoint import Ending, Part, Position, Saver, as_written, check_settings, restore, share_state
from mlxmath.training.deadline import Deadline, StopRequest
from mlxmath.training.event_file import EVENTS
from mlxmath.training.events import COMPLETE, StepReport, TrainResult
from mlxmath.training.exact_answers import held_out_answers
from mlxmath.training.gradients import Gradients
from mlxmath.training.held_out import ANSWERS, HeldOut, Prepare, held_out_rows
from mlxmath.training.logging import CURVES_PLOT, LOSS_PLOT, RunLogger
from mlxmath.training.optimizers import apply_gradients, make_optimizer
from mlxmath.training.schedule import Pace
from mlxmath.training.setup import Batches, Run
from mlxmath.training.trackers import Trackers
from mlxmath.training.validation import BEST, Validation

MAX_BAD_STEPS = 5
"""Steps in a row without a finite gradient after which a run gives up."""
_STOPPED, _OUT_OF_MEMORY, _NUM_METRICS = 1, 2, 4
"""What the ranks vote on after their part of a step; the last is the first bit of a number."""


class Trainer:
    """See the module.

    Args:
        run: with its model and adapters; the model's trainable parameters are those that train.
        gradients_of: makes the loss and gradients of a replica of the model.

    Raises:
        InputError: the checkpoint belongs to another run.
    """

    def __init__(self, run: Run, gradients_of: Callable[[nn.Module], Gradients]) -> None:
        self.run, self.config, self.ranks, self.model = run, run.config.training, run.ranks, run.model
        self.optimizer = make_optimizer(self.config, run.model, run.config.lora.plus_ratio)
        self.position = Position()
        if run.checkpoint:
            if run.ranks.first:
                check_settings(run.checkpoint, run.fixed)
                with as_written(run.checkpoint):
                    restore(run.checkpoint, run.model, self.optimizer)
            self.position = run.checkpoint.position
        share_state(run.model, self.optimizer, run.ranks)
        run.model.train()  # ways to gradients are tried as they are used: what answers alone may have no gradient
        self.workers = Workers(run.model, gradients_of, run.batching.num_workers, run.ranks)
        run.closing.callback(self.workers.close)
        self.stop, self.deadline = StopRequest(), Deadline(self.config.max_training_time_hours * 3600)
        self._meter = Meter([])  # until the run begins
        self.ending: Ending | None = None
        self.loss: float | None = None
        self.reason = ""
        """More on `ending`, for people."""

    def sample(self, data: TrainingData, prepare: Prepare | None = None) -> tuple[BatchSampler, HeldOut | None]:
        """The order of the rows (or pairs) to train on, and those to measure on, as micro-batches for the workers.

        `prepare` is given what is measured; see `held_out_rows`.
        """
        run, training, workers = self.run, self.config, self.workers
        if training.batching == "pack" and (reason := workers.cannot_pack):
            say(f"--batching pack: buckets take its place, since with this model {reason}")
            training, data = training.model_copy(update={"batching": "bucket"}), data.unpacked()
        make = partial(data.sampler, config=training, max_tokens=run.max_tokens, shape=run.shape)
        if data.rows_each == 2:
            compiles = self.ranks.any("compiles", run.backend.compiles)
            reason = "shapes would be too many to compile each" if compiles else workers.cannot_share
            make = partial(make, shares=reason is None)
            if reason:
                say(f"the prompt of a pair is computed for both of its completions, since {reason}")
        batches: BatchSampler = make(data.train, num_workers=workers.num_in_all)
        held_out = None
        if data.held_out:
            held_out = held_out_rows(workers, make(data.held_out), training, data.unit, prepare)
        if held_out and training.validation_metric == ANSWERS.name:
            held_out = held_out_answers(run, workers, data, held_out)
        say(
            f"{len(data.train):,} {data.unit}, {data.num_tokens:,} tokens an epoch; "
            f"{self.planned_steps(batches.steps_per_epoch):,} steps of {training.batch_size} x "
            f"{training.grad_accumulation_steps} {data.unit}, micro-batches of up to {run.max_tokens:,} tokens; "
            f"{workers.how}"
        )
        return batches, held_out

    def planned_steps(self, steps_per_epoch: int) -> int:
        """`max_steps`, over as many epochs as that takes; or the steps of all epochs."""
        return self.config.max_steps or self.config.num_epochs * steps_per_epoch

    @contextmanager
    def running(
        self, batches: Batches, held_out: HeldOut | None, log: RunLogger, parts: Sequence[Part] = ()
    ) -> Iterator[None]:
        """From the first step to the last file; the method's loop stands inside.

        Args:
            batches: make the steps.
            held_out: what is measured; None if nothing is held out.
            log: tells of it, on rank 0.
            parts: what else goes into the checkpoints, and comes back on a resume.
        """
        run, config, ranks = self.run, self.config, self.ranks
        per_epoch, total_steps = batches.steps_per_epoch, self.planned_steps(batches.steps_per_epoch)
        self._batches, self.total_steps, self._log = batches, total_steps, log
        if total_steps > config.num_epochs * per_epoch:
            say(
                f"--max-steps {total_steps:,} are {total_steps / per_epoch:.1f} epochs of {per_epoch:,} steps, and "
                f"count more than --num-epochs {config.num_epochs}"
            )
        self.pace = Pace(config, total_steps, self.position, self.deadline, ranks)
        self.validation = Validation(
            self.workers, held_out, run.folder, config, steps_per_epoch=per_epoch, total_steps=total_steps,
            deadline=self.deadline, stop=self.stop,
            is_marked=lambda step: self.pace.is_limited and self.pace.is_mark(step),
        )  # fmt: skip
        self._parts: list[Part] = [run, self.validation, self.pace, *parts]
        self._saver = Saver(
            run.folder, self.model, self.optimizer, run.fixed, config, self.deadline, self._parts,
            self.pace.is_checkpoint,
        )  # fmt: skip
        with self.stop.listening():
            if ranks.first:
                self._begin_files()
            with log if ranks.first else nullcontext():
                if run.checkpoint:
                    for part in self._parts:
                        with as_written(run.checkpoint):
                            part.restore(run.checkpoint)
                run.backend.reset_peak()
                ranks.begin()
                self.end(self.validation.begin(self.position))
                self.pace.begin()
                try:
                    yield
                    self._close()
                except BaseException:
                    if ranks.first:
                        self._record.update(status="failed")
                    raise
        if ranks.first:
            self._finish()

    def _begin_files(self) -> None:
        """Write what is known of the run before it begins."""
        run, anew = self.run, self.run.checkpoint is None
        self._meter = Meter(counters(run.device.backend))
        record.start(run.folder, run.adapter_config, run.chat_template, anew=anew, resumed=self.config.resume)
        record.save_settings(run.folder, run.settings, run.sections, run.manifest.revision)
        base = {"revision": run.manifest.revision, "fingerprint": run.manifest.identity}
        self._record = record.Record(
            run.folder, run.settings, run.device, run.blas, run.data.facts, run.injected, run.method, base,
            {"planned_steps": self.total_steps, "planned_bytes": run.planned_bytes},
        )  # fmt: skip
        self._log.begin(run.folder, self.position, self.total_steps, self.deadline, run.backend, resumed=not anew)
        self._log.write("start" if anew else "resume", step=self.position.step, total_steps=self.total_steps)
        self._trackers = Trackers(
            self.config.report_to, run.folder, run.method, run.settings, run.sections,
            {"mlxmath": __version__, "backend": run.device.backend, "device": run.device.device,
             "planned_steps": self.total_steps},
            events=run.folder / EVENTS, images=[run.folder / name for name in (LOSS_PLOT, CURVES_PLOT)],
        )  # fmt: skip
        run.closing.callback(self._trackers.close, failed=True)
        self.validation.listeners = (
            self._log.validation, lambda _: self._record.update(validation=self.validation.summary()),
        )  # fmt: skip
        self.pace.listener = lambda step, expected: self._log.write("pace", step=step, expected_steps=expected)

    def steps(self) -> Iterator[StepBatch]:
        """The batches of the steps that are left. After it `ending` says why there are no more."""
        if self.ending:
            return
        self.model.train()
        position = self.position
        last = min(self.total_steps, self.config.pause_at or math.inf)
        left = int(max(0, last - position.step))
        for batch in islice(self._batches.steps(position.epoch, position.window), left):
            if self.ranks.any("deadline", self.deadline.reached()):
                self.ending = "deadline"
                return
            self._start_s = time.perf_counter()  # what a method does before its sums is part of the step
            yield batch
            if not self.ending and self.position.num_skipped_in_a_row >= MAX_BAD_STEPS:
                self.ending = "diverged"
            if self.ending:
                return
        self.ending = self.ending or ("paused" if last <= self.position.step < self.total_steps else "finished")

    def loss_and_grads(self, batch: StepBatch) -> StepSums | None:
        """Sums over the step's micro-batches, of all workers and ranks; in ever smaller micro-batches while the device
        has too little memory: the sums stay the same.

        Returns:
            The sums; None if somebody asked to stop meanwhile. Then random state is put back, so that a resumed run
            repeats the step exactly.

        Raises:
            MlxmathError: there is too little memory for a single row.
        """
        self._batch = batch
        random_state = mx.array(mx.random.state[0])
        while True:
            sums, shortage, what = None, "", SHORT_OF_MEMORY
            try:
                sums = accumulate(self.workers, batch, stopped=lambda: bool(self.stop))
            except (RuntimeError, MemoryError) as error:
                if (found_out := trouble(error)) is None:
                    raise
                shortage, what = str(error) or "no more", found_out
            own = _OUT_OF_MEMORY if shortage else _STOPPED if sums is None else _NUM_METRICS * len(sums.metric_sums)
            found = self.ranks.vote("window", own)
            if not found & (_STOPPED | _OUT_OF_MEMORY):
                assert sums is not None
                return over_ranks(sums, self.ranks, found // _NUM_METRICS)
            mx.random.state[0][:] = random_state
            if found & _STOPPED:
                self.ending = "stopped"
                return None
            del sums
            finer = batch.finer()
            if finer is None:
                where = shortage or "on another rank"
                raise MlxmathError(f"{what.what} with a single row of the step ({where}). {what.remedy}")
            batch = finer
            warn(f"{what.what}; micro-batches of at most {batch.sampler.max_rows} rows from now on, the same steps")
            mx.clear_cache()

    def update(self, sums: StepSums) -> StepReport:
        """Divide by the step's targets, clip and apply; a step that is not finite is skipped and its rows are named."""
        rate = self.pace.rate(self.position.step)
        loss = sums.loss_sum / sums.num_targets
        norm = math.nan
        if math.isfinite(loss):
            norm = apply_gradients(self.model, self.optimizer, sums, rate, self.config.max_grad_norm)
        applied = math.isfinite(norm)
        self.position = self.position.after(self._batch, sums.num_tokens, sums.num_targets, skipped=not applied)
        seconds = time.perf_counter() - self._start_s
        self.deadline.note_step(seconds)
        self.pace.on_step(self.position.step)
        self._meter.look()
        self.loss = loss
        if not applied:
            what = "gradient" if math.isfinite(loss) else "loss"
            rows = ", ".join(map(str, self._batch.row_numbers(sums.bad_rows or self._batch.row_ids)))
            warn(f"step {self.position.step}: {what} is not finite, the step is not applied; rows {rows}")
        return StepReport(
            self.position, loss, norm, rate, sums.num_tokens, sums.num_targets, seconds, applied, sums.metric_sums
        )

    def validate_if_due(self) -> None:
        """Measure if it is time to, and end if there is no point in going on."""
        self.end(self.validation.after(self.position))

    def save_if_due(self) -> None:
        """Write a checkpoint if it is time to."""
        if self.ranks.first:
            self._saver.after(self.position)

    def end(self, ending: Ending | None, reason: str = "") -> None:
        """No step comes after this one, if there is an ending; the first one counts."""
        if ending and not self.ending:
            self.ending, self.reason = ending, reason

    def _close(self) -> None:
        """Measure once more what the run has come to, if there is time, and save. A signal's run is saved first."""
        assert self.ending
        first = self.ranks.first
        if self.ending == "stopped" and first:
            self._saver.save(self.position)
        as_planned = self.ending == "stopped" and self.config.row_losses  # to be compared: measured where others are
        is_measured = not as_planned and self.validation.close(self.ending, self.position)
        if first and (self.ending != "stopped" or is_measured):
            self._saver.save(self.position)
        if self.config.row_losses and self.ending != "stopped":
            self.validation.measure_rows(self.run.data.held_out_fingerprint)

    def _finish(self) -> None:
        """Write and say how it ended."""
        run, folder, validation, ending = self.run, self.run.folder, self.validation, self.ending
        memory, seconds, step = run.backend.memory(), self.deadline.elapsed_s, self.position.step
        joules = self._meter.told() if run.ranks.size == 1 else None
        self._log.write("end", step=step, status=ending, seconds=seconds, peak_bytes=memory.peak_bytes, joules=joules)
        self._log.plot()
        self._trackers.close()
        self._record.write(
            status=ending, steps=step, seconds=seconds, validation=validation.summary(), pace=self.pace.summary(),
            **self._log.facts(), batching=vars(run.batching), tuning=run.tuning,
            ranks=run.ranks.summary(), **vars(memory),
        )  # fmt: skip
        planned = f" ({size(run.planned_bytes)} planned)" if run.planned_bytes else ""
        say(
            f"{ending} at step {step} of {self.total_steps} after {duration(seconds)}; peak memory "
            f"{size(memory.peak_bytes)}{planned}; adapters, curves and checkpoints are in {folder}"
        )
        if ending == "diverged":
            bad = f"the last {MAX_BAD_STEPS} steps were not finite; {folder} holds the last good adapters."
            fail(f"{bad} {self._log.advice}")
            return
        if ending == "no_signal":
            fail(f"GRPO found nothing to learn from: {self.reason}")
        if validation.best:
            say(self._log.best(validation.best, folder / BEST))
        if ending not in (*COMPLETE, "no_signal"):
            later = ", and a later --pause-at or none" if ending == "paused" else ""
            say(f"continue with the same command and --resume{later}")

    @property
    def result(self) -> TrainResult:
        """After `running`."""
        assert self.ending
        return TrainResult(
            self.ending, self.run.folder, self.position.step, self.deadline.elapsed_s, self.loss, self.validation.best,
            self.run.backend.memory().peak_bytes, self.stop.signal, self.run.exam,
        )  # fmt: skip
