"""`mlxmath train`: fine-tune LoRA adapters.

The order of things: settings, device, model, data, adapters, optimizer, loop, files. The loop itself is
`mlxmath.training.fit`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxmath import __version__, options
from mlxmath.config.load import TRAINED_FROM, Resolved
from mlxmath.config.schema import RunConfig
from mlxmath.console import duration, fail, say, size
from mlxmath.errors import InputError, MlxmathError

if TYPE_CHECKING:
    from mlxmath.backends.ranks import Ranks
    from mlxmath.data.batches import Rows
    from mlxmath.data.cache import TokenRows
    from mlxmath.data.holdout import Subset


RUN_FILE = "run.toml"
"""In the adapter folder: all settings, as a file that repeats the run."""


@options.command("train", shared=True)
@options.configured
@options.setting_options(
    *options.MODEL,
    *options.MODEL_WRITE,
    *options.DATA,
    *options.LORA,
    *options.TRAINING,
    *options.RUNTIME,
    *options.SCHEDULING,
)
@click.option("--debug", is_flag=True, help="The bundled model, ten problems, a few seconds.")
@click.option("--dry-run", is_flag=True, help="Print the settings and the memory that the run takes; start nothing.")
def main(debug: bool, dry_run: bool, **values: Any) -> None:
    """Fine-tune LoRA adapters on a dataset of problems and solutions."""
    from mlxmath.backends.ranks import join

    resolved = options.settings(values, debug=debug)
    if dry_run:
        show(resolved)
        return
    with join() as ranks:
        say("settings:")
        for line in resolved.lines(TRAINED_FROM):
            say(line)
        exit_code = train(resolved, ranks)
    if exit_code:
        raise SystemExit(exit_code)


def show(resolved: Resolved) -> None:
    """Print what a run would use, to standard output: every setting with its origin, and the memory plan."""
    from mlxmath.backends.select import open_backend
    from mlxmath.plan import describe
    from mlxmath.problems.prompts import get_template

    config = resolved.config
    get_template(config.data.template, config.data.template_file)
    for line in resolved.lines((*TRAINED_FROM, *_settings_of_others(resolved))):
        click.echo(line)
    _, device = open_backend(config.runtime, config.training.seed)
    try:
        model_config = _model_config(config)
        lines, _ = describe(config, model_config, device)
    except InputError:
        raise
    except MlxmathError as error:
        click.echo(f"memory plan: not available: {error}")
        return
    for line in lines:
        click.echo(line)


def _model_config(config: RunConfig) -> dict[str, Any]:
    """The model's config.json: of the converted model if it is there, else of its source."""
    from mlxmath.files import read_json
    from mlxmath.weights.hub import fetch, is_source
    from mlxmath.weights.manifest import FILE_NAME, read_manifest

    folder = Path(config.model.mlx_path)
    if not ((folder / FILE_NAME).exists() and is_source(config.model.model, read_manifest(folder).source)):
        folder = fetch(config.model.model, config.model.revision, config_only=True).folder
    return dict(read_json(folder / "config.json"))


def _settings_of_others(resolved: Resolved) -> tuple[str, ...]:
    """Sections with settings that fine-tuning has no use for."""
    return tuple(
        dict.fromkeys(
            name.split(".")[0]
            for name, origin in resolved.origin.items()
            if origin != "default" and name.split(".")[0] not in TRAINED_FROM
        )
    )


