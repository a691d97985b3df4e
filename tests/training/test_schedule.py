"""Learning rates by hand."""

import math

import pytest

from mlxmath.config.load import resolve
from mlxmath.config.training import TrainingConfig
from mlxmath.errors import InputError
from mlxmath.training.schedule import Schedule, learning_rates, warmup_steps


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


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_another_end_bends_the_way_without_a_jump_and_reaches_the_floor(schedule: str) -> None:
    config = TrainingConfig(learning_rate=1.0, schedule=schedule, warmup_steps=10, min_learning_rate_ratio=0.1)
    planned = Schedule.planned(config, 10_000)
    bent = planned.with_end(config, 100, 200)
    again = bent.with_end(config, 150, 180)
    for before, after, step in ((planned, bent, 100), (bent, again, 150)):
        assert after.rate(config, step) == pytest.approx(before.rate(config, step), abs=1e-12)
    assert bent.rate(config, 200) == pytest.approx(0.1) and again.rate(config, 180) == pytest.approx(0.1)
    assert again.rate(config, 10**6) == pytest.approx(0.1)
    rates = [again.rate(config, step) for step in range(150, 181)]
    assert rates == sorted(rates, reverse=True)
    # half of what was left of the way, by hand
    left = 1 - planned.done(100)
    assert bent.done(150) == pytest.approx(planned.done(100) + left / 2)


def test_a_warm_up_ratio_is_of_the_steps_that_fit() -> None:
    config = TrainingConfig(learning_rate=1.0, schedule="cosine", warmup_ratio=0.1)
    planned = Schedule.planned(config, 10_000)
    assert planned.warmup == 1000
    bent = planned.with_end(config, 8, 200)
    assert bent.warmup == 20 and bent.rate(config, 19) == 1.0 and bent.rate(config, 200) == pytest.approx(0.0)
    late = planned.with_end(config, 90, 200)  # longer than a tenth has been warmed up already
    assert late.warmup == 90 and late.rate(config, 90) == 1.0
