"""Learning rates by step."""

import math
from collections.abc import Callable

from mlxmath.config.schema import TrainingConfig


def learning_rates(config: TrainingConfig, total_steps: int) -> Callable[[int], float]:
    """The learning rate of optimizer step `s` = 0, 1, …: linear warm-up, then the schedule down to 0 at `total_steps`.

    The warm-up rises as (s + 1) / warmup_steps, so that the first step already moves.
    """
    peak, warmup = config.learning_rate, config.warmup_steps

    def rate(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        if config.schedule == "linear":
            return peak * (1 - done)
        if config.schedule == "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * done))
        return peak

    return rate
