"""Curves out of a log that grows, is begun anew, is damaged or somebody else's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlxmath.runtime.sealed import sealed_line
from mlxmath.studio import curves
from mlxmath.studio.charts import charts
from mlxmath.studio.curves import MOST_SPANS, Log, Table, span_of
from mlxmath.training.events import EventLog
from tests.studio.make import rollout, step, write_events


class Page:
    """What runs.js does with the server's answers."""

    def __init__(self) -> None:
        self.mark, self.tables = "", {}

    def take(self, found: dict[str, Any]) -> None:
        self.mark = found["mark"]
        for kind, part in found["tables"].items():
            table = self.tables.setdefault(kind, {})
            for name, more in (part["over"] | part["values"]).items():
                kept = table.get(name, [])[: part["from"]]
                table[name] = [*kept, *[None] * (part["from"] - len(kept)), *more]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def losses(log: Log) -> list[float]:
    return log.refresh().tables["step"].columns.get("loss", np.empty(0)).tolist()


@pytest.mark.parametrize("count", [0, 1, 1024, 1025, 2048, 2049, 100_000])
def test_peaks_stay_in_what_is_sent(count: int) -> None:
    values = np.random.default_rng(0).normal(size=count)
    if count:
        values[count // 3], values[count // 2] = 50.0, -50.0
    table = Table({name: np.arange(1.0, count + 1) for name in curves.PLACES}, {"loss": values})
    found = table.points(0)
    over, sent = found["over"]["step"], found["values"]["loss"]
    assert len(over) == len(sent) <= 2 * MOST_SPANS and over == sorted(over)
    if count:
        assert (min(sent), max(sent)) == (pytest.approx(values.min(), rel=1e-5), pytest.approx(values.max(), rel=1e-5))
        assert (over[0], over[-1]) == (1, count)
    if count <= 2 * MOST_SPANS:
        assert sent == pytest.approx(values.tolist(), rel=1e-5)


def test_a_page_that_takes_what_is_new_has_what_one_that_takes_everything_has(path: Path) -> None:
    log, page, random, done = Log(path), Page(), np.random.default_rng(0), 0
    for _ in range(25):
        count = int(random.integers(1, 400))
        write_events(path, *(step(n, loss=float(random.normal())) for n in range(done + 1, done + count + 1)))
        done += count
        if done > 2000:
            write_events(path, {"event": "step", "step": done, "late": 1.0})
        page.take(log.points(page.mark))
        whole = Page()
        whole.take(Log(path).points(""))
        assert page.tables == whole.tables
    assert span_of(done) > 2 and len(page.tables["step"]["loss"]) <= 2 * MOST_SPANS
    assert all(not part["over"]["step"] or part["from"] for part in log.points(page.mark)["tables"].values())


def test_a_resumed_run_begins_its_log_anew(path: Path) -> None:
    log, page = Log(path), Page()
    write_events(path, *(step(n) for n in range(1, 9)))
    page.take(log.points(page.mark))
    resumed = EventLog(path, from_step=5)
    page.take(log.points(page.mark))
    assert page.tables["step"]["step"] == [1, 2, 3, 4, 5]
    resumed.write("step", **step(6, loss=7.0))
    page.take(log.points(page.mark))
    assert page.tables["step"]["loss"][4:] == [0.4, 7.0]


@pytest.mark.parametrize("after", [b"", sealed_line(step(1, loss=9.0)), sealed_line(step(1, loss=9.0)) * 40])
def test_a_file_that_is_written_over_in_place_is_read_anew(path: Path, after: bytes) -> None:
    log = Log(path)
    write_events(path, *(step(n) for n in range(1, 9)))
    assert len(losses(log)) == 8
    mark = log.points("")["mark"]
    path.write_bytes(after)
    assert losses(log) == [9.0] * after.count(b"\n")
    assert all(part["from"] == 0 for part in log.points(mark)["tables"].values())
    path.unlink()
    assert losses(log) == []


def test_a_line_counts_once_it_is_whole(path: Path) -> None:
    log, line = Log(path), sealed_line(step(1))
    for end in range(0, len(line), 40):
        path.write_bytes(line[:end])
        assert losses(log) == []
    path.write_bytes(line + b'{"event": "st')
    assert losses(log) == losses(log) == [2.0]


def test_what_is_damaged_or_of_others_is_left_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "_BLOCK", 20_000)
    good = sealed_line(step(1))
    lines = [
        good, good.replace(b"2.0", b"3.0"), b"5\n", b"[]\n", b'{"step": 1}\n', b"[" * 30_000 + b"\n", b"\xff\n", b"\n",
        b'{"event": "step", "step": "x", "loss": 1}\n', b'{"event": ["step"], "step": 1}\n',
        b'{"event": "step", "step": 1' + b"0" * 400 + b"}\n", b'{"event": "step", "step": NaN}\n',
        b'{"event": "step", "loss": 1' + b"0" * 400 + b', "grad_norm": Infinity, "x": true, "tokens": -5}\n',
        json.dumps({"event": "step", "step": 3, **{f"m{i}": i for i in range(500)}}).encode() + b"\n",
        json.dumps({"event": "rollout", "step": 3, "rewards": {"<b>": 1, "y": [1]}, "example": 5}).encode() + b"\n",
        good,
    ]  # fmt: skip
    path.write_bytes(b"".join(lines))
    log = Log(path).refresh()
    table = log.tables["step"]
    assert table.places["step"].tolist() == [1, 0, 3, 1]
    assert table.columns["loss"].tolist()[::3] == [2.0, 2.0] and len(table.columns) == curves.MOST_COLUMNS
    assert (np.diff(table.places["tokens"]) >= 0).all()
    assert log.tables["rollout"].columns["rewards.<b>"].tolist() == [1.0] and not log.samples
    json.dumps([log.points(""), charts(log.tables)], allow_nan=False)
    for mark in ("x", "../..", f"{'0' * 16}.9.9.9", "9" * 5000):
        assert all(part["from"] == 0 for part in log.points(mark)["tables"].values())


