"""The time that an evaluation says is left, against how long it then takes."""

import numpy as np
import pytest

from mlxmath.evaluation.progress import Progress


def simulate(lengths: list[int], slots: int, limit: int) -> list[tuple[float, float]]:
    """Decode answers of these lengths, a step a second: at each step the time said to be left, and the true one."""
    now = 0.0
    progress = Progress("base", len(lengths), 0, 0, clock=lambda: now)
    progress.limit(limit)
    waiting, under_way, said = list(lengths), [], []
    while waiting or under_way:
        if waiting and slots - len(under_way) >= max(1, slots // 2):
            under_way += [[0, waiting.pop(0)] for _ in range(min(slots - len(under_way), len(waiting)))]
        now += 1 + 0.05 * len(under_way)  # a step takes longer the more there are
        for answer in under_way:
            answer[0] += 1
        ended = [answer for answer in under_way if answer[0] == answer[1]]
        number, under_way = len(under_way), [answer for answer in under_way if answer[0] < answer[1]]
        for answer in ended:
            progress.ended(answer[0])
            progress.answered(True)
        progress.step(number)
        if progress.seconds_left is not None:
            said.append((progress.seconds_left, now))
    return [(left, now - at) for left, at in said]


@pytest.mark.parametrize("kind", ["alike", "spread", "cut off", "few long ones"])
@pytest.mark.parametrize("number", [200, 1319])
def test_time_left_is_of_the_right_size(kind: str, number: int) -> None:
    rng = np.random.default_rng(2)
    limit = 512
    lengths = {
        "alike": rng.integers(90, 130, number),
        "spread": np.clip(rng.lognormal(5, 0.6, number), 5, limit),
        "cut off": np.full(number, limit),
        "few long ones": np.where(rng.random(number) < 0.1, limit, rng.integers(20, 80, number)),
    }[kind].astype(int)
    said = simulate(lengths.tolist(), 64, limit)
    whole = said[0][1]
    for left, true in said:
        if true > 0.05 * whole:
            assert true / (8 if kind == "few long ones" else 4) < left < true * 3, (left, true, whole)
    assert said[-1][0] == 0


def test_what_was_there_before_takes_no_time() -> None:
    now = 0.0
    progress = Progress("base", 100, 90, 45, clock=lambda: now)
    progress.limit(50)
    for step in range(20):
        assert (progress.seconds_left is None) == (step < 13)  # a quarter of the limit
        now += 1.0
        progress.step(10)
    assert progress.seconds_left == pytest.approx(20)  # ten answers of twenty tokens, twice as long expected
