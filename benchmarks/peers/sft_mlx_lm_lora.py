"""`mlx-lm-lora`'s fine-tuning: its own `train_sft`, with its own batches, loss and compiled step.

It draws a batch at random for each iteration, so that an epoch of as many iterations sees some rows twice and some
never; tokens are counted as trained.
"""

import sys
import tempfile
from pathlib import Path

sys.path.pop(0)  # this folder, which has a module of the package's name
sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.peers.mlx_rows import Reports, Rows, add_lora, first_batch_losses, load, num_iterations
from benchmarks.peers.worker import Job, Result, main

_LIMIT = "max_recommended_working_set_size"


def run(job: Job) -> Result:
    """Train and report."""
    import mlx.core as mx
    import mlx.optimizers as optim
    from mlx_lm_lora.trainer.datasets import CacheDataset
    from mlx_lm_lora.trainer.sft_trainer import SFTTrainingArgs, default_loss, train_sft

    model = load(job)
    losses, reports, iterations = first_batch_losses(model, job, default_loss), Reports(job), num_iterations(job)
    add_lora(model, job)
    found = mx.device_info()
    if _LIMIT not in found:  # it asks for this limit of Metal's whatever the device, and sets it, which does nothing
        mx.device_info = lambda *_: found | {_LIMIT: 0}
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTTrainingArgs(
            batch_size=job["batch_size"],
            gradient_accumulation_steps=job["grad_accumulation_steps"],
            iters=iterations,
            steps_per_report=1,
            steps_per_save=iterations + 1,
            adapter_file=str(Path(folder) / "adapters.safetensors"),
            grad_checkpoint=bool(job["setting"].get("grad_checkpoint")),
        )
        reports.start()
        optimizer = optim.AdamW(learning_rate=job["learning_rate"])
        train_sft(model, optimizer, CacheDataset(Rows(job["rows"])), None, arguments, training_callback=reports)
    return reports.result(losses)


if __name__ == "__main__":
    main(run, ("mlx-lm-lora", "mlx", "mlx-lm", "transformers"))
