"""`mlx_lm.lora`: its own `train_model`, with its own batches, loss and compiled step, on rows tokenized beforehand."""

import sys
import tempfile
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.peers.mlx_rows import Reports, Rows, first_batch_losses, load, lora_parameters, num_iterations
from benchmarks.peers.worker import Job, Result, main


def run(job: Job) -> Result:
    """Train and report."""
    from mlx_lm import lora
    from mlx_lm.tuner.trainer import default_loss

    model = load(job)
    losses, reports, iterations = first_batch_losses(model, job, default_loss), Reports(job), num_iterations(job)
    with tempfile.TemporaryDirectory() as folder:
        arguments = types.SimpleNamespace(
            **lora.CONFIG_DEFAULTS
            | {
                "model": job["model"],
                "train": True,
                "optimizer": "adamw",
                "seed": job["seed"],
                "num_layers": -1,
                "batch_size": job["batch_size"],
                "grad_accumulation_steps": job["grad_accumulation_steps"],
                "iters": iterations,
                "learning_rate": job["learning_rate"],
                "steps_per_report": 1,
                "save_every": iterations + 1,
                "adapter_path": folder,
                "mask_prompt": True,
                "grad_checkpoint": bool(job["setting"].get("grad_checkpoint")),
                "lora_parameters": lora_parameters(job),
            }
        )
        reports.start()
        lora.train_model(arguments, model, Rows(job["rows"]), [], reports)
    return reports.result(losses)


if __name__ == "__main__":
    main(run, ("mlx", "mlx-lm", "transformers"))
