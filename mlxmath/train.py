"""`mlxmath train`: fine-tune LoRA adapters.

The order of things: settings, device, model, data, adapters, optimizer, loop, files. The loop itself is
`mlxmath.training.fit`.
"""

from pathlib import Path
from typing import Any

import click

from mlxmath import __version__, options
from mlxmath.config.load import Resolved
from mlxmath.console import duration, say, size


@options.command("train")
@options.setting_options(
    *options.MODEL, *options.MODEL_WRITE, *options.DATA, *options.LORA, *options.TRAINING, *options.RUNTIME
)
@click.option("--debug", is_flag=True, help="The bundled model, ten problems, a few seconds.")
def main(debug: bool, **values: Any) -> None:
    """Fine-tune LoRA adapters on a dataset of problems and solutions."""
    resolved = options.settings(values, debug=debug)
    say("settings:")
    for line in resolved.lines(("model", "data", "lora", "training", "runtime")):
        say(line)
    exit_code = train(resolved)
    if exit_code:
        raise SystemExit(exit_code)


def train(resolved: Resolved) -> int:
    """Run a whole fine-tuning; the adapters are in `training.adapter_path` afterwards.

    Returns:
        0, or 128 + the signal's number if a signal ended the run (saved, to be resumed).
    """
    from mlxmath.backends.select import open_backend

    config = resolved.config
    backend, device = open_backend(config.runtime, config.training.seed)

    import mlx.optimizers as optim

    from mlxmath.data.batches import epoch_windows, num_windows
    from mlxmath.lora.adapter import WEIGHTS, adapter_config, save_config, save_weights
    from mlxmath.lora.inject import adapter_arrays, inject
    from mlxmath.models.load import load_model
    from mlxmath.objectives.sft import sft_loss
    from mlxmath.prepare import prepare_rows
    from mlxmath.problems.prompts import get_template
    from mlxmath.training import events as log
    from mlxmath.training.checkpoint import check_settings, restore, save_checkpoint
    from mlxmath.training.deadline import Deadline, StopRequest
    from mlxmath.training.fit import Position, StepReport, fit
    from mlxmath.training.run import claim, timestamp, write_run
    from mlxmath.training.schedule import learning_rates
    from mlxmath.files import atomic_write
    from mlxmath.weights.convert import ensure_model

    options_ = config.training
    folder = Path(options_.adapter_path)
    template = get_template(config.data.template)
    manifest = ensure_model(config.model)
    rows = prepare_rows(config.data, Path(config.model.mlx_path), config.model.trust_remote_code)
    checkpoint = claim(config)

    model = load_model(Path(config.model.mlx_path), device.compute_dtype).model
    injected = inject(model, config.lora)
    say(str(injected))
    optimizer = optim.AdamW(options_.learning_rate, weight_decay=options_.weight_decay, bias_correction=True)
    optimizer.init(model.trainable_parameters())

    settings = {
        "base_fingerprint": manifest.fingerprint,
        "data_fingerprint": rows.fingerprint,
        **{f"lora.{name}": value for name, value in config.lora.model_dump(mode="json").items()},
        **{
            f"training.{name}": getattr(options_, name)
            for name in ("batch_size", "grad_accumulation_steps", "weight_decay", "max_grad_norm", "seed")
        },
    }
    position = Position()
    if checkpoint:
        check_settings(checkpoint, settings)
        restore(checkpoint, model, optimizer)
        position = checkpoint.position

    per_epoch = num_windows(len(rows), options_.batch_size, options_.grad_accumulation_steps)
    total = min(per_epoch * options_.num_epochs, options_.max_steps or per_epoch * options_.num_epochs)
    say(
        f"{len(rows):,} sequences, {int(rows.lengths.sum()):,} tokens; {total:,} steps of "
        f"{options_.batch_size} x {options_.grad_accumulation_steps} sequences in {options_.num_epochs} epochs"
    )

    def windows() -> Any:
        step, first = position.step, position.window
        for epoch in range(position.epoch, options_.num_epochs):
            for window in epoch_windows(
                rows,
                batch_size=options_.batch_size,
                accumulation=options_.grad_accumulation_steps,
                bucket_multiple=backend.bucket_multiple,
                seed=options_.seed,
                epoch=epoch,
                start=first,
            ):
                if step >= total:
                    return
                yield window
                step += 1
            first = 0

    save_config(
        folder,
        adapter_config(
            config.lora,
            injected.keys,
            base_model=config.model.model,
            base_fingerprint=manifest.fingerprint,
            template=template.name,
            mlxmath_version=__version__,
        ),
    )
    atomic_write(folder / "chat_template.jinja", template.chat_template())
    record = {
        "mlxmath": __version__,
        "started": timestamp(),
        "config": config.model_dump(mode="json"),
        "origin": dict(resolved.origin),
        "device": vars(device),
        "base_fingerprint": manifest.fingerprint,
        "data": {"fingerprint": rows.fingerprint, **rows.stats},
        "adapter": {"modules": injected.num_modules, "trainable": injected.num_trainable, "total": injected.num_total},
    }
    write_run(folder, record, status="running")
    events = log.EventLog(folder / log.EVENTS, from_step=position.step)
    events.write("resume" if checkpoint else "start", step=position.step, total_steps=total)

    stop = StopRequest()
    backend.reset_peak()
    deadline = Deadline(options_.max_training_time_hours * 3600)
    progress = log.ProgressBar(total, position.step, deadline, backend)

    def save(report_position: Position) -> None:
        start = deadline.elapsed_s
        save_checkpoint(folder, model, optimizer, report_position, settings)
        save_weights(folder / WEIGHTS, model)
        deadline.note_save(deadline.elapsed_s - start)

    def save_sometimes(report: StepReport) -> None:
        if report.position.step % options_.save_every == 0:
            save(report.position)
            events.write("checkpoint", step=report.position.step)

    with stop.listening():
        try:
            ending, position = fit(
                model,
                sft_loss,
                windows(),
                optimizer,
                learning_rates(options_, total),
                max_grad_norm=options_.max_grad_norm,
                deadline=deadline,
                stop=stop,
                hooks=(events.on_step, progress.on_step, save_sometimes),
                position=position,
            )
        finally:
            progress.close()
        save(position)
    memory = backend.memory()
    events.write("end", step=position.step, status=ending, seconds=deadline.elapsed_s, peak_bytes=memory.peak_bytes)
    log.plot_loss(folder / log.EVENTS, folder / log.PLOT)
    write_run(folder, record, status=ending, steps=position.step, seconds=deadline.elapsed_s, **vars(memory))
    adapter_bytes = sum(array.nbytes for array in adapter_arrays(model).values())
    say(
        f"{ending} at step {position.step} of {total} after {duration(deadline.elapsed_s)}; peak memory "
        f"{size(memory.peak_bytes)}; {size(adapter_bytes)} of adapters in {folder}"
    )
    if ending == "finished":
        say(f'try: python -m mlxmath.infer --adapter-path {folder} --prompt "What is 12 + 7?"')
    else:
        say("continue with the same command and --resume")
    return stop.exit_code if ending == "stopped" else 0


if __name__ == "__main__":
    main(prog_name="python -m mlxmath.train")
