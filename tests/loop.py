"""The trainer's loop as a method's page drives it, on parts of a test's own."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import mlx.optimizers as optim

from mlxmath.config.schema import RunConfig, TrainingConfig
from mlxmath.data.batching import StepBatch
from mlxmath.training.checkpoint import Position
from mlxmath.training.deadline import Deadline, StopRequest
from mlxmath.training.events import StepReport
from mlxmath.training.trainer import Trainer
from mlxmath.training.workers import Workers

Hook = Callable[[StepReport], str | None]


def fit(
    workers: Workers,
    batches: Iterable[StepBatch],
    optimizer: optim.Optimizer,
    learning_rate: Callable[[int], float],
    *,
    max_grad_norm: float,
    deadline: Deadline,
    stop: StopRequest,
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
    trainer.deadline, trainer.stop = deadline, stop
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
