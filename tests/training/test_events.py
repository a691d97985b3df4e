"""The log, the progress line and the curves, on short, long, resumed and unlucky runs."""

import errno
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlxmath.runtime.device import MemoryStats
from mlxmath.training.checkpoint import Position
from mlxmath.training.deadline import Deadline
from mlxmath.training.event_file import read_events
from mlxmath.training.events import EventLog, StepReport
from mlxmath.training.held_out import Best, Measurement
from mlxmath.training.logging import ProgressBar, RunLogger, plot_loss, plot_pairs, plot_rollouts


def step_report(step: int, loss: float = 1.0, applied: bool = True) -> StepReport:
    return StepReport(Position(step=step), loss, 0.5, 1e-3, 100, 60, 0.1, applied=applied)


def measurement(step: int, loss: float, lowest: Best | None) -> Measurement:
    return Measurement(step, 0, loss, 591, 0.25, lowest)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.write("start", step=0, total_steps=3)
    log.on_step(step_report(1))
    log.on_step(step_report(2, math.nan, applied=False))
    log.on_validation(measurement(2, 0.75, Best(2, 0.75)))
    log.on_validation(measurement(3, math.nan, Best(2, 0.75)))
    found = list(read_events(tmp_path / "events.jsonl"))
    assert [(e["event"], e["step"], e.get("loss")) for e in found] == [
        ("start", 0, None), ("step", 1, 1.0), ("step", 2, None), ("validation", 2, 0.75), ("validation", 3, None),
    ]  # fmt: skip
    assert [e["best"] for e in found if e["event"] == "validation"] == [True, False]
    for line in (tmp_path / "events.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_lines_that_are_no_events_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    good = '{"event": "step", "step": 1, "loss": 2.0}'
    path.write_text(
        "\n".join(["5", "[]", '{"step": 1}', '{"event": "step", "step": "x"}', "[" * 100_000, good, '{"ev'])
    )
    assert [event["loss"] for event in read_events(path)] == [2.0]


ODD = [
    {"event": "step", "step": 1, "loss": "x", "smoothed_loss": [1], "kl": {}, "margin": None},
    {"event": "step", "step": 1, "loss": 1e400, "entropy": True, "kl": 10**400},
    {"event": "step", "loss": 1.0, "accuracy": 0.5},
    {"event": "rollout", "step": 1, "rewards": 5, "reward": "high"},
    {"event": "rollout", "step": 1, "rewards": {"a": "b"}},
    {"event": "validation", "step": 1},
    {"event": ["step"], "step": 1},
]


def test_events_of_odd_types_fail_neither_a_resumed_run_nor_its_curves(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in ODD))
    log = EventLog(path, from_step=1)
    log.on_step(step_report(2))
    assert log.smoothed()["loss"] == pytest.approx(1.0)
    for plot in (plot_loss, plot_pairs, plot_rollouts):
        plot(path, tmp_path / "curves.png")
    damaged = path.read_bytes().replace(b'"loss": 1.0, "smoothed', b'"loss": 9.0, "smoothed')
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    assert 2 not in [event.get("step") for event in read_events(path)]


def test_a_resumed_run_drops_what_is_about_to_happen_again(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    for step in range(1, 10):
        log.on_step(step_report(step))
        log.on_validation(measurement(step, 1.0, None))
    with path.open("a") as file:
        file.write('{"event": "step", "step": 3, "lo')  # cut off by a kill
    EventLog(path, from_step=4).write("resume", step=4)
    found = [(event["event"], event["step"]) for event in read_events(path)]
    assert found == [(kind, step) for step in range(1, 5) for kind in ("step", "validation")] + [("resume", 4)]
    EventLog(path)
    assert path.read_text() == ""


def test_what_was_measured_before_the_first_step_outlives_a_resume(tmp_path: Path) -> None:
    """From a checkpoint of step 0: what it has measured is not measured again."""
    path, given = tmp_path / "events.jsonl", (6, Deadline(1e9), FakeBackend())
    watch = RunLogger()
    watch.begin(tmp_path, Position(), *given, resumed=False)  # type: ignore[arg-type]
    watch.validation(measurement(0, 1.0, None))
    watch.step(step_report(1))
    watch = RunLogger()
    watch.begin(tmp_path, Position(), *given, resumed=True)  # type: ignore[arg-type]
    assert [(event["event"], event["step"]) for event in read_events(path)] == [("validation", 0)]
    RunLogger().begin(tmp_path, Position(), *given, resumed=False)  # type: ignore[arg-type]
    assert path.read_text() == ""


def test_a_full_disk_delays_lines_and_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.on_step(step_report(1))
    whole = path.read_bytes()
    open_file = Path.open

    class Full(io.FileIO):
        """Takes ten bytes more."""

        def write(self, data: Any) -> int:
            super().write(bytes(data)[:10])
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode: Full(path, "ab") if mode == "ab" else open_file(path, mode))
        for step in (2, 3, 4):
            log.on_step(step_report(step))
            assert path.read_bytes() == whole
    assert capsys.readouterr().err.count("cannot be written now (No space left on device)") == 1
    log.on_step(step_report(5))
    assert [event["step"] for event in read_events(path)] == [1, 2, 3, 4, 5]
    assert path.read_bytes().startswith(whole)