def train(resolved: Resolved, ranks: "Ranks") -> int:
    """Run a whole fine-tuning; the adapters are in `training.adapter_path` of rank 0 afterwards.

    Returns:
        0, or 128 + the signal's number if a signal ended the run (saved, to be resumed).

    Raises:
        InputError: a setting is wrong, or has no use here.
        MlxmathError: see the parts.
    """
    from mlxmath.backends.select import open_backend

    config, training = resolved.config, resolved.config.training
    for section in _settings_of_others(resolved):
        raise InputError(
            f"the settings of [{section}] are not for supervised fine-tuning; `mlxmath train` would ignore them. Leave "
            "them out, or see what they resolve to with --dry-run."
        )
    backend, device = open_backend(config.runtime, training.seed, ranks.num_on_host)

    from itertools import islice

    import mlx.core as mx

    from mlxmath.data.batches import Shape, WindowPlan
    from mlxmath.data.render import adds_bos, load_tokenizer
    from mlxmath.files import atomic_write, read_json
    from mlxmath.kernels.select import kernels_for
    from mlxmath.lora.adapter import adapter_config, load_initial
    from mlxmath.lora.inject import inject, open_blocks
    from mlxmath.models.load import load_model
    from mlxmath.models.memory import choose_batching
    from mlxmath.models.tuning import tune_for_training
    from mlxmath.objectives.sft import SupervisedFineTuning
    from mlxmath.plan import check_fits
    from mlxmath.prepare import prepare_rows
    from mlxmath.problems.prompts import get_template
    from mlxmath.training import run
    from mlxmath.training.checkpoint import Saver, check_settings, restore, share_checkpoint, share_state
    from mlxmath.training.deadline import Deadline, StopRequest
    from mlxmath.training.events import EVENTS, PLOT, EventLog, ProgressBar, plot_loss
    from mlxmath.training.fit import MAX_BAD_WINDOWS, Ending, Hook, Position, fit
    from mlxmath.training.gradients import choose_gradients
    from mlxmath.training.optimizers import make_optimizer
    from mlxmath.training.schedule import learning_rates
    from mlxmath.training.validation import BEST, Validation
    from mlxmath.training.workers import Workers
    from mlxmath.weights.convert import ensure_model

    template = get_template(config.data.template, config.data.template_file)
    folder, model_folder = Path(training.adapter_path), Path(config.model.mlx_path)
    checkpoint = share_checkpoint(run.claim(config) if ranks.first else None, ranks)
    with ranks.in_turn("preparing"):
        manifest = ensure_model(config.model)
        data = prepare_rows(config.data, model_folder, trust_remote_code=config.model.trust_remote_code)
        rows, held_out = _split(config, data, model_folder)
    held_out_fingerprint = held_out.fingerprint if held_out else None
    settings = run.fixed_settings(config, manifest.fingerprint, data.fingerprint, held_out_fingerprint)
    run.agree(ranks, config, device, settings)

    shape = Shape(backend.bucket_multiple, target_steps=16 if backend.supports("compile") else 0)
    longest = shape.width(int(rows.lengths.max()))
    planned_bytes = check_fits(config, model_folder, read_json(model_folder / "config.json"), device, longest)

    loaded = load_model(model_folder, device.compute_dtype)
    model = loaded.model
    mx.random.seed(training.seed)  # converting and loading a model draw random numbers
    injected = open_blocks(model, config.lora.num_layers) if training.full else inject(model, config.lora)
    say(str(injected))
    adapter = adapter_config(
        config.lora,
        injected.keys,
        full=training.full,
        base_model=config.model.model,
        base_fingerprint=manifest.fingerprint,
        template=template.name,
        template_definition=template.definition,
        mlxmath_version=__version__,
    )
    if training.init_adapter and not checkpoint and ranks.first:
        load_initial(model, Path(training.init_adapter), adapter)
        say(f"starting from the adapter in {training.init_adapter}")
    optimizer = make_optimizer(training, model, config.lora.plus_ratio)
    position = Position()
    if checkpoint:
        if ranks.first:
            check_settings(checkpoint, settings)
            restore(checkpoint, model, optimizer)
        position = checkpoint.position
    share_state(model, optimizer, ranks)

    batching = choose_batching(loaded.config, config, device, longest)
    max_tokens = min(ranks.gather("batching", batching.tokens))
    kernels = kernels_for(device, batching.num_workers)
    tune_for_training(model, batching.tokens)
    workers = Workers(
        model,
        lambda replica: choose_gradients(
            replica,
            SupervisedFineTuning(),
            kernels,
            compiled=backend.supports("compile"),
            checkpoint_every=training.grad_checkpoint,
        ),
        batching.num_workers,
        ranks,
    )
    plan = WindowPlan(rows, training, max_tokens, shape, workers.num_in_all)
    total = training.num_epochs * plan.windows_per_epoch
    total = min(total, training.max_steps or total)
    say(
        f"{len(rows):,} sequences, {int(rows.lengths.sum()):,} tokens an epoch; {total:,} steps of "
        f"{training.batch_size} x {training.grad_accumulation_steps} sequences, micro-batches of up to "
        f"{plan.max_tokens:,} tokens; {workers.how}"
    )
    stop, deadline = StopRequest(), Deadline(training.max_training_time_hours * 3600)
    validation = Validation(
        workers,
        list(WindowPlan(held_out, training, plan.max_tokens, shape).epoch(0)) if held_out else [],
        folder,
        training,
        windows_per_epoch=plan.windows_per_epoch,
        total_steps=total,
        deadline=deadline,
        stop=stop,
    )

    def loop(*hooks: Hook) -> tuple[Ending, Position]:
        if checkpoint:
            validation.restore(checkpoint)
        backend.reset_peak()
        ranks.begin()
        if ending := validation.catch_up(position):
            return ending, position
        return fit(
            workers,
            islice(plan.windows(position.epoch, position.window), max(0, total - position.step)),
            optimizer,
            learning_rates(training, total),
            max_grad_norm=training.max_grad_norm,
            deadline=deadline,
            stop=stop,
            hooks=hooks,
            position=position,
        )

    if not ranks.first:
        with stop.listening():
            ending, _ = loop(validation.on_step)
            return run.exit_code(ending, stop)

    tokenizer = load_tokenizer(model_folder, config.model.trust_remote_code)
    run.start(
        folder,
        adapter,
        template.for_tokenizer(tokenizer).chat_template(bos=adds_bos(tokenizer)),
        anew=checkpoint is None,
    )
    commit = {"model.revision": manifest.revision} if manifest.revision else {}
    atomic_write(folder / RUN_FILE, resolved.as_toml(TRAINED_FROM, commit))
    facts = {"fingerprint": data.fingerprint, "training_rows": len(rows), "held_out_rows": len(held_out or ())}
    record = run.Record(folder, resolved, device, facts | data.stats, injected)
    events = EventLog(folder / EVENTS, from_step=position.step)
    events.write("resume" if checkpoint else "start", step=position.step, total_steps=total)
    progress = ProgressBar(total, position.step, deadline, backend)
    validation.listeners = (
        events.on_validation,
        progress.on_validation,
        lambda _: record.update(validation=validation.summary()),
    )
    saver = Saver(folder, model, optimizer, settings, training, deadline, parts=[validation])
    with stop.listening():
        try:
            ending, position = loop(events.on_step, progress.on_step, validation.on_step, saver.on_step)
        finally:
            progress.close()
        saver.save(position)
    memory, seconds = backend.memory(), deadline.elapsed_s
    events.write("end", step=position.step, status=ending, seconds=seconds, peak_bytes=memory.peak_bytes)
    plot_loss(folder / EVENTS, folder / PLOT)
    record.write(
        status=ending, steps=position.step, seconds=seconds, validation=validation.summary(),
        planned_bytes=planned_bytes, ranks=ranks.summary(), **vars(memory),
    )  # fmt: skip
    planned = f" ({size(planned_bytes)} planned)" if planned_bytes else ""
    say(
        f"{ending} at step {position.step} of {total} after {duration(seconds)}; peak memory "
        f"{size(memory.peak_bytes)}{planned}; adapters, curves and checkpoints are in {folder}"
    )
    if ending == "diverged":
        fail(
            f"the last {MAX_BAD_WINDOWS} steps were not finite; {folder} holds the last good adapters. Lower "
            "--learning-rate, or look at the rows named above."
        )
        return run.exit_code(ending, stop)
    if best := validation.best:
        say(f"the lowest validation loss, {best.loss:.4f}, was at step {best.step}: --adapter-path {folder / BEST}")
    if ending in ("finished", "early_stopped"):
        say(f'try: python -m mlxmath.infer --adapter-path {folder} --prompt "What is 12 + 7?"')
    else:
        say("continue with the same command and --resume")
    return run.exit_code(ending, stop)


def _split(config: RunConfig, data: "TokenRows", model_folder: Path) -> "tuple[Rows, TokenRows | Subset | None]":
    """The rows to train on, and those to measure on if any are asked for."""
    from mlxmath.data.holdout import hold_out
    from mlxmath.prepare import prepare_held_out

    training = config.training
    if training.validation_split is not None:
        rows, held_out = hold_out(data, training.validation_split, training.seed)
        say(f"{len(held_out):,} of {len(data):,} sequences are held out")
        return rows, held_out
    if training.validation_dataset is None:
        return data, None
    other = prepare_held_out(
        config.data, training.validation_dataset, model_folder, trust_remote_code=config.model.trust_remote_code
    )
    if other.fingerprint == data.fingerprint:
        raise InputError(
            f"--validation-dataset {training.validation_dataset} is the training data itself; name another dataset or "
            "split, or hold out some of it with --validation-split."
        )
    return data, other


if __name__ == "__main__":
    main(prog_name="python -m mlxmath.train")
