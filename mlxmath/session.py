"""A training run on pairs of completions: everything but the loss.

The order of things: settings, device, model, data, adapters, optimizer, loop, files, as in `mlxmath train`.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn

from mlxmath import __version__
from mlxmath.backends.select import open_backend
from mlxmath.config.load import TRAINED_FROM, Resolved
from mlxmath.config.schema import RunConfig
from mlxmath.console import duration, say, size
from mlxmath.data.batches import Shape
from mlxmath.data.cache import TokenRows
from mlxmath.data.holdout import Subset
from mlxmath.data.pairs import PairPlan, Pairs
from mlxmath.data.render import adds_bos, load_tokenizer
from mlxmath.data.summary import mixture_lines
from mlxmath.data.tokenize import SKIPPED
from mlxmath.errors import InputError, MlxmathError
from mlxmath.files import atomic_write, read_json, sha256
from mlxmath.kernels.base import Kernels
from mlxmath.kernels.select import kernels_for
from mlxmath.lora.adapter import WEIGHTS, adapter_config, load_initial
from mlxmath.lora.inject import inject, open_blocks
from mlxmath.models.load import load_model
from mlxmath.models.memory import Batching, choose_batching
from mlxmath.objectives.pair_sums import REWARDS
from mlxmath.plan import check_fits
from mlxmath.prepare import prepare_rows
from mlxmath.problems.prompts import get_template
from mlxmath.train import RUN_FILE, split_rows
from mlxmath.training import run
from mlxmath.training.checkpoint import Checkpoint, Saver, Stateful, check_settings, restore
from mlxmath.training.deadline import Deadline, StopRequest
from mlxmath.training.events import EVENTS, EventLog, ProgressBar
from mlxmath.training.fit import MAX_BAD_WINDOWS, Position, fit
from mlxmath.training.gradients import Gradients
from mlxmath.training.optimizers import make_optimizer
from mlxmath.training.schedule import learning_rates
from mlxmath.training.validation import BEST, Validation
from mlxmath.training.watching import CURVES, plot_pairs
from mlxmath.training.workers import Workers, replica
from mlxmath.weights.convert import ensure_model

_NOT_OF_PAIRS = ("solution_column", "answer_column", "solutions", "overflow", "train_on_prompt")
"""Settings of the data that have no meaning for pairs."""


class Part(Stateful, Protocol):
    """A part of a run that checkpoints hold."""

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where the checkpoint was."""


