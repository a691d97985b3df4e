"""Learning rates by step."""

import math
from collections.abc import Callable

from mlxmath.config.schema import TrainingConfig


def warmup_steps(config: TrainingConfig, total_steps: int) -> int:
    """Steps of warm-up: `warmup_steps`, or `warmup_ratio` of the planned steps, rounded up."""
    return config.warmup_steps or math.ceil(config.warmup_ratio * total_steps)


def learning_rates(config: TrainingConfig, total_steps: int) -> Callable[[int], float]:
    """The learning rate of optimizer step `s` = 0, 1, …: linear warm-up, then the schedule.

    The warm-up rises as (s + 1) / warm-up steps, so that the first step already moves. Linear and cosine fall from
    the peak to `min_learning_rate_ratio` of it, which step `total_steps` (the first that is not taken) would have.
    """
    peak, warmup = config.learning_rate, warmup_steps(config, total_steps)
    floor = config.min_learning_rate_ratio

    def rate(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        if config.schedule == "linear":
            return peak * (floor + (1 - floor) * (1 - done))
        if config.schedule == "cosine":
            return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))
        return peak

    return rate
