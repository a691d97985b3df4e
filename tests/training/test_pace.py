"""How many steps the deadline allows, on clocks that pass only when told."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlxmath.config.training import TrainingConfig
from mlxmath.runtime.ranks import Ranks
from mlxmath.training.checkpoint import Checkpoint, Position
from mlxmath.training.deadline import Deadline
from mlxmath.training.schedule import MARKS, Pace, learning_rates
from tests.loop import Clock

CONFIG = TrainingConfig(learning_rate=1.0, schedule="cosine", warmup_ratio=0.05)


class Run:
    """Steps of a run, each with the rate that it was taken at."""

    def __init__(
        self, total: int, limit_s: float, *, first: int = 0, config: TrainingConfig = CONFIG, ranks: Ranks | None = None
    ) -> None:
        self.clock = Clock()
        self.deadline = Deadline(limit_s, self.clock)
        self.told: list[tuple[int, int]] = []
        self.pace = Pace(
            config, total, Position(step=first), self.deadline, ranks or Ranks(),
            listener=lambda *told: self.told.append(told),
        )  # fmt: skip
        self.total, self.step = total, first
        self.rates: dict[int, float] = {}
        self.saved: dict[int, dict[str, Any]] = {}

    def go(self, step_s: Any, *, until: int = 10**9) -> None:
        """Until the deadline or the last step, a checkpoint wherever one is asked for."""
        while self.step < min(self.total, until) and not self.deadline.reached():
            self.rates[self.step] = self.pace.rate(self.step)
            took = step_s(self.step) if callable(step_s) else step_s
            self.clock.now += took
            self.deadline.note_step(took)
            self.step += 1
            self.pace.on_step(self.step)
            if self.pace.is_checkpoint(self.step) or self.step % 50 == 0:
                self.saved[self.step] = json.loads(json.dumps(self.pace.state()))


@pytest.mark.parametrize("step_s", [0.1, 0.9])
def test_where_the_planned_steps_fit_no_rate_depends_on_time(step_s: float) -> None:
    run = Run(1000, 1000.0)
    run.pace.begin()
    run.go(step_s)
    planned = learning_rates(CONFIG, 1000)
    assert run.rates == {step: planned(step) for step in range(1000)}
    assert not run.told and not any(run.saved.values()) and not run.pace.is_limited
    run.pace.restore(Checkpoint(Path(), Position(step=5), {}, {}))  # such a checkpoint holds nothing of it
    assert run.pace.state() == {} and run.pace.expected_steps == 1000


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(
    "step_s",
    [
        1.0,
        lambda step: 20.0 if step == 0 else 1.0,  # graphs are compiled
        lambda step: 1.0 + 0.5 * (step % 2),
        lambda step: 1.0 if step < 300 else 1.6,  # the machine becomes busy
        lambda step: 1.6 if step < 200 else 1.0,
    ],
)
def test_a_falling_rate_is_near_its_floor_at_the_deadline(schedule: str, step_s: Any) -> None:
    config = CONFIG.model_copy(update={"schedule": schedule, "min_learning_rate_ratio": 0.1})
    run = Run(27_000, 600.0, config=config)
    run.pace.begin()
    run.go(step_s)
    assert run.pace.is_limited and 300 < run.step < 620
    rates = list(run.rates.values())
    assert rates[-1] == pytest.approx(0.1, abs=0.02 if schedule == "linear" else 0.002)
    assert sum(rate == 0.1 for rate in rates) <= 0.02 * run.step, "no steps are taken in vain"
    peak = rates.index(max(rates))
    assert rates[peak] == 1.0 and 10 <= peak <= 50, "a twentieth of the steps that fit"
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert max(a - b for a, b in zip(rates[peak:], rates[peak + 1 :], strict=False)) < 0.02
    assert len(run.told) <= 5 + MARKS and all(step in run.saved for step, _ in run.told)


def test_the_start_says_that_the_deadline_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(27_000, 600.0)
    run.pace.begin()
    run.go(1.0, until=30)
    said = capsys.readouterr().err
    assert said.count("the deadline comes first: at 1.0s a step, about ") == 1 and "of 27,000 planned steps" in said
    (first, _), (_, expected), *_ = run.told
    assert first == 8 and expected == pytest.approx(600, abs=5)
    assert run.pace.summary() == {"planned_steps": 27_000, "expected_steps": expected, "deadline_first": True}


def test_killed_and_resumed_repeats_the_rates_up_to_the_next_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    straight = Run(27_000, 600.0)
    straight.pace.begin()
    straight.go(1.0)
    changes = [step for step, _ in straight.told]
    for step, state in straight.saved.items():
        if not state:
            continue
        until = min([change for change in changes if change > step], default=straight.step)
        resumed = Run(27_000, 600.0, first=step)
        resumed.pace.restore(Checkpoint(Path(), Position(step=step), {}, state))
        resumed.pace.begin()
        resumed.go(0.5, until=min(until, step + 80))  # on a machine twice as fast
        assert resumed.rates == {s: straight.rates[s] for s in resumed.rates} and resumed.rates
    assert "the deadline comes first" in capsys.readouterr().err


def resume(run: Run, limit_s: float) -> Run:
    """Another process that goes on from the end of a run, with a deadline of its own."""
    state = json.loads(json.dumps(run.pace.state()))
    resumed = Run(run.total, limit_s, first=run.step)
    resumed.pace.restore(Checkpoint(Path(), Position(step=run.step), {}, state))
    resumed.pace.begin()
    return resumed


@pytest.mark.parametrize("begun", [20, 200])
def test_a_run_that_goes_on_with_fewer_steps_ends_at_its_floor(begun: int) -> None:
    first = Run(27_000, 600.0)
    first.pace.begin()
    first.go(1.0, until=begun)
    assert first.pace.is_limited and first.pace.expected_steps > 500
    state = json.loads(json.dumps(first.pace.state()))
    second = Run(300, 600.0, first=begun)
    second.pace.restore(Checkpoint(Path(), Position(step=begun), {}, state))
    second.pace.begin()
    second.go(1.0)
    assert second.step == 300 == second.pace.expected_steps and second.rates[299] < 0.001
    assert begun == 20 or abs(second.rates[begun] - first.rates[begun - 1]) < 0.01


@pytest.mark.parametrize("late_s", [0.0, 1.2])
def test_a_run_that_goes_on_after_its_deadline_has_a_schedule_again(late_s: float) -> None:
    first = Run(27_000, 600.0)
    first.pace.begin()
    first.go(lambda step: 1.0 + late_s * (step > 570))  # its last steps may be slow, and the schedule not quite over
    assert first.pace.is_limited and first.rates[first.step - 1] < 0.01
    second = resume(first, 600.0)
    second.go(1.0)
    rates = [second.rates[step] for step in range(first.step + 30, second.step)]
    assert max(rates) > 0.3, "learned at half the way of both together"
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.01
    third = resume(second, 60.0)
    third.go(1.0)
    assert max(third.rates.values()) > 0.005 and third.rates[third.step - 1] < 0.002


def test_a_schedule_that_ends_because_the_first_steps_were_slow_is_laid_again() -> None:
    run = Run(270_000, 6000.0)
    run.pace.begin()
    run.go(lambda step: 120.0 if step < 9 else 1.0)
    idle = sum(rate < 1e-3 for rate in run.rates.values())
    assert idle < 0.05 * run.step


@pytest.mark.parametrize("paused_at", [5, 40, 499])
def test_a_process_that_was_stopped_for_a_while_keeps_its_schedule(paused_at: int) -> None:
    run = Run(1000, 6000.0)
    run.pace.begin()
    run.go(lambda step: 2700.0 if step == paused_at else 1.0)
    planned = learning_rates(CONFIG, 1000)
    assert not run.told and run.rates == {step: planned(step) for step in range(1000)}


def test_validations_are_part_of_the_speed() -> None:
    run = Run(27_000, 6000.0)
    run.pace.begin()
    run.deadline.note_validation(60.0)
    run.go(lambda step: 61.0 if step % 100 == 99 else 1.0)
    assert run.pace.expected_steps == pytest.approx(6000 / 1.6, rel=0.05)
    assert run.rates[run.step - 1] < 0.01 and sum(rate == 0 for rate in run.rates.values()) < 0.02 * run.step


def test_what_is_before_the_first_step_is_not_part_of_the_speed() -> None:
    run = Run(500, 600.0)
    run.clock.now = 60.0  # the base was measured
    run.pace.begin()
    run.go(1.0)
    assert not run.pace.is_limited and run.step == 500


class Second(Ranks):
    """A rank whose clock is not asked: it learns rank 0's estimate."""

    first = False  # type: ignore[assignment]

    def __init__(self, estimates: dict[str, Any]) -> None:
        super().__init__()
        self.estimates = estimates

    def any(self, name: str, what: bool) -> bool:
        assert not what
        return self.estimates["due"]

    def gather(self, name: str, value: Any) -> list[Any]:
        return [self.estimates["values"], value]


def test_all_ranks_take_the_first_ones_estimate() -> None:
    estimates = {"due": False, "values": [1.0, 500.0, 0]}
    run = Run(27_000, 600.0, ranks=Second(estimates))
    run.pace.begin()
    run.go(30.0, until=9)  # its own clock says something else
    assert not run.pace.is_limited
    estimates["due"] = True
    run.go(30.0, until=10)
    assert run.pace.is_limited and run.pace.expected_steps == 510 and run.pace.is_checkpoint(10) and not run.told


def test_marks_are_spread_over_the_deadline() -> None:
    run = Run(599, 600.0, config=CONFIG.model_copy(update={"schedule": "constant"}))
    run.pace.begin()
    marks = []
    while run.step < 590:
        run.go(1.0, until=run.step + 1)
        marks += [run.step] if run.pace.is_mark(run.step) else []
    assert marks == pytest.approx([600 / 7 * n for n in range(1, 7)], abs=2)