class Session:
    """The parts of a run.

    Args:
        resolved: its settings.
        section: the section of its objective.
        scored: what counts of a row is its last hidden state, not the log-probabilities of its targets.
        **facts: what adapter_config.json is to hold besides.

    Raises:
        InputError: a setting is wrong, or has no use here.
        MlxmathError: the model or the data cannot be had.
    """

    def __init__(self, resolved: Resolved, section: str, *, scored: bool = False, **facts: Any) -> None:
        self._resolved, self._section = resolved, section
        self.sections = (*TRAINED_FROM, section)
        self.config = config = resolved.config
        training = config.training
        _check(resolved, self.sections)
        self.backend, self.device = open_backend(config.runtime, training.seed)
        self._folder, model_folder = Path(training.adapter_path), Path(config.model.mlx_path)
        self._template = get_template(config.data.template, config.data.template_file)
        self._checkpoint = run.claim(config)
        self._manifest = ensure_model(config.model)
        self._shape = Shape(self.backend.bucket_multiple, 16 if self.backend.supports("compile") else 0)
        self._read_pairs(model_folder, scored=scored)
        self._load(model_folder, facts)

    def _read_pairs(self, model_folder: Path, *, scored: bool) -> None:
        config = self.config
        self._data = data = prepare_rows(
            config.data, model_folder, trust_remote_code=config.model.trust_remote_code, pairs=True
        )
        for line in mixture_lines(data.stats):
            say(line)
        for name, count in data.stats.items():
            if name.startswith(SKIPPED):
                say(f"left out: {count:,} {name.removeprefix(SKIPPED)}")
        rows, held_out = split_rows(config, data, model_folder, pairs=True)

        def paired(rows: TokenRows | Subset, first_id: int) -> Pairs:
            packed = config.training.batching == "pack"
            return Pairs(rows, first_id=first_id, packed=packed, scored=scored)

        self.pairs = paired(rows, 0)
        first_id = 0 if config.training.validation_dataset is None else len(data) // 2
        self.held_out = paired(held_out, first_id) if held_out else None
        self._held_out_fingerprint = held_out.fingerprint if held_out else None

    def _load(self, model_folder: Path, facts: dict[str, Any]) -> None:
        config, training = self.config, self.config.training
        model_config = read_json(model_folder / "config.json")
        longest = self._shape.width(int(max(each.lengths.max() for each in (self.pairs, self.held_out) if each)))
        self.batching = choose_batching(model_config, config, self.device, longest)
        self._planned_bytes = check_fits(
            _with_room(config, self.batching, longest), model_folder, model_config, self.device, longest
        )
        self.model = load_model(model_folder, self.device.compute_dtype).model
        self.base = replica(self.model)
        """The model without adapters."""
        mx.random.seed(training.seed)
        self._injected = (
            open_blocks(self.model, config.lora.num_layers) if training.full else inject(self.model, config.lora)
        )
        say(str(self._injected))
        self._adapter = adapter_config(
            config.lora, self._injected.keys, full=training.full, base_model=config.model.model,
            base_fingerprint=self._manifest.fingerprint, template=self._template.name,
            template_definition=self._template.definition, mlxmath_version=__version__, **facts,
        )  # fmt: skip
        if training.init_adapter:
            load_initial(self.model, Path(training.init_adapter), self._adapter)
            say(f"starting from the adapter in {training.init_adapter}")
        self.kernels: Kernels = kernels_for(self.device, self.batching.num_workers)

    def train(
        self,
        gradients_of: Callable[[nn.Module], Gradients],
        metrics: Sequence[str],
        parts: Sequence[Part] = (),
    ) -> int:
        """Train `model`, whose trainable parameters are set; the adapters are in `training.adapter_path` afterwards.

        Args:
            gradients_of: makes the loss and gradients of a replica.
            metrics: names of what these report beside the loss; `REWARDS` come first.
            parts: what else goes into the checkpoints; those are put back from the one to continue from.

        Returns:
            0, or 128 + the signal's number if a signal ended the run (saved, to be resumed).

        Raises:
            MlxmathError: see the parts; the run diverged.
        """
        training, model, folder, checkpoint = self.config.training, self.model, self._folder, self._checkpoint
        optimizer = make_optimizer(training, model, self.config.lora.plus_ratio)
        settings = self._fixed_settings()
        position = Position()
        if checkpoint:
            check_settings(checkpoint, settings)
            restore(checkpoint, model, optimizer)
            position = checkpoint.position
        workers = Workers(model, gradients_of, self.batching.num_workers)
        plan = PairPlan(self.pairs, training, self.batching.tokens, self._shape, self.batching.num_workers)
        total = training.num_epochs * plan.windows_per_epoch
        total = min(total, training.max_steps or total)
        say(
            f"{len(self.pairs):,} pairs, {total:,} steps of {training.batch_size} x "
            f"{training.grad_accumulation_steps} pairs, micro-batches of up to {self.batching.tokens:,} tokens; "
            f"{workers.how}"
        )
        record = self._start(checkpoint is None)
        events = EventLog(folder / EVENTS, from_step=position.step, metrics=metrics)
        events.write("resume" if checkpoint else "start", step=position.step, total_steps=total)
        stop, deadline = StopRequest(), Deadline(training.max_training_time_hours * 3600)
        progress = ProgressBar(total, position.step, deadline, self.backend, metrics=REWARDS, unit="pairs")
        held_out = PairPlan(self.held_out, training, self.batching.tokens, self._shape) if self.held_out else None
        validation = Validation(
            workers, list(held_out.epoch(0)) if held_out else [], folder, training,
            windows_per_epoch=plan.windows_per_epoch, total_steps=total, deadline=deadline, stop=stop,
            listeners=(
                events.on_validation, progress.on_validation,
                lambda _: record.update(validation=validation.summary()),
            ),
        )  # fmt: skip
        if checkpoint:
            for part in (validation, *parts):
                part.restore(checkpoint)
        saver = Saver(folder, model, optimizer, settings, training, deadline, parts=[validation, *parts])
        self.backend.reset_peak()
        with stop.listening():
            try:
                ending = validation.catch_up(position)
                if ending is None:
                    ending, position = fit(
                        workers, islice(plan.windows(position.epoch, position.window), max(0, total - position.step)),
                        optimizer, learning_rates(training, total), max_grad_norm=training.max_grad_norm,
                        deadline=deadline, stop=stop,
                        hooks=(events.on_step, progress.on_step, validation.on_step, saver.on_step), position=position,
                    )  # fmt: skip
            finally:
                progress.close()
            saver.save(position)
        memory, seconds = self.backend.memory(), deadline.elapsed_s
        events.write("end", step=position.step, status=ending, seconds=seconds, peak_bytes=memory.peak_bytes)
        plot_pairs(folder / EVENTS, folder / CURVES)
        record.write(
            status=ending, steps=position.step, seconds=seconds, validation=validation.summary(),
            planned_bytes=self._planned_bytes, **vars(memory),
        )  # fmt: skip
        say(
            f"{ending} at step {position.step} of {total} after {duration(seconds)}; peak memory "
            f"{size(memory.peak_bytes)}; adapters, curves and checkpoints are in {folder}"
        )
        if ending == "diverged":
            raise MlxmathError(
                f"the last {MAX_BAD_WINDOWS} steps were not finite; {folder} holds the last good adapters. Lower "
                "--learning-rate, or look at the pairs named above."
            )
        if best := validation.best:
            say(f"the lowest validation loss, {best.loss:.4f}, was at step {best.step}: {folder / BEST}")
        if ending not in ("finished", "early_stopped"):
            say("continue with the same command and --resume")
        return stop.exit_code if ending == "stopped" else 0

    def _fixed_settings(self) -> dict[str, Any]:
        config, initial = self.config, self.config.training.init_adapter
        settings = run.fixed_settings(
            config, self._manifest.fingerprint, self._data.fingerprint, self._held_out_fingerprint
        )
        settings["initial adapter"] = sha256(Path(initial) / WEIGHTS) if initial else None
        own = getattr(config, self._section).model_dump(mode="json")
        return settings | {f"{self._section}.{name}": value for name, value in own.items()}

    def _start(self, anew: bool) -> run.Record:
        """Write what is known of the run before it begins."""
        tokenizer = load_tokenizer(Path(self.config.model.mlx_path), self.config.model.trust_remote_code)
        chat = self._template.for_tokenizer(tokenizer).chat_template(bos=adds_bos(tokenizer))
        run.start(self._folder, self._adapter, chat, anew=anew)
        commit = {"model.revision": self._manifest.revision} if self._manifest.revision else {}
        atomic_write(self._folder / RUN_FILE, self._resolved.as_toml(self.sections, commit))
        facts = {
            "fingerprint": self._data.fingerprint, "training_pairs": len(self.pairs),
            "held_out_pairs": len(self.held_out or ()),
        }  # fmt: skip
        return run.Record(self._folder, self._resolved, self.device, facts | self._data.stats, self._injected)


