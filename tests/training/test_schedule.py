"""Learning rates by hand."""

import math

import pytest

from mlxmath.config.load import resolve
from mlxmath.config.schema import TrainingConfig
from mlxmath.errors import InputError
from mlxmath.training.schedule import learning_rates, warmup_steps


def rates(total: int, **settings: object) -> list[float]:
    rate = learning_rates(TrainingConfig(learning_rate=1.0, **settings), total)
    return [rate(s) for s in range(total)]


@pytest.mark.parametrize(
    ("ratio", "total", "steps"), [(0.0, 100, 0), (0.03, 100, 3), (0.1, 25, 3), (0.5, 1, 1), (0.1, 0, 0)]
)
def test_a_warm_up_ratio_is_rounded_up(ratio: float, total: int, steps: int) -> None:
    assert warmup_steps(TrainingConfig(warmup_ratio=ratio), total) == steps


def test_a_warm_up_ratio_is_that_many_steps() -> None:
    assert rates(8, warmup_ratio=0.25, schedule="cosine") == rates(8, warmup_steps=2, schedule="cosine")
    assert rates(8, warmup_ratio=0.25)[:3] == [0.5, 1.0, 1.0]


def test_steps_and_ratio_together_are_refused() -> None:
    with pytest.raises(InputError, match=r"--warmup-ratio \(option\): give --warmup-steps or --warmup-ratio, not both"):
        resolve([("option", {"training.warmup_steps": 2, "training.warmup_ratio": 0.1})])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ("linear", [1.0, 0.8, 0.6, 0.4]),
        ("cosine", [0.2 + 0.8 * (1 + math.cos(math.pi * n / 4)) / 2 for n in range(4)]),
    ],
)
def test_a_floor(schedule: str, expected: list[float]) -> None:
    assert rates(4, schedule=schedule, min_learning_rate_ratio=0.2) == pytest.approx(expected)
    last = learning_rates(TrainingConfig(learning_rate=1.0, schedule=schedule, min_learning_rate_ratio=0.2), 4)(9)
    assert last == pytest.approx(1.0 if schedule == "constant" else 0.2)
