"""What the peers that train with mlx_lm's trainer, or one made after it, share.

They are given the tokens: their commands would tokenize the same text to the same ones. A row is a dictionary with two
keys, as their commands' are: their sort by length sorts by the number of keys, that is, not at all.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers.worker import EpochClock, Job, Result, select_mlx_device


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


class Reports:
    """A trainer's callback that notes when steps end and how many targets they had; of each micro-batch one report."""

    def __init__(self, job: Job) -> None:
        self._job, self.clock = job, EpochClock(job)
        self._num_reports = 0
        self._trained: list[float] = []

    def on_train_loss_report(self, info: dict[str, Any]) -> None:
        """After a micro-batch."""
        self._num_reports += 1
        if self._num_reports % self._job["grad_accumulation_steps"] == 0:
            self.clock.step()
            self._trained.append(info["trained_tokens"])

    def on_val_loss_report(self, info: dict[str, Any]) -> None:
        """Nothing is held out."""

    def start(self) -> None:
        """Training begins."""
        import mlx.core as mx

        mx.clear_cache()
        mx.reset_peak_memory()
        self.clock.ends_s.clear()

    def result(self, losses: tuple[float, float]) -> Result:
        """Of a trainer that takes the position after each row's end for a target; `losses`: `first_batch_losses`."""
        import mlx.core as mx

        trained, epochs = self._trained, self._job["num_epochs"]
        per_epoch = (trained[-1] - trained[len(trained) // epochs - 1]) / max(epochs - 1, 1)
        return {
            "first_batch_loss": losses[0],
            "epoch_ends_s": self.clock.ends_s,
            "targets_per_epoch": per_epoch - len(self._job["rows"]),
            "peak_device_bytes": mx.get_peak_memory(),
            "notes": [
                f"trains one padding target after the end of each row; with it the first batch's loss is "
                f"{losses[1]:.5f}, and an epoch has {per_epoch:,.0f} targets"
            ],
        }


def num_iterations(job: Job) -> int:
    """Micro-batches of all epochs."""
    return job["num_epochs"] * (len(job["rows"]) // job["batch_size"])


def load(job: Job) -> Any:
    """The model, on the job's device and in its type."""
    import mlx.core as mx
    from mlx_lm.utils import load_model

    select_mlx_device(job)
    model, _ = load_model(Path(job["model"]), lazy=False)
    if job["backend"] == "cpu":
        model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    return model


def lora_parameters(job: Job) -> dict[str, Any]:
    """As mlx_lm names them."""
    keys = [f"self_attn.{name}" for name in job["targets"]]
    return {"rank": job["rank"], "dropout": 0.0, "scale": job["alpha"] / job["rank"], "keys": keys}


def add_lora(model: Any, job: Job) -> None:
    """Freeze the model and put adapters in."""
    import mlx.core as mx
    from mlx_lm.tuner.utils import linear_to_lora_layers

    mx.random.seed(job["seed"])
    model.freeze()
    linear_to_lora_layers(model, len(model.layers), lora_parameters(job))
    mx.eval(model.parameters())


def first_batch_losses(model: Any, job: Job, loss: Callable[..., Any]) -> tuple[float, float]:
    """Mean `loss` of the real targets of the first batch, and of what the trainer takes for targets."""
    import mlx.core as mx

    sums = {0: [0.0, 0.0], 1: [0.0, 0.0]}
    for row in job["rows"][: job["first_batch"]]:
        tokens, num_prompt = row["tokens"], row["num_prompt"]
        batch = mx.array([[*tokens, 0]])
        for extra, total in sums.items():
            mean, count = loss(model, batch, mx.array([[num_prompt, len(tokens) - 1 + extra]]))
            total[0] += mean.item() * count.item()
            total[1] += count.item()
    return sums[0][0] / sums[0][1], sums[1][0] / sums[1][1]
