"""The trainer's loop as a method's page drives it, on parts of a test's own."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

from mlxmath.config.schema import LoraConfig, RunConfig
from mlxmath.config.training import TrainingConfig
from mlxmath.data.batching import BatchSampler, Shape, StepBatch
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.lora.inject import inject
from mlxmath.training.accumulate import StepSums, Workers, accumulate
from mlxmath.training.checkpoint import Position
from mlxmath.training.deadline import Deadline, StopRequest
from mlxmath.training.events import StepReport
from mlxmath.training.gradients import Gradients, choose_gradients
from mlxmath.training.sft import sft_loss
from mlxmath.training.trainer import Trainer
from tests.conftest import FakeRows, make_tiny_llama

Hook = Callable[[StepReport], str | None]


def fit(
    workers: Workers,
    batches: Iterable[StepBatch],
    optimizer: optim.Optimizer,
    learning_rate: Callable[[int], float] = lambda _: 1e-2,
    *,
    max_grad_norm: float = 1.0,
    deadline: Deadline | None = None,
    stop: StopRequest | None = None,
    hooks: Sequence[Hook] = (),
    position: Position | None = None,
) -> tuple[Any, Position]:
    """Train on `batches` until they end, time is up or somebody asks to stop: the ending, and how far it got.

    Hooks are called after each step and may say why no other one is to come.
    """
    run: Any = SimpleNamespace(
        config=RunConfig(training=TrainingConfig(max_grad_norm=max_grad_norm)), model=workers.model, checkpoint=None,
        ranks=workers.ranks, batching=SimpleNamespace(num_workers=1), closing=ExitStack(),
    )  # fmt: skip
    gradients: Any = None
    trainer: Any = Trainer(run, lambda _: gradients)
    trainer.workers, trainer.optimizer, trainer.position = workers, optimizer, position or Position()
    trainer.deadline, trainer.stop = deadline or Deadline(1e9), StopRequest() if stop is None else stop
    trainer.pace = SimpleNamespace(rate=learning_rate, on_step=lambda _: None)
    trainer._batches, trainer.total_steps = SimpleNamespace(steps=lambda *_: iter(batches)), 1 << 60
    for batch in trainer.steps():
        sums = trainer.loss_and_grads(batch)
        if sums is None:
            break
        step = trainer.update(sums)
        del sums
        for hook in hooks:
            trainer.end(hook(step))
    return trainer.ending, trainer.position


def windows_of(rows: FakeRows, batch_size: int = 2, accumulation: int = 4, start: int = 0) -> list[StepBatch]:
    config = TrainingConfig(batch_size=batch_size, grad_accumulation_steps=accumulation, batching="pad")
    return list(BatchSampler(rows, config, 1, Shape(32)).epoch(0, start))


def gradients_of(model: nn.Module) -> Gradients:
    return choose_gradients(model, sft_loss, Kernels(), compiled=False)


def workers_of(model: nn.Module, count: int = 1) -> Workers:
    return Workers(model, gradients_of, count)


def summed(workers: Workers, window: StepBatch) -> StepSums:
    """Of a window that nobody stops."""
    sums = accumulate(workers, window)
    assert sums is not None
    return sums


def adapted(dropout: float = 0.0, **lora: Any) -> nn.Module:
    model = make_tiny_llama()
    mx.random.seed(5)
    inject(model, LoraConfig(rank=4, dropout=dropout, **lora))
    return model


def adamw(model: nn.Module) -> optim.Optimizer:
    optimizer = optim.AdamW(1e-2, bias_correction=True)
    optimizer.init(model.trainable_parameters())
    return optimizer


class Clock:
    """Seconds that pass only when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now