@pytest.fixture(autouse=True)
def _each_step_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxmath.runtime.console.EVERY_S", 0.0)


class FakeBackend:
    """Knows nothing but a peak."""

    def memory(self) -> MemoryStats:
        return MemoryStats(0, 2_000_000, 0)


def test_the_line_shows_the_last_validation_and_each_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar(20, 0, Deadline(1e9), FakeBackend())  # type: ignore[arg-type]
    bar.on_step(step_report(1), {"loss": 1.5})
    bar.on_validation(measurement(1, 0.5, Best(1, 0.5)))
    bar.on_step(step_report(2), {"loss": 1.25})
    bar.on_validation(measurement(2, 0.625, Best(1, 0.5)))
    bar.on_validation(measurement(3, math.nan, None))
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("step 1/20: loss 1.0000, smoothed loss 1.5000, ") and "validation" not in lines[0]
    assert lines[1] == "step 1/20: validation loss 0.5000 on 591 tokens in 0.2s, the lowest so far"
    assert lines[2].startswith("step 2/20: loss 1.0000, smoothed loss 1.2500, validation 0.5000, ")
    assert lines[3] == "step 2/20: validation loss 0.6250 on 591 tokens in 0.2s; the lowest: 0.5000 at step 1"
    assert lines[4] == "step 3/20: validation loss nan on 591 tokens in 0.2s"


def test_the_line_tells_the_time_left_at_the_pace_of_the_steps(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    bar = ProgressBar(20, 10, Deadline(1000.0, lambda: now[0]), FakeBackend())  # type: ignore[arg-type]
    bar.on_validation(measurement(10, 0.5, None))
    for step in (11, 12):
        now[0] = 100.0 + 5 * (step - 11)  # the base's validation took a hundred seconds
        bar.on_step(replace(step_report(step), seconds=5.0), {"loss": 1.0})
    lines = capsys.readouterr().err.splitlines()
    assert "20 tok/s" in lines[2] and "elapsed 1m 45s, deadline in 14m 55s, 40.0s left" in lines[2]
    now[0] = 990.0
    bar.on_step(step_report(13), {"loss": 1.0})
    assert "deadline in 10.0s, 10.0s left" in capsys.readouterr().err


def by_hand(losses: list[float]) -> list[float]:
    """Of all values so far, each 0.9 times as heavy as the next one, the mean."""
    found = []
    for n in range(1, len(losses) + 1):
        weights = [0.9 ** (n - 1 - i) for i in range(n)]
        found.append(sum(w * v for w, v in zip(weights, losses, strict=False)) / sum(weights))
    return found


def test_one_smoothed_loss_everywhere_and_over_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = [3.0, 1.0, 2.0, 0.5, 0.25, 4.0]
    path = tmp_path / "events.jsonl"
    watch = RunLogger()
    watch.begin(tmp_path, Position(), 6, Deadline(1e9), FakeBackend(), resumed=False)  # type: ignore[arg-type]
    for step in (1, 2, 3, 4):
        watch.step(step_report(step, losses[step - 1]))
    watch.step(step_report(5, math.nan, applied=False))
    watch = RunLogger()
    watch.begin(tmp_path, Position(3), 6, Deadline(1e9), FakeBackend(), resumed=True)  # type: ignore[arg-type]
    for step in (4, 5, 6):
        watch.step(step_report(step, losses[step - 1]))
    steps = [event for event in read_events(path) if event["event"] == "step"]
    assert [event["loss"] for event in steps] == losses
    assert [event["smoothed_loss"] for event in steps] == pytest.approx(by_hand(losses), rel=1e-12)
    shown = re.findall(r"step (\d)/6: loss (\S+), smoothed loss (\S+),", capsys.readouterr().err)
    assert [(int(s), float(a), float(b)) for s, a, b in shown[-3:]] == [
        (event["step"], round(event["loss"], 4), round(event["smoothed_loss"], 4)) for event in steps[-3:]
    ]
    lines = drawn_lines(monkeypatch, lambda: plot_loss(path, tmp_path / "loss.png"))
    assert [y for _, y in lines["smoothed"]] == [event["smoothed_loss"] for event in steps]
    assert [y for _, y in lines["each step"]] == losses


def drawn_lines(monkeypatch: pytest.MonkeyPatch, draw: Any, marked: bool = False) -> dict[str, Any]:
    """The curves of all panels by name: their points, or whether each point is marked."""
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
        draw()
    lines = [line for axes in drawn[0].axes for line in axes.lines]
    return {
        str(line.get_label()): line.get_marker() not in (None, "None", "") if marked else line.get_xydata().tolist()
        for line in lines
    }


def test_a_single_step_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "events.jsonl", 1, every=1)
    lines = drawn_lines(monkeypatch, lambda: plot_loss(path, tmp_path / "loss.png"), marked=True)
    assert lines.keys() >= {"each step", "smoothed", "held-out rows"} and all(lines.values())
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"event": "step", "step": 1, "loss": 0.7, "margin": 0.1}) + "\n")
    lines = drawn_lines(monkeypatch, lambda: plot_pairs(pairs, tmp_path / "curves.png"), marked=True)
    assert lines.keys() >= {"loss", "margin"} and all(lines.values())
    many = written(tmp_path / "many.jsonl", 400)
    lines = drawn_lines(monkeypatch, lambda: plot_loss(many, tmp_path / "loss.png"), marked=True)
    assert not any(lines.values())


