"""`mlx_lm.lora`: its own `train_model`, with its own batches, loss and compiled step, on rows tokenized beforehand.

Its command would tokenize the same text to the same tokens; giving it the tokens takes that out of the question. The
rows are dictionaries with two keys, as its command's are: its sort by length sorts by the number of keys, that is, not
at all (`CacheDataset.itemlen`).
"""

import sys
import tempfile
import types
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.peers.worker import EpochClock, Job, Result, main, select_mlx_device


class Rows:
    """A dataset of mlx_lm whose rows are tokens already."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._rows[index]

    def process(self, row: dict[str, Any]) -> tuple[list[int], int]:
        """(tokens, length of the prompt)."""
        return row["tokens"], row["num_prompt"]


def run(job: Job) -> Result:
    """Train and report."""
    import mlx.core as mx
    from mlx_lm import lora
    from mlx_lm.tuner.callbacks import TrainingCallback
    from mlx_lm.utils import load_model

    select_mlx_device(job)
    model, _ = load_model(Path(job["model"]), lazy=False)
    if job["backend"] == "cpu":
        model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    loss, own_loss = first_batch_loss(model, job["rows"][: job["first_batch"]])
    clock = EpochClock(job)
    accumulation, num_iterations = job["grad_accumulation_steps"], 0
    trained: list[float] = []

    class Callback(TrainingCallback):
        def on_train_loss_report(self, info: dict[str, Any]) -> None:
            nonlocal num_iterations
            num_iterations += 1
            if num_iterations % accumulation == 0:
                clock.step()
                trained.append(info["trained_tokens"])

    iterations = job["num_epochs"] * (len(job["rows"]) // job["batch_size"])
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
                "grad_accumulation_steps": accumulation,
                "iters": iterations,
                "learning_rate": job["learning_rate"],
                "steps_per_report": 1,
                "save_every": iterations + 1,
                "adapter_path": folder,
                "mask_prompt": True,
                "grad_checkpoint": bool(job["setting"].get("grad_checkpoint")),
                "lora_parameters": {
                    "rank": job["rank"],
                    "dropout": 0.0,
                    "scale": job["alpha"] / job["rank"],
                    "keys": [name if "." in name else f"self_attn.{name}" for name in job["targets"]],
                },
            }
        )
        mx.clear_cache()
        mx.reset_peak_memory()
        clock.ends_s.clear()
        lora.train_model(arguments, model, Rows(job["rows"]), [], Callback())
    per_epoch = (trained[-1] - trained[len(trained) // job["num_epochs"] - 1]) / max(job["num_epochs"] - 1, 1)
    return {
        "first_batch_loss": loss,
        "epoch_ends_s": clock.ends_s,
        "targets_per_epoch": per_epoch - len(job["rows"]),
        "peak_device_bytes": mx.get_peak_memory(),
        "notes": [
            f"trains one padding target after the end of each row; with it the first batch's loss is {own_loss:.5f}, "
            f"and an epoch has {per_epoch:,.0f} targets"
        ],
    }


def first_batch_loss(model: Any, rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Mean loss of the real targets, and of what mlx_lm takes for targets, both by its own `default_loss`."""
    import mlx.core as mx
    from mlx_lm.tuner.trainer import default_loss

    sums = {0: [0.0, 0.0], 1: [0.0, 0.0]}
    for row in rows:
        tokens, num_prompt = row["tokens"], row["num_prompt"]
        batch = mx.array([[*tokens, 0]])
        for extra, total in sums.items():
            lengths = mx.array([[num_prompt, len(tokens) - 1 + extra]])
            mean, count = default_loss(model, batch, lengths)
            total[0] += mean.item() * count.item()
            total[1] += count.item()
    return sums[0][0] / sums[0][1], sums[1][0] / sums[1][1]


if __name__ == "__main__":
    main(run, ("mlx", "mlx-lm", "transformers"))
