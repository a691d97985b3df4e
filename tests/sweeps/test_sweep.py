"""A sweep to its end, in parts, after kills: the same table.

The runs are commands within this process where they can be, since a new one takes seconds to import its libraries.
"""

import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mlxmath.errors import InputError, MlxmathError, OtherRunError
from mlxmath.evaluation.samples import save_samples
from mlxmath.runtime.sealed import sealed_json
from mlxmath.sweeps import runs
from mlxmath.sweeps import sweep as module
from mlxmath.sweeps.file import read_sweep
from mlxmath.sweeps.plan import plan_of
from mlxmath.sweeps.results import results_of
from mlxmath.sweeps.runs import TimeUpError
from mlxmath.sweeps.sweep import sweep
from mlxmath.training.trainer import Trainer
from tests.evaluation.make import sample, settings
from tests.helpers import run, start, wait_until

HALVED = """
description = "of | the <b>demo"
[train]
recipe = "debug"
training.validation_split = 5
training.max_steps = 4
training.eval_every = 2
training.save_every = 1
training.schedule = "linear"
data.num_examples = 24
[vary]
training.learning_rate = [1e-9, 1e-2, 1e-6]
[halving]
factor = 2
rungs = 2
"""


class Killed(BaseException):
    """What a process does not survive."""


ONE = HALVED.partition("[halving]")[0].replace("[1e-9, 1e-2, 1e-6]", "[1e-2]")


def within(arguments: Sequence[str], log: Path, left_s: Callable[[], float]) -> str | None:
    """A run, in this process."""
    if left_s() <= 0:
        raise TimeUpError
    found = run(Path.cwd(), *arguments)
    return found.stderr.splitlines()[-1].removeprefix("error: ") if found.returncode else None


