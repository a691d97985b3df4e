"""`mlx-lm-lora`'s GRPO: its own `train_grpo`, with the sampling that all share (the whole distribution, no filters).

`batch_size` is what it calls so: prompts an iteration, and also rows decoded together and rows scored together. A short
run beforehand compiles what it compiles.
"""

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.pop(0)  # this folder, which has a module of the package's name
sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.peers.grpo_rewards import of_completions
from benchmarks.peers.worker import Job, Result, main, select_mlx_device


def run(job: Job) -> Result:
    """Train and report."""
    import mlx.core as mx
    import mlx.optimizers as optim
    from mlx_lm.tuner.callbacks import TrainingCallback
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model, load_tokenizer
    from mlx_lm_lora.trainer.grpo_trainer import GRPOTrainingArgs, train_grpo

    select_mlx_device(job)
    model, _ = load_model(Path(job["model"]), lazy=False)
    if job["backend"] == "cpu":
        model.set_dtype(mx.float32)
    tokenizer = load_tokenizer(Path(job["model"]))
    mx.random.seed(job["seed"])
    model.freeze()
    keys = [f"self_attn.{name}" for name in job["targets"]]
    settings = {"rank": job["rank"], "dropout": 0.0, "scale": job["alpha"] / job["rank"], "keys": keys}
    linear_to_lora_layers(model, len(model.layers), settings)
    mx.eval(model.parameters())
    rows = [(prompt["tokens"], [1], tokenizer.decode(prompt["tokens"]), "0") for prompt in job["prompts"]]
    lengths: list[float] = []
    ends_s: list[float] = []

    class Callback(TrainingCallback):
        def on_train_loss_report(self, info: dict[str, Any]) -> None:
            ends_s.append(time.perf_counter())
            lengths.append(info["train_average_generated_tokens"])

    with tempfile.TemporaryDirectory() as folder:
        arguments = GRPOTrainingArgs(
            batch_size=job["batch_size"],
            iters=max(1, len(rows) // job["batch_size"]) if job["iterations"] is None else job["iterations"],
            gradient_accumulation_steps=max(1, len(rows) // job["batch_size"]),
            group_size=job["group_size"],
            beta=0.0,
            epsilon=0.2,
            max_completion_length=job["completion_tokens"],
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            steps_per_report=1,
            steps_per_save=1_000_000,
            adapter_file=str(Path(folder) / "adapters.safetensors"),
        )

        def train(args: GRPOTrainingArgs) -> None:
            optimizer = optim.AdamW(learning_rate=job["learning_rate"], weight_decay=0.0)
            train_grpo(
                model, None, tokenizer, optimizer, rows, None, [of_completions], args, training_callback=Callback()
            )

        train(replace(arguments, iters=1, batch_size=1, group_size=2, max_completion_length=4))
        mx.clear_cache()
        mx.reset_peak_memory()
        ends_s.clear()
        lengths.clear()
        start = time.perf_counter()
        train(arguments)
    return {
        "seconds": ends_s[-1] - start,
        "completions": len(ends_s) * arguments.batch_size * arguments.group_size,
        "mean_length": sum(lengths) / len(lengths),
        "peak_device_bytes": mx.get_peak_memory(),
        "notes": [],
    }


if __name__ == "__main__":
    main(run, ("mlx-lm-lora", "mlx", "mlx-lm", "transformers"))
