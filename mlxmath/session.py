"""A training run on a dataset: everything but what its rows are and what their loss is.

The order of things: settings, device, model and data, adapters, optimizer, loop, files. The loop itself is
`mlxmath.training.fit`.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn

from mlxmath import __version__
from mlxmath.backends.ranks import Ranks
from mlxmath.backends.select import open_backend
from mlxmath.config.load import RUN_FILE, TRAINED_FROM, Resolved
from mlxmath.config.schema import RunConfig
from mlxmath.console import duration, fail, say, size
from mlxmath.data.batches import Shape
from mlxmath.data.render import adds_bos, load_tokenizer
from mlxmath.files import atomic_write, read_json, sha256
from mlxmath.kernels.base import Kernels
from mlxmath.kernels.select import kernels_for
from mlxmath.lora.adapter import WEIGHTS, adapter_config, load_initial
from mlxmath.lora.inject import inject, open_blocks
from mlxmath.material import Material
from mlxmath.models.load import load_model
from mlxmath.models.memory import Batching, choose_batching
from mlxmath.models.tuning import tune_for_training
from mlxmath.plan import check_fits
from mlxmath.problems.prompts import get_template
from mlxmath.training import run
from mlxmath.training.checkpoint import (
    Checkpoint,
    Saver,
    Stateful,
    check_settings,
    restore,
    share_adapters,
    share_checkpoint,
    share_state,
)
from mlxmath.training.deadline import Deadline, StopRequest
from mlxmath.training.events import EVENTS, EventLog, ProgressBar
from mlxmath.training.fit import MAX_BAD_WINDOWS, Ending, Hook, Position, fit
from mlxmath.training.gradients import Gradients
from mlxmath.training.optimizers import make_optimizer
from mlxmath.training.schedule import learning_rates
from mlxmath.training.validation import BEST, Validation
from mlxmath.training.workers import Workers, replica
from mlxmath.weights.convert import ensure_model


class Part(Stateful, Protocol):
    """A part of a run that checkpoints hold."""

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where the checkpoint was."""


