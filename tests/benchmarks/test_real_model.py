"""The run of a real model: stages in order, ended by the clock, gone on with."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import real_model
from benchmarks.real_model import STAGES, TimeOverError, Work


@pytest.fixture
def work(tmp_path: Path) -> Work:
    data = tmp_path / "data" / "gsm8k"
    data.mkdir(parents=True)
    for split, count in (("train", 600), ("test", 3)):
        rows = [{"question": f"{split} {i}", "answer": f"#### {i}"} for i in range(count)]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Work(tmp_path / "work", data.parent, tmp_path / "out.json", hours=1.0)


def contestants(**accuracies: float) -> dict[str, Any]:
    found = {name: {"accuracy": {"value": value, "low": 0.0, "high": 1.0}} for name, value in accuracies.items()}
    return {"contestants": found}


def test_held_out_problems_are_none_of_the_trained(work: Work) -> None:
    found = real_model.split_data(work)
    parts = [
        {json.loads(line)["question"] for line in work.file(f"{name}.jsonl").read_text().splitlines()}
        for name in ("train", "held_out", "test")
    ]
    assert [len(part) for part in parts] == [100, 500, 3] == [found[name] for name in ("train", "held_out", "test")]
    assert len(set.union(*parts)) == 603
    assert all(question.startswith("test") for question in parts[2])


def test_the_earlier_of_equals_is_chosen() -> None:
    found = contestants(base=0.9, sft=0.2, own=0.3, grpo=0.3)
    assert real_model.best(found, ("sft", "own", "grpo")) == "own"


def test_no_stage_is_asked_the_held_out_problems_twice(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def evaluation(name: str, benchmarks: str, *options: str) -> dict[str, Any]:
        assert benchmarks == "held_out.jsonl"
        adapters = [each for each in options if not each.startswith("--")]
        asked.extend([*adapters, *["base"] * ("--compare" in options)])
        several = contestants(base=0.1, sft=0.2, own=0.3) | {"num_problems": 500, "comparisons": ["base to sft"]}
        return several if len(adapters) > 1 else contestants(tuned=0.4)

    monkeypatch.setattr(work, "evaluation", evaluation)
    monkeypatch.setattr(work, "adapter", lambda *_, **settings: {"settings": settings})
    assert real_model.grpo(work)["settings"]["init-adapter"] == "own"
    found = real_model.choose(work)
    assert found["chosen"] == "grpo" and found["num_problems"] == 500 and found["comparisons"]
    assert set(found["contestants"]) == {"base", "sft", "own", "grpo"} == set(asked) and len(asked) == 4


def test_it_goes_on_where_the_time_was_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []

    def stage(name: str) -> Any:
        def run(_: Work) -> dict[str, Any]:
            done.append(name)
            if name == "own" and done.count("own") == 1:
                raise TimeOverError
            return contestants(sft=0.25) if name == "choose" else {}

        return run

    monkeypatch.setattr(real_model, "STAGES", {name: stage(name) for name in STAGES})
    out = tmp_path / "real_model.json"
    monkeypatch.setattr(sys, "argv", ["real_model.py", "--work", str(tmp_path / "work"), "--out", str(out)])
    with pytest.raises(SystemExit, match="stage own"):
        real_model.main()
    assert done == ["fetch", "import", "sft", "own"]
    assert not {"own", "grpo"} & set(json.loads(out.read_text()))
    real_model.main()
    assert done == ["fetch", "import", "sft", "own", *list(STAGES)[3:]]
    assert set(STAGES) <= set(json.loads(out.read_text()))
    assert "choose: sft 25.0%" in capsys.readouterr().out


def test_a_command_is_ended_with_the_time(work: Work) -> None:
    late = Work(work.folder, None, work.out, hours=0.0)
    with pytest.raises(TimeOverError):
        late.mlxmath("doctor")
    short = Work(work.folder, None, work.out, hours=0.5 / 3600)
    with pytest.raises(TimeOverError):
        short.mlxmath("train", "--debug")
    with pytest.raises(SystemExit, match="exit code 2"):
        work.mlxmath("train", "--no-such-option")
