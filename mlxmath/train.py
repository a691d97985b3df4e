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
from mlxmath.errors import MlxmathError


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

    config, training = resolved.config, resolved.config.training
    backend, device = open_backend(config.runtime, training.seed)

    from itertools import islice

    import mlx.optimizers as optim

    from mlxmath.data.batches import num_windows, training_windows
    from mlxmath.data.render import adds_bos, load_tokenizer
    from mlxmath.lora.adapter import adapter_config
    from mlxmath.lora.inject import inject
    from mlxmath.models.load import load_model
    from mlxmath.objectives.sft import sft_loss
    from mlxmath.prepare import prepare_rows
    from mlxmath.problems.prompts import get_template
    from mlxmath.training import run
    from mlxmath.training.checkpoint import Saver, check_settings, restore
    from mlxmath.training.deadline import Deadline, StopRequest
    from mlxmath.training.events import EVENTS, PLOT, EventLog, ProgressBar, plot_loss
    from mlxmath.training.fit import MAX_BAD_WINDOWS, Position, fit
    from mlxmath.training.schedule import learning_rates
    from mlxmath.weights.convert import ensure_model

    template = get_template(config.data.template)
    folder, model_folder = Path(training.adapter_path), Path(config.model.mlx_path)
    checkpoint = run.claim(config)
    manifest = ensure_model(config.model)
    rows = prepare_rows(config.data, model_folder, trust_remote_code=config.model.trust_remote_code)

    model = load_model(model_folder, device.compute_dtype).model
    injected = inject(model, config.lora)
    say(str(injected))
    optimizer = optim.AdamW(training.learning_rate, weight_decay=training.weight_decay, bias_correction=True)
    optimizer.init(model.trainable_parameters())
    settings = run.fixed_settings(config, manifest.fingerprint, rows.fingerprint)
    position = Position()
    if checkpoint:
        check_settings(checkpoint, settings)
        restore(checkpoint, model, optimizer)
        position = checkpoint.position

    total = training.num_epochs * num_windows(len(rows), training.batch_size, training.grad_accumulation_steps)
    total = min(total, training.max_steps or total)
    say(
        f"{len(rows):,} sequences, {int(rows.lengths.sum()):,} tokens an epoch; {total:,} steps of "
        f"{training.batch_size} x {training.grad_accumulation_steps} sequences"
    )
    windows = training_windows(rows, training, backend.bucket_multiple, epoch=position.epoch, window=position.window)

    run.start(
        folder,
        adapter_config(
            config.lora,
            injected.keys,
            base_model=config.model.model,
            base_fingerprint=manifest.fingerprint,
            template=template.name,
            mlxmath_version=__version__,
        ),
        template.chat_template(bos=adds_bos(load_tokenizer(model_folder, config.model.trust_remote_code))),
        anew=checkpoint is None,
    )
    record = run.Record(folder, resolved, device, {"fingerprint": rows.fingerprint, **rows.stats}, injected)
    events = EventLog(folder / EVENTS, from_step=position.step)
    events.write("resume" if checkpoint else "start", step=position.step, total_steps=total)
    stop, deadline = StopRequest(), Deadline(training.max_training_time_hours * 3600)
    progress = ProgressBar(total, position.step, deadline, backend)
    saver = Saver(folder, model, optimizer, settings, training.save_every, deadline)
    backend.reset_peak()
    with stop.listening():
        try:
            ending, position = fit(
                model,
                sft_loss,
                islice(windows, max(0, total - position.step)),
                optimizer,
                learning_rates(training, total),
                max_grad_norm=training.max_grad_norm,
                deadline=deadline,
                stop=stop,
                hooks=(events.on_step, progress.on_step, saver.on_step),
                position=position,
            )
        finally:
            progress.close()
        saver.save(position)
    memory, seconds = backend.memory(), deadline.elapsed_s
    events.write("end", step=position.step, status=ending, seconds=seconds, peak_bytes=memory.peak_bytes)
    plot_loss(folder / EVENTS, folder / PLOT)
    record.write(status=ending, steps=position.step, seconds=seconds, **vars(memory))
    say(
        f"{ending} at step {position.step} of {total} after {duration(seconds)}; peak memory "
        f"{size(memory.peak_bytes)}; adapters, curves and checkpoints are in {folder}"
    )
    if ending == "diverged":
        raise MlxmathError(
            f"the last {MAX_BAD_WINDOWS} steps were not finite; {folder} holds the last good adapters. Lower "
            "--learning-rate, or look at the rows named above."
        )
    if ending == "finished":
        say(f'try: python -m mlxmath.infer --adapter-path {folder} --prompt "What is 12 + 7?"')
    else:
        say("continue with the same command and --resume")
    return stop.exit_code if ending == "stopped" else 0


if __name__ == "__main__":
    main(prog_name="python -m mlxmath.train")