def _check(resolved: Resolved, sections: tuple[str, ...]) -> None:
    """Refuse settings that would be ignored."""
    training, data = resolved.config.training, resolved.config.data
    for name, origin in resolved.origin.items():
        section = name.split(".")[0]
        if section not in sections and origin != "default":
            raise InputError(f"the settings of [{section}] have no use here; leave them out ({origin}).")
    if resolved.origin["data.dataset"] == "default" and not data.sources:
        raise InputError("--dataset: name one with the columns prompt, chosen and rejected.")
    for name in _NOT_OF_PAIRS:
        if getattr(data, name) != type(data).model_fields[name].default:
            raise InputError(f"{resolved.where(f'data.{name}')} has no meaning for pairs; leave it out.")
    if training.init_adapter and Path(training.init_adapter).resolve() == Path(training.adapter_path).resolve():
        raise InputError(
            f"--init-adapter and --adapter-path are both {training.adapter_path}; write the result to another folder."
        )


def _with_room(config: RunConfig, batching: Batching, longest: int) -> RunConfig:
    """Settings to plan memory from: the two rows of a pair are computed together, however long they are."""
    pair = longest if config.training.batching == "pack" else 2 * longest
    tokens = {"max_batch_tokens": max(batching.tokens, pair)}
    return config.model_copy(update={"training": config.training.model_copy(update=tokens)})