@pytest.fixture
def here(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, in which runs are commands of this process."""
    monkeypatch.chdir(prepared)
    monkeypatch.setattr(runs, "run_command", within)
    monkeypatch.setattr(module, "run_command", within)
    (prepared / "sweep.toml").write_text(HALVED)
    (prepared / "one.toml").write_text(ONE)
    return prepared


@pytest.fixture(scope="module")
def whole(debug_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What a sweep found that nothing disturbed, and where."""
    folder = tmp_path_factory.mktemp("whole")
    for name in ("mlx_model", "cache"):
        shutil.copytree(debug_run / name, folder / name)
    (folder / "sweep.toml").write_text(HALVED)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setattr(runs, "run_command", within)
        return sweep(Path("sweep.toml"), Path("out")), folder


def table(found: dict[str, Any]) -> dict[str, Any]:
    """All but what it took."""
    copy: dict[str, Any] = json.loads(json.dumps(found))
    for one in copy["configurations"]:
        for each in one["runs"]:
            del each["cost"]
    return copy


def test_halving_ends_with_the_best_and_tells_of_all(whole: tuple[dict[str, Any], Path]) -> None:
    found, here = whole
    first, second, third = found["configurations"]
    assert found["complete"] and found["best"] == 2 and second["is_whole"]
    assert (first["steps"], second["steps"], third["steps"]) == (2, 4, 4), "of three the best two go on"
    assert second["held_out"] < third["held_out"] < first["held_out"] + 1e-6
    assert third["difference"]["estimate"] == pytest.approx(third["held_out"] - second["held_out"], rel=1e-4)
    assert third["difference"]["low"] < third["difference"]["estimate"] < third["difference"]["high"]
    assert all("mlxmath train --recipe debug" in one["runs"][0]["commands"][0] for one in found["configurations"])
    page, text = (here / "out" / name for name in ("report.html", "report.md"))
    assert "of | the &lt;b&gt;demo" in page.read_text() and "of \\| the &lt;b>demo" in text.read_text()
    assert "learning_rate=0.01 (best)" in text.read_text() and "3 → 2 configurations" in text.read_text()
    assert (here / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    rates = [
        json.loads(line) for line in (here / second["runs"][0]["folder"] / "events.jsonl").read_text().splitlines()
    ]
    assert [one["learning_rate"] for one in rates if one["event"] == "step"] == pytest.approx(
        [1e-2, 7.5e-3, 5e-3, 2.5e-3]
    )


def test_a_folder_that_is_no_sweeps_is_not_touched(here: Path) -> None:
    mine = here / "mine"
    (mine / "adapters").mkdir(parents=True)
    (mine / "adapters" / "weights").write_text("months of work")
    (here / "other").mkdir()
    (here / "other" / "train.toml").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"holds adapters and no plan\.json"):
            sweep(Path("one.toml"), mine, overwrite=overwrite)
        with pytest.raises(InputError, match=r"holds train\.toml and no plan\.json"):
            sweep(Path("one.toml"), here / "other", overwrite=overwrite)
    assert (mine / "adapters" / "weights").exists() and (here / "other" / "train.toml").read_text() == "mine"


@pytest.mark.parametrize("when", ["within", "after"])
def test_killed_at_any_run_it_ends_with_the_same_table(
    here: Path, whole: tuple[dict[str, Any], Path], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    plain, measure = runs.run_command, Trainer.validate_if_due

    def die(trainer: Trainer) -> None:
        """A step and, from the second on, a measurement are done, and no checkpoint of them is there."""
        if trainer.position.step > 1:
            measure(trainer)
            raise Killed
        measure(trainer)

    def killed(arguments: Sequence[str], log: Path, left_s: Callable[[], float]) -> str | None:
        done.append(arguments)
        if len(done) != at:
            return plain(arguments, log, left_s)
        if when == "within":
            with monkeypatch.context() as patched:
                patched.setattr(Trainer, "validate_if_due", die)
                plain(arguments, log, left_s)
        elif when == "after":
            plain(arguments, log, left_s)
        raise Killed

    monkeypatch.setattr(runs, "run_command", killed)
    done: list[Sequence[str]] = []
    for run_killed in (2, 3):
        at = run_killed
        done.clear()
        with pytest.raises(Killed):
            sweep(Path("sweep.toml"), Path("out"))
    at = 0
    assert table(sweep(Path("sweep.toml"), Path("out"))) == table(whole[0])
    done.clear()
    again = sweep(Path("sweep.toml"), Path("out"))
    assert table(again) == table(whole[0]) and not done, "nothing is left to do"


def test_a_deadline_ends_it_and_the_next_call_goes_on(here: Path) -> None:
    found = sweep(Path("one.toml"), Path("out"), deadline_hours=1e-9)
    assert not found["complete"] and found["best"] is None and found["configurations"][0]["steps"] == 0
    assert sweep(Path("one.toml"), Path("out"))["complete"]


def test_a_run_that_fails_is_named_and_the_others_go_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "few.toml").write_text(ONE + 'data.dataset = ["demo", "gone.jsonl"]\n')
    found = sweep(Path("few.toml"), Path("out"))
    first, second = found["configurations"]
    assert first["is_whole"] and found["best"] == 1 and not found["complete"]
    assert "gone.jsonl" in second["runs"][0]["error"] and "gone.jsonl" in capsys.readouterr().err
    assert "gone.jsonl" in (here / "out" / "report.md").read_text()
    (here / "none.toml").write_text((here / "few.toml").read_text().replace('"demo", ', ""))
    with pytest.raises(MlxmathError, match=r"no run of the sweep came to anything.*gone\.jsonl"):
        sweep(Path("none.toml"), Path("none"))


def test_a_folder_belongs_to_one_sweep(here: Path) -> None:
    sweep(Path("one.toml"), Path("out"))
    (here / "one.toml").write_text(ONE.replace("max_steps = 4", "max_steps = 3"))
    with pytest.raises(OtherRunError, match=r"out holds another sweep \(settings differ\)"):
        sweep(Path("one.toml"), Path("out"))
    assert sweep(Path("one.toml"), Path("out"), overwrite=True)["configurations"][0]["steps"] == 3
    with module.locked(Path("out"), "--folder", "mlxmath sweep"), pytest.raises(InputError, match="in use by"):
        sweep(Path("one.toml"), Path("out"))


def test_killed_in_its_process_it_waits_for_the_run_that_it_left(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL leaves the run's process; SIGTERM ends it, saved."""
    (here / "long.toml").write_text(ONE.replace("steps = 4", "steps = 12"))
    events = here / "out" / "adapters" / "01-learning-rate-0.01-seed-0" / "events.jsonl"
    process = start(here, "sweep", "long.toml", "--folder", "out", log=here / "log")
    wait_until(lambda: events.exists() and '"event": "step"' in events.read_text(), "no step was done")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    found = sweep(Path("long.toml"), Path("out"))
    assert found["complete"] and found["configurations"][0]["steps"] == 12
    lines = [json.loads(line)["event"] for line in events.read_text().splitlines()]
    assert "resume" not in lines, "the process that was left went on to its end"


@pytest.mark.slow
def test_told_to_end_it_ends_its_run_saved(here: Path) -> None:
    (here / "long.toml").write_text(ONE.replace("steps = 4", "steps = 9000"))
    folder = here / "out" / "adapters" / "01-learning-rate-0.01-seed-0"
    events = folder / "events.jsonl"
    process = start(here, "sweep", "long.toml", "--folder", "out", log=here / "log")
    wait_until(lambda: events.exists() and '"event": "step"' in events.read_text(), "no step was done")
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "stopped" and record["steps"] >= 1
    measured = [one["step"] for one in map(json.loads, events.read_text().splitlines()) if one["event"] == "validation"]
    assert all(step % 2 == 0 for step in measured), "it is measured where others are, and not once more"


EVALUATE = """
[evaluate]
evaluation.benchmark = ["demo"]
evaluation.limit = 6
evaluation.max_tokens = 4
"""
EVALUATED = f'{ONE.partition("[vary]")[0]}{EVALUATE}[vary]\ndata.template = ["tutor", "demo-base"]\n'


def test_runs_that_were_not_asked_have_no_answers(tmp_path: Path) -> None:
    """Halving leaves one of three, whose adapter the evaluation calls "tuned"; it is asked with formulas, too."""
    (tmp_path / "sweep.toml").write_text(HALVED + EVALUATE)
    plan = plan_of(read_sweep(tmp_path / "sweep.toml"), tmp_path / "out")
    asked = settings("base", "tuned", "tuned + formulas")
    for one in asked["contestants"][1:]:
        one["adapter_folder"] = str(plan.configurations[1].runs[0].folder)
    folder = tmp_path / "out" / "evaluation"
    sealed_json(folder / "settings.json", asked)
    sealed_json(folder / "results.json", {})
    right = {"base": 0, "tuned": 3, "tuned + formulas": 4}
    save_samples(folder / "samples.jsonl", [
        sample(label, i, "1" if i < count else "2") for label, count in right.items() for i in range(4)
    ])  # fmt: skip
    found = results_of(plan, {}, is_complete=True)
    accuracies = [one["accuracy"] and one["accuracy"]["estimate"] for one in found["configurations"]]
    assert accuracies == [None, 0.75, None] and found["best"] == 2
    assert not any(one["answers_difference"] for one in found["configurations"])


def test_models_in_other_templates_are_ranked_by_their_answers(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their held-out rows are others. An evaluation that failed is made by the next call, which trains nothing."""
    (here / "evaluated.toml").write_text(EVALUATED)
    commands: list[str] = []

    def failing(arguments: Sequence[str], log: Path, left_s: Callable[[], float]) -> str | None:
        commands.append(arguments[0])
        return "no" if arguments[0] == "evaluate" else within(arguments, log, left_s)

    monkeypatch.setattr(runs, "run_command", failing)
    monkeypatch.setattr(module, "run_command", failing)
    with pytest.raises(MlxmathError, match=r"the evaluation failed: no; .*evaluation\.log"):
        sweep(Path("evaluated.toml"), Path("out"))
    assert commands == ["train", "train", "evaluate"] and (here / "out" / "report.html").is_file()
    monkeypatch.setattr(module, "run_command", within)
    found = sweep(Path("evaluated.toml"), Path("out"))
    assert commands == ["train", "train", "evaluate"]
    assert found["complete"] and found["ranked_by"] == "accuracy of the evaluation"
    first, second = found["configurations"]
    assert second["difference"] is None and "rows are others" in (here / "out" / "report.md").read_text()
    for one in (first, second):
        told = json.loads((here / "out" / "evaluation" / "results.json").read_text())["contestants"]
        name = Path(one["runs"][0]["folder"]).name
        accuracy = told[name]["accuracy"]
        assert one["accuracy"] == {"estimate": accuracy["value"], "low": accuracy["low"], "high": accuracy["high"]}
    assert second["answers_difference"]["estimate"] == pytest.approx(
        second["accuracy"]["estimate"] - first["accuracy"]["estimate"]
    )