def test_places_count_tokens_and_work(path: Path) -> None:
    validation = {"event": "validation", "step": 1, "loss": 1.5, "seconds": 2.0}
    end = {"event": "end", "step": 2, "status": "finished"}
    write_events(path, {"event": "start", "step": 0}, rollout(1), step(1), validation, step(2), end)
    log = Log(path).refresh()
    assert {kind: (t.places["tokens"].tolist(), t.places["seconds"].tolist()) for kind, t in log.tables.items()} == {
        "step": ([100, 200], [1.5, 4.0]), "rollout": ([0], [1.0]), "validation": ([100], [3.5]),
    }  # fmt: skip
    assert log.tables["step"].columns["tokens_per_second"].tolist() == [200, 200]
    assert [event["event"] for event in log.others] == ["start", "end"] and len(log.samples) == 1


def test_curves_that_belong_together_are_drawn_together(path: Path) -> None:
    validation = {"event": "validation", "step": 2, "loss": 0.5, "answers": 0.25, "targets": 9, "best": True}
    write_events(path, step(1, odd_thing=3), step(2, odd_thing=5), step(3, odd_thing=4), validation, rollout(3))
    drawn = {chart["title"]: chart for chart in charts(Log(path).refresh().tables)}
    assert list(drawn) == ["Loss", "Right answers", "Reward", "Length", "Cut off, alike, clipped", "Learning rate",
                           "Gradient", "Speed", "Odd thing"]  # fmt: skip
    assert [(c["kind"], c["column"], c["label"], c["faint"]) for c in drawn["Loss"]["curves"]] == [
        ("step", "loss", "loss", True), ("step", "smoothed_loss", "loss, smoothed", False),
        ("validation", "loss", "loss, held out", False),
    ]  # fmt: skip
    assert [curve["label"] for curve in drawn["Reward"]["curves"]] == ["reward"]  # of one reward the sum is the same
    told = "odd thing: 3 at first, 4 at step 3, lowest 3 at step 1, highest 5 at step 2"
    assert drawn["Odd thing"]["told"] == told
    assert "0.5 at step 2" in drawn["Loss"]["told"]
