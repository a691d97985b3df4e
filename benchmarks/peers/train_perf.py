"""`mlx-train-perf` with mlx_lm's trainer, as it is meant to be used; it asks for other versions than ours of both.

Its loss makes no logits of all positions at once. On a CPU its form in chunks runs; its kernels, its attention and
its packing are for Metal.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.peers.mlx_rows import Reports, Rows, add_lora, first_batch_losses, load, num_iterations
from benchmarks.peers.worker import Job, Result, main


def run(job: Job) -> Result:
    """Train and report."""
    import mlx.optimizers as optim
    from mlx_lm.tuner.datasets import CacheDataset
    from mlx_lm.tuner.trainer import TrainingArgs, train
    from mlx_train_perf.adapters.mlx_lm import make_loss_fn

    model = load(job)
    loss = make_loss_fn(model, impl="auto" if job["backend"] == "metal" else "chunked")
    losses, reports, iterations = first_batch_losses(model, job, loss), Reports(job), num_iterations(job)
    add_lora(model, job)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArgs(
            batch_size=job["batch_size"],
            grad_accumulation_steps=job["grad_accumulation_steps"],
            iters=iterations,
            steps_per_report=1,
            steps_per_save=iterations + 1,
            adapter_file=str(Path(folder) / "adapters.safetensors"),
        )
        reports.start()
        optimizer = optim.AdamW(learning_rate=job["learning_rate"])
        train(model, optimizer, CacheDataset(Rows(job["rows"])), [], arguments, loss, training_callback=reports)
    return reports.result(losses)


if __name__ == "__main__":
    main(run, ("mlx-train-perf", "mlx", "mlx-lm", "transformers"))
