"""The live view and the lines of a GRPO run: the same figures as its events."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from mlxmath.training.checkpoint import Position
from mlxmath.training.deadline import Deadline
from mlxmath.training.events import StepReport
from mlxmath.training.grpo import logging
from mlxmath.training.grpo.logging import RolloutLogger, trend
from mlxmath.training.grpo.loss import METRICS
from mlxmath.training.grpo.report import RolloutReport


def rollout(number: int, completion: str = "3 + 4 = 7\n#### 7", late: int = 0) -> RolloutReport:
    return RolloutReport(
        number, {"correctness": 0.25 + number / 8, "mine:brief": -0.5}, 0.2, 16, 800, 0.375, 0.125, 50.0, late,
        4.0, ("What is [b]3 + 4[/b]?", "7", completion, 0.75), False,
    )  # fmt: skip


def step(number: int) -> StepReport:
    sums = {"clipped": 0.015, "kl": 0.0021, "surprise": 0.644}
    return StepReport(
        Position(number), -0.1, 0.5, 1e-3, 2000, 1000, 2.0, True, tuple(1000 * sums[name] for name in METRICS)
    )


def logger(path: Path, console: Console | None, first: int, deadline: Deadline) -> RolloutLogger:
    """Of a run of 12 steps that goes on after the first ones."""
    log = RolloutLogger()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging, "terminal", lambda: console)
        log.begin(path, Position(first), 12, deadline, None, resumed=True)  # type: ignore[arg-type]
    return log


def watched(path: Path, console: Console | None, late: int = 0) -> None:
    """Two rollouts of an interrupted run's last ten steps, the clock standing at 30 s."""
    clock = iter([0.0] + [30.0] * 100)
    log = logger(path, console, 2, Deadline(1000, lambda: next(clock)))
    with log:
        for number in (2, 3):
            log.rollout(rollout(number, late=late))
            log.step(step(number + 1))


@pytest.fixture
def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=90, height=40, color_system=None)


def last_panel(console: Console) -> str:
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return plain[plain.rindex("╭") :]


def test_the_panel_shows_every_figure(tmp_path: Path, terminal: Console, capsys: pytest.CaptureFixture[str]) -> None:
    watched(tmp_path, terminal)
    panel = last_panel(terminal)
    rows = dict(re.findall(r"│ (\S.*?)  +(\S+(?: tokens(?:/s)?)?)  ", panel))
    assert rows == {
        "reward correctness": "0.625", "reward mine:brief": "-0.500", "reward": "0.200", "groups all the same": "38%",
        "completion length": "50 tokens", "cut off": "12%", "rollout": "200 tokens/s", "clipped": "1.5%",
        "KL": "0.0021", "entropy": "0.644", "gradient": "0.500", "update": "1,000 tokens/s",
    }  # fmt: skip
    assert "4/12 steps, learned, 2m 00s left" in panel  # two steps in 30 s, eight are left
    assert "What is [b]3 + 4[/b]?" in panel and "3 + 4 = 7 #### 7" in panel and "✓ 7, reward 0.75" in panel
    assert "▁█" in panel.split("reward correctness")[1].splitlines()[0]
    assert capsys.readouterr().err == ""


def test_a_wrong_answer_and_what_was_not_graded_in_time(tmp_path: Path, terminal: Console) -> None:
    log = logger(tmp_path, terminal, 0, Deadline(1000))
    with log:
        log.rollout(rollout(0, "#### 8", late=3))
    panel = last_panel(terminal)
    assert "✗ 8 instead of 7, reward 0.75" in panel and re.search(r"not graded in time +3 ", panel)
    assert "0/12 steps, rollout 1 drawn " in panel


def test_a_log_gets_lines_and_both_get_the_same_events(
    tmp_path: Path, terminal: Console, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, console in (("live", terminal), ("log", None)):
        (tmp_path / name).mkdir()
        watched(tmp_path / name, console)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and lines[0].startswith("rollout 3 (step 3/12): reward 0.200 (correctness 0.500, mine:brief")
    assert lines[3] == (
        "step 4/12: 1,000 tok/s, gradient 0.500, clipped 1.5%, KL 0.0021, entropy 0.644, lr 0.001, 2m 00s left"
    )
    live, log = (
        [
            {k: v for k, v in json.loads(line).items() if k not in ("time", "checksum")}
            for line in path.read_text().splitlines()
        ]
        for path in (tmp_path / name / "events.jsonl" for name in ("live", "log"))
    )
    assert live == log and [event["event"] for event in live] == ["rollout", "step"] * 2
    assert live[0]["rewards"] == {"correctness": 0.5, "mine:brief": -0.5} and live[0]["tokens_per_second"] == 200
    assert live[0]["example"] == {
        "question": "What is [b]3 + 4[/b]?", "gold": "7", "completion": "3 + 4 = 7\n#### 7", "reward": 0.75,
        "correct": True, "extracted": "7",
    }  # fmt: skip
    figures = {"tokens_per_second": 1000, "clipped": 0.015, "kl": 0.0021, "entropy": 0.644, "left_s": 120}
    assert {name: live[3][name] for name in figures} == pytest.approx(figures)


@pytest.mark.parametrize(
    ("values", "expected"), [([], ""), ([1.0], ""), ([2.0, 2.0], ""), ([0.0, 1.0, float("nan"), 0.5], "▁█▅")]
)
def test_trend(values: list[float], expected: str) -> None:
    from collections import deque

    assert trend(deque(values)) == expected
