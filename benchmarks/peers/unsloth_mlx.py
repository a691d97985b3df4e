"""unsloth_zoo's MLX trainer, on Linux in an environment of its own (see `bench_train.py --help`).

It gets the tokens and labels that the others train on: its own tokenizer settings would make other ones.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("UNSLOTH_ZOO_DISABLE_GPU_INIT", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.peers.worker import EpochClock, Job, Result, main, select_mlx_device


def run(job: Job) -> Result:
    """Train and report."""
    import mlx.core as mx
    from unsloth_zoo.mlx.loader import FastMLXModel
    from unsloth_zoo.mlx.trainer import MLXTrainer, MLXTrainingConfig
    from unsloth_zoo.mlx.utils import make_cce_loss_fn

    select_mlx_device(job)
    checkpointing = bool(job["setting"]["grad_checkpoint"])
    model, tokenizer = FastMLXModel.from_pretrained(
        job["model"], dtype="float32" if job["backend"] == "cpu" else job["dtype"], load_in_4bit=False, text_only=True,
        max_seq_length=2048,
    )  # fmt: skip
    model = FastMLXModel.get_peft_model(
        model, r=job["rank"], lora_alpha=job["alpha"], target_modules=list(job["targets"]), lora_dropout=0.0,
        use_gradient_checkpointing="mlx" if checkpointing else False, random_state=job["seed"],
    )  # fmt: skip
    mx.eval(model.parameters())
    rows = [
        {"input_ids": row["tokens"], "labels": [-100] * row["num_prompt"] + row["tokens"][row["num_prompt"] :]}
        for row in job["rows"]
    ]
    loss = first_batch_loss(make_cce_loss_fn(model), model, rows[: job["first_batch"]])
    clock = EpochClock(job)
    trained: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = MLXTrainer(
            model=model,
            tokenizer=tokenizer,
            train_dataset=rows,
            args=MLXTrainingConfig(
                per_device_train_batch_size=job["batch_size"],
                gradient_accumulation_steps=job["grad_accumulation_steps"],
                num_train_epochs=job["num_epochs"],
                max_steps=-1,
                warmup_steps=0,
                learning_rate=job["learning_rate"],
                lr_scheduler_type="constant",
                weight_decay=0.0,
                seed=job["seed"],
                output_dir=folder,
                max_seq_length=2048,
                gradient_checkpointing=checkpointing,
            ),
        )

        def on_step(*report: Any) -> None:
            """Called with step, steps, loss, rate, tokens/s, peak, seconds, targets so far, gradient norm."""
            clock.step()
            trained.append(report[7])

        trainer.add_step_callback(on_step)
        mx.clear_cache()
        mx.reset_peak_memory()
        clock.ends_s.clear()
        trainer.train()
    return {
        "first_batch_loss": loss,
        "epoch_ends_s": clock.ends_s,
        "targets_per_epoch": (trained[-1] - trained[len(trained) // job["num_epochs"] - 1])
        / max(job["num_epochs"] - 1, 1),
        "peak_device_bytes": mx.get_peak_memory(),
        "notes": [],
    }


def first_batch_loss(loss_fn: Any, model: Any, rows: list[dict[str, Any]]) -> float:
    """Mean loss of the targets by the trainer's own chunked cross-entropy."""
    import mlx.core as mx

    total = count = 0.0
    for row in rows:
        batch, labels = mx.array([row["input_ids"]]), mx.array([row["labels"]])
        mean, num_targets = loss_fn(model, batch, mx.array([[0, batch.shape[1]]]), labels)[:2]
        total += mean.item() * num_targets.item()
        count += num_targets.item()
    return total / count


if __name__ == "__main__":
    main(run, ("unsloth-zoo", "mlx", "mlx-lm", "transformers"))
