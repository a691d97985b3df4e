"""The cost model of several machines, by hand."""

import json
from pathlib import Path

import pytest

from benchmarks.scaling_figure import message_bytes
from benchmarks.scaling_model import (
    Compute,
    Link,
    all_reduce_s,
    fit,
    imbalance,
    pays_until,
    shares_of,
    speed_up,
    step_s,
    vote_s,
)
from tests.helpers import REPOSITORY

LINK = Link("a link", bytes_per_s=1e6, message_s=1e-3)


def test_a_ring_sends_nearly_everything_twice() -> None:
    assert all_reduce_s(1e6, 1, LINK) == 0
    assert all_reduce_s(1e6, 2, LINK) == pytest.approx(2 * (0.001 + 0.5))  # half there, half back
    assert all_reduce_s(1e6, 4, LINK) == pytest.approx(6 * (0.001 + 0.25))
    assert all_reduce_s(1e6, 1000, LINK) == pytest.approx(2 * 999 * (0.001 + 0.001))
    assert vote_s(2, LINK) == 0.002


def test_a_step_waits_for_the_largest_share() -> None:
    compute = Compute(token_s=1e-2, window_s=0.5)
    assert step_s([[100, 20]], 1e6, LINK, compute) == pytest.approx(1.7)
    assert step_s([[100], [20]], 1e6, LINK, compute) == pytest.approx(1.0 + 0.5 + 1.002 + 0.004)
    assert speed_up(120, 1, 1.0, 1e6, LINK, compute) == 1
    assert speed_up(120, 2, 1.0, 1e6, LINK, compute) == pytest.approx(1.7 / (0.6 + 0.5 + 1.002 + 0.004))
    assert speed_up(120, 2, 1.5, 1e6, LINK, compute) == pytest.approx(1.7 / (0.9 + 0.5 + 1.002 + 0.004))


def test_where_it_stops_paying() -> None:
    free, even = Link("free", 1e30, 0.0), dict.fromkeys((1, 2, 4, 8), 1.0)
    assert pays_until(1e6, even, 1e6, free, Compute(1e-3, 0.0)) == 8
    assert pays_until(1e6, even | {8: 2.1}, 1e6, free, Compute(1e-3, 0.0)) == 4
    assert pays_until(10, even, 1e9, LINK, Compute(1e-3, 0.0)) == 1


def test_shares_are_those_of_a_run() -> None:
    lengths = [17, 17, 33, 65]  # one token less is an input; multiples of 16
    (alone,) = shares_of(lengths, 1, batch=4, max_tokens=64)
    assert alone == [[64, 64, 16]]  # the second batch is two rows as wide as the longer one
    (both,) = shares_of(lengths, 2, batch=4, max_tokens=64)
    assert sorted(map(sum, both)) == [64, 64] and imbalance([both]) == 1
    (five,) = shares_of(lengths, 5, batch=4, max_tokens=64)
    assert len(five) == 5 and [] in five
    assert imbalance([five]) == pytest.approx(64 * 5 / 128)


def test_constants_are_found_again() -> None:
    steps = [[[tokens]] for tokens in (100, 200, 400)]
    found = fit(steps, [0.2 + 1e-3 * step[0][0] for step in steps])
    assert (found.token_s, found.window_s) == pytest.approx((1e-3, 0.2))
    assert fit(steps, [1e-3 * step[0][0] - 0.01 for step in steps]).window_s == 0


def test_messages_are_four_bytes_a_trained_parameter() -> None:
    # 28 blocks; q: 1536 -> 1536, v: 1536 -> 256
    assert message_bytes("1.5b", 8, ("q_proj", "v_proj")) == 4 * 28 * 8 * (2 * 1536 + 1536 + 256)


def test_the_model_predicts_what_was_measured() -> None:
    path = REPOSITORY / "benchmarks" / "results" / "scaling.json"
    record = json.loads(Path(path).read_text())
    assert {run["ranks"] for run in record["runs"]} == {2, 4}
    assert all(abs(run["predicted_s"] / run["measured_s"] - 1) < 0.2 for run in record["runs"])