def test_rollouts_without_a_step_lie_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)

    def rollout(number: int, step: int) -> None:
        log.write(
            "rollout", step=step + 1, rollout=number, reward=0.1 * number, rewards={"mine": 0.1 * number},
            zero_variance=1.0, truncated=0.0, mean_length=10.0 + number,
        )  # fmt: skip

    def step(number: int) -> None:
        log.write("step", step=number, clipped=0.0, kl=0.01, entropy=1.0 / number)

    log.write("validation", step=0, accuracy=0.25)
    for number in range(3):
        rollout(number, 0)
    step(1)
    step(2)
    rollout(3, 2)
    step(3)
    log.write("validation", step=3, accuracy=0.5)
    lines = drawn_lines(monkeypatch, lambda: plot_rollouts(path, tmp_path / "curves.png"))
    assert lines["mean length"] == [[1, 10], [2, 11], [3, 12], [4, 13]]
    assert lines["reward"] == [[1, 0.0], [2, 0.1], [3, 0.2], [4, pytest.approx(0.3)]]
    assert [x for x, _ in lines["entropy"]] == [3, 3.5, 4]
    assert lines["held-out accuracy"] == [[0, 0.25], [4, 0.5]]


def written(path: Path, num_steps: int, every: int = 0) -> Path:
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for step in range(1, num_steps + 1):
            loss = 2 * math.exp(-step / num_steps) + 0.3 * rng.random()
            file.write(json.dumps({"event": "step", "step": step, "loss": loss, "learning_rate": 1e-3}) + "\n")
            if every and step % every == 0:
                file.write(json.dumps({"event": "validation", "step": step, "loss": loss}) + "\n")
    return path


@pytest.mark.parametrize(("num_steps", "every"), [(0, 0), (1, 1), (7, 2), (999, 100), (5000, 10)])
def test_curves_of_any_length(tmp_path: Path, num_steps: int, every: int) -> None:
    plot_loss(written(tmp_path / "events.jsonl", num_steps, every), tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_validation_is_a_second_curve_and_bad_losses_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    for step, loss in enumerate([3.0, math.nan, 1.0], start=1):
        log.on_step(step_report(step, loss))
        log.on_validation(measurement(step, loss + 1, None))
    lines = drawn_lines(monkeypatch, lambda: plot_loss(tmp_path / "events.jsonl", tmp_path / "loss.png"))
    assert lines["each step"] == [[1, 3], [3, 1]]
    assert lines["held-out rows"] == [[1, 4], [3, 2]]
    assert lines["lowest: 2.0000 at step 3"] == [[3, 2]]
