"""unsloth_zoo's GRPO for MLX, on Linux in an environment of its own (see `bench_train.py --help`).

`batch_size` is of its micro-batches, in completions. Its first optimizer step is not timed.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("UNSLOTH_ZOO_DISABLE_GPU_INIT", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.peers.grpo_rewards import of_completions
from benchmarks.peers.worker import Job, Result, main, select_mlx_device


def run(job: Job) -> Result:
    """Train and report."""
    import mlx.core as mx
    from unsloth_zoo.mlx.loader import FastMLXModel
    from unsloth_zoo.mlx.trainer import MLXGRPOConfig, MLXGRPOTrainer

    select_mlx_device(job)
    checkpointing = bool(job["setting"]["grad_checkpoint"])
    longest = max(len(prompt["tokens"]) for prompt in job["prompts"]) + job["completion_tokens"] + 8
    model, tokenizer = FastMLXModel.from_pretrained(
        job["model"], dtype="float32" if job["backend"] == "cpu" else job["dtype"], load_in_4bit=False, text_only=True,
        max_seq_length=longest,
    )  # fmt: skip
    model = FastMLXModel.get_peft_model(
        model, r=job["rank"], lora_alpha=job["alpha"], target_modules=list(job["targets"]), lora_dropout=0.0,
        use_gradient_checkpointing="mlx" if checkpointing else False, random_state=job["seed"],
    )  # fmt: skip
    mx.eval(model.parameters())
    rows = [{"prompt": tokenizer.decode(prompt["tokens"])} for prompt in job["prompts"]]
    lengths: list[int] = []
    ends_s: list[float] = []

    def reward(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths.extend(map(len, completion_ids))
        return of_completions(completions)

    per_step = len(rows) * job["group_size"]
    with tempfile.TemporaryDirectory() as folder:
        trainer = MLXGRPOTrainer(
            model=model,
            tokenizer=tokenizer,
            train_dataset=rows,
            reward_funcs=[reward],
            args=MLXGRPOConfig(
                per_device_train_batch_size=job["batch_size"],
                gradient_accumulation_steps=per_step // job["batch_size"],
                num_generations=job["group_size"],
                max_completion_length=job["completion_tokens"],
                max_steps=2,
                warmup_steps=0,
                learning_rate=job["learning_rate"],
                lr_scheduler_type="constant",
                weight_decay=0.0,
                seed=job["seed"],
                output_dir=folder,
                max_seq_length=longest,
                gradient_checkpointing=checkpointing,
                beta=0.0,
            ),
        )
        trainer.add_step_callback(lambda *_: ends_s.append(time.perf_counter()))
        mx.clear_cache()
        mx.reset_peak_memory()
        trainer.train()
    return {
        "seconds": ends_s[-1] - ends_s[0],
        "completions": (len(ends_s) - 1) * per_step,
        "mean_length": sum(lengths) / len(lengths),
        "peak_device_bytes": mx.get_peak_memory(),
        "notes": [],
    }


if __name__ == "__main__":
    main(run, ("unsloth-zoo", "mlx", "mlx-lm", "transformers"))