class Session:
    """A run, ready to train: the device, the data, and `model` with its adapters.

    Args:
        resolved: its settings.
        ranks: the processes of the run.
        read: reads its data, given the settings and the model folder.
        section: the section of its objective, if that has one.
        keep_base: keep the model without adapters too, as `base`.
        reference: the model at the start counts also later, so that it must be there when the run is resumed.
        **facts: what adapter_config.json is to hold besides.

    Raises:
        InputError: a setting is wrong.
        MlxmathError: the model or the data cannot be had, or do not fit into the memory.
    """

    def __init__(
        self,
        resolved: Resolved,
        ranks: Ranks,
        read: Callable[[RunConfig, Path], Material],
        section: str | None = None,
        *,
        keep_base: bool = False,
        reference: bool = False,
        **facts: Any,
    ) -> None:
        self._resolved, self._ranks, self._reference = resolved, ranks, reference
        self._sections = (*TRAINED_FROM, section) if section else TRAINED_FROM
        self.config = config = resolved.config
        training = config.training
        self.backend, self.device = open_backend(config.runtime, training.seed, ranks.num_on_host)
        self._folder, model_folder = Path(training.adapter_path), Path(config.model.mlx_path)
        self._template = get_template(config.data.template, config.data.template_file)
        self._checkpoint = share_checkpoint(run.claim(config) if ranks.first else None, ranks)
        with ranks.in_turn("preparing"):
            self._manifest = ensure_model(config.model)
            self.material = read(config, model_folder)
        self._fixed = run.fixed_settings(
            config, self._manifest.fingerprint, self.material.data.fingerprint, self.material.held_out_fingerprint
        )
        if section:
            own = getattr(config, section).model_dump(mode="json")
            self._fixed |= {f"{section}.{name}": value for name, value in own.items()}
        run.agree(ranks, config, self.device, self._fixed)
        self._load(model_folder, keep_base, facts)

    def _load(self, model_folder: Path, keep_base: bool, facts: dict[str, Any]) -> None:
        config, training, device = self.config, self.config.training, self.device
        self._shape = Shape(self.backend.bucket_multiple, target_steps=16 if self.backend.supports("compile") else 0)
        longest = self._shape.width(self.material.longest)
        model_config = read_json(model_folder / "config.json")
        batching = choose_batching(model_config, config, device, longest)
        planned = config if self.material.rows_each == 1 else _with_room(config, batching, 2 * longest)
        self._planned_bytes = check_fits(
            planned, model_folder, model_config, device, longest, "dpo" if self._reference else "train"
        )
        self.model = load_model(model_folder, device.compute_dtype).model
        self.base = replica(self.model) if keep_base else None
        mx.random.seed(training.seed)  # converting and loading a model draw random numbers
        self._injected = (
            open_blocks(self.model, config.lora.num_layers) if training.full else inject(self.model, config.lora)
        )
        say(str(self._injected))
        self._adapter = adapter_config(
            config.lora, self._injected.keys, full=training.full, base_model=config.model.model,
            base_fingerprint=self._manifest.fingerprint, template=self._template.name,
            template_definition=self._template.definition, mlxmath_version=__version__, **facts,
        )  # fmt: skip
        initial = training.init_adapter
        if initial and self._ranks.first and (self._reference or not self._checkpoint):
            load_initial(self.model, Path(initial), self._adapter)
            say(f"starting from the adapter in {initial}")
        if self._reference:
            self._fixed["initial adapter"] = sha256(Path(initial) / WEIGHTS) if initial and self._ranks.first else None
            share_adapters(self.model, self._ranks)
        self._max_tokens = min(self._ranks.gather("batching", batching.tokens))
        self._num_workers = batching.num_workers
        self.kernels: Kernels = kernels_for(device, batching.num_workers)
        tune_for_training(self.model, batching.tokens)

    def train(
        self,
        gradients_of: Callable[[nn.Module], Gradients],
        plot: Callable[[Path, Path], None],
        picture: str,
        *,
        metrics: Sequence[str] = (),
        shown: Sequence[str] = (),
        parts: Sequence[Part] = (),
    ) -> Ending:
        """Train `model`, whose trainable parameters are set; the adapters are in rank 0's `training.adapter_path` then.

        Args:
            gradients_of: makes the loss and gradients of a replica.
            plot: draws the curves of a run's events into a file.
            picture: the name of that file.
            metrics: names of what the gradients report beside the loss.
            shown: the first of them, which the terminal shows too.
            parts: what else goes into the checkpoints; they are put back from the one to continue from.

        Returns:
            How it ended; see `exit_code`.

        Raises:
            MlxmathError: see the parts.
        """
        training, material, ranks, folder = self.config.training, self.material, self._ranks, self._folder
        optimizer = make_optimizer(training, self.model, self.config.lora.plus_ratio)
        position = self._restore(optimizer)
        workers = Workers(self.model, gradients_of, self._num_workers, ranks)
        plan = material.plan(material.rows, training, self._max_tokens, self._shape, workers.num_in_all)  # type: ignore[arg-type]
        total = training.num_epochs * plan.windows_per_epoch
        total = min(total, training.max_steps or total)
        say(
            f"{len(material.rows):,} {material.unit}, {material.num_tokens:,} tokens an epoch; {total:,} "
            f"steps of {training.batch_size} x {training.grad_accumulation_steps} {material.unit}, micro-batches of up "
            f"to {self._max_tokens:,} tokens; {workers.how}"
        )
        self._stop, deadline = StopRequest(), Deadline(training.max_training_time_hours * 3600)
        held_out = material.held_out and material.plan(material.held_out, training, self._max_tokens, self._shape)  # type: ignore[arg-type]
        validation = Validation(
            workers, list(held_out.epoch(0)) if held_out else [], folder, training,
            windows_per_epoch=plan.windows_per_epoch, total_steps=total, deadline=deadline, stop=self._stop,
        )  # fmt: skip

        def loop(*hooks: Hook) -> tuple[Ending, Position]:
            if self._checkpoint:
                for part in (validation, *parts):
                    part.restore(self._checkpoint)
            self.backend.reset_peak()
            ranks.begin()
            if ending := validation.catch_up(position):
                return ending, position
            return fit(
                workers, islice(plan.windows(position.epoch, position.window), max(0, total - position.step)),
                optimizer, learning_rates(training, total), max_grad_norm=training.max_grad_norm, deadline=deadline,
                stop=self._stop, hooks=hooks, position=position,
            )  # fmt: skip

        if not ranks.first:
            with self._stop.listening():
                return loop(validation.on_step)[0]

        record = self._start()
        events = EventLog(folder / EVENTS, from_step=position.step, metrics=metrics)
        events.write("resume" if self._checkpoint else "start", step=position.step, total_steps=total)
        unit = "tokens" if material.rows_each == 1 else material.unit
        progress = ProgressBar(total, position.step, deadline, self.backend, metrics=shown, unit=unit)
        validation.listeners = (
            events.on_validation, progress.on_validation, lambda _: record.update(validation=validation.summary()),
        )  # fmt: skip
        saver = Saver(folder, self.model, optimizer, self._fixed, training, deadline, parts=[validation, *parts])
        with self._stop.listening():
            try:
                ending, position = loop(events.on_step, progress.on_step, validation.on_step, saver.on_step)
            finally:
                progress.close()
            saver.save(position)
        memory, seconds = self.backend.memory(), deadline.elapsed_s
        events.write("end", step=position.step, status=ending, seconds=seconds, peak_bytes=memory.peak_bytes)
        plot(folder / EVENTS, folder / picture)
        record.write(
            status=ending, steps=position.step, seconds=seconds, validation=validation.summary(),
            planned_bytes=self._planned_bytes, ranks=ranks.summary(), **vars(memory),
        )  # fmt: skip
        planned = f" ({size(self._planned_bytes)} planned)" if self._planned_bytes else ""
        say(
            f"{ending} at step {position.step} of {total} after {duration(seconds)}; peak memory "
            f"{size(memory.peak_bytes)}{planned}; adapters, curves and checkpoints are in {folder}"
        )
        if ending == "diverged":
            fail(
                f"the last {MAX_BAD_WINDOWS} steps were not finite; {folder} holds the last good adapters. Lower "
                f"--learning-rate, or look at the {'rows' if material.rows_each == 1 else material.unit} named above."
            )
            return ending
        if best := validation.best:
            say(f"the lowest validation loss, {best.loss:.4f}, was at step {best.step}: --adapter-path {folder / BEST}")
        if ending not in ("finished", "early_stopped"):
            say("continue with the same command and --resume")
        return ending

    def exit_code(self, ending: Ending) -> int:
        """0; 1 if it diverged; 128 + the signal's number if a signal ended it (saved, to be resumed)."""
        return run.exit_code(ending, self._stop)

    def _restore(self, optimizer: Any) -> Position:
        """Go back to where the checkpoint was, on all ranks."""
        if self._checkpoint and self._ranks.first:
            check_settings(self._checkpoint, self._fixed)
            restore(self._checkpoint, self.model, optimizer)
        share_state(self.model, optimizer, self._ranks)
        return self._checkpoint.position if self._checkpoint else Position()

    def _start(self) -> run.Record:
        """Write what is known of the run before it begins."""
        config, material = self.config, self.material
        tokenizer = load_tokenizer(Path(config.model.mlx_path), config.model.trust_remote_code)
        chat = self._template.for_tokenizer(tokenizer).chat_template(bos=adds_bos(tokenizer))
        run.start(self._folder, self._adapter, chat, anew=self._checkpoint is None)
        commit = {"model.revision": self._manifest.revision} if self._manifest.revision else {}
        atomic_write(self._folder / RUN_FILE, self._resolved.as_toml(self._sections, commit))
        facts = {
            "fingerprint": material.data.fingerprint, "training_rows": len(material.rows),
            "held_out_rows": len(material.held_out or ()),
        }  # fmt: skip
        return run.Record(self._folder, self._resolved, self.device, facts | material.data.stats, self._injected)


def _with_room(config: RunConfig, batching: Batching, least: int) -> RunConfig:
    """Settings to plan memory from: micro-batches of at least so many tokens."""
    tokens = {"max_batch_tokens": max(batching.tokens, least)}
    return config.model_copy(update={"training": config.training.model_copy(update=tokens)})
