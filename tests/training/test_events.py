"""The log, the progress line and the curves, on short, long, resumed and unlucky runs."""

import errno
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlxmath.backends.base import MemoryStats
from mlxmath.training import events
from mlxmath.training.curves import plot_loss
from mlxmath.training.deadline import Deadline
from mlxmath.training.events import EventLog, ProgressBar, read_events
from mlxmath.training.fit import Position, StepReport
from mlxmath.training.validation import Best, Measurement


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


def test_the_log_is_never_read_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    monkeypatch.setattr(events, "read_events", lambda _: pytest.fail("the log was read"))
    for step in range(100):
        log.on_step(step_report(1 + step))
    assert log._waiting == []


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


class FakeBackend:
    """Knows nothing but a peak."""

    def memory(self) -> MemoryStats:
        return MemoryStats(0, 2_000_000, 0)


def test_the_line_shows_the_last_validation_and_each_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar(20, 0, Deadline(1e9), FakeBackend(), interval_s=0.0)  # type: ignore[arg-type]
    bar.on_step(step_report(1))
    bar.on_validation(measurement(1, 0.5, Best(1, 0.5)))
    bar.on_step(step_report(2))
    bar.on_validation(measurement(2, 0.625, Best(1, 0.5)))
    bar.on_validation(measurement(3, math.nan, None))
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("step 1/20: loss 1.0000, ") and "validation" not in lines[0]
    assert lines[1] == "step 1/20: validation loss 0.5000 on 591 tokens in 0.2s, the lowest so far"
    assert lines[2].startswith("step 2/20: loss 1.0000, validation 0.5000, ")
    assert lines[3] == "step 2/20: validation loss 0.6250 on 591 tokens in 0.2s; the lowest: 0.5000 at step 1"
    assert lines[4] == "step 3/20: validation loss nan on 591 tokens in 0.2s"


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
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *args, **more: (drawn.append(figure), save(figure, *args, **more))
    )
    log = EventLog(tmp_path / "events.jsonl")
    for step, loss in enumerate([3.0, math.nan, 1.0], start=1):
        log.on_step(step_report(step, loss))
        log.on_validation(measurement(step, loss + 1, None))
    plot_loss(tmp_path / "events.jsonl", tmp_path / "loss.png")
    lines = {line.get_label(): line.get_xydata().tolist() for line in drawn[0].axes[0].lines}
    assert lines["each step"] == [[1, 3], [3, 1]]
    assert lines["held-out rows"] == [[1, 4], [3, 2]]
    assert lines["lowest: 2.0000 at step 3"] == [[3, 2]]
