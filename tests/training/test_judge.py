"""`--judge` and `--validation-metric answers`: what a run says of itself at its end, and by what it chooses."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlxmath.api import sft
from mlxmath.data.dedup import occurring
from mlxmath.evaluation.benchmarks import Item, drawn
from mlxmath.training.absolute import absolute_exam
from tests.helpers import REPOSITORY, Finished, adapters, events, json_lines, run, succeed

PROBLEMS = REPOSITORY / "mlxmath" / "demo" / "problems"


def rows(name: str, count: int, start: int = 0) -> list[dict]:
    return json_lines(PROBLEMS / f"{name}.jsonl")[start : start + count]


def write(path: Path, problems: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in problems))
    return path


def train(folder: Path, *arguments: str) -> Finished:
    return succeed(folder, "train", "--debug", *arguments)


def test_problems_of_the_training_data_are_found_by_their_words_or_by_13_of_them_in_a_row() -> None:
    long = "Kate has nine sets with five apples in each and gives two of them to Omar today"
    data = iter(["What is 12 + 7?", long, *(f"Filler {i}" for i in range(5000))])
    asked = ["what is 12+7", f"Once {long.lower()} again", "What is 12 + 8?", "Kate has nine sets with five apples"]
    assert occurring(asked, data).tolist() == [True, True, False, False]
    assert occurring(asked, []).tolist() == [False] * 4


def test_problems_are_drawn_by_seed_and_more_keep_the_fewer() -> None:
    items = [Item("b", f"b/{i}", "q", "1") for i in range(100)]
    few, many, others = (drawn(items, *how) for how in ((10,), (40,), (10, 3)))
    assert set(few) < set(many) and len(others) == 10 and others != few and drawn(items, None, 5) == items


def test_a_run_is_judged_on_problems_that_it_has_not_seen(prepared: Path) -> None:
    exam = write(prepared / "exam.jsonl", [*rows("test", 9), *rows("train", 2)])
    told: list[dict[str, Any]] = []
    settings: dict[str, Any] = {
        "recipe": "debug", "judge": f"{exam}:4", "mlx_path": str(prepared / "mlx_model"), "max_steps": 4,
        "cache_dir": str(prepared / "cache"), "adapter_path": str(prepared / "adapters"), "validation_split": 2,
    }  # fmt: skip
    result = sft(callback=told.append, **settings)
    found = result.verdict
    assert found is not None and found["total"] == 4 and found["left_out"] == {"occur in the training data": 2}
    assert found["base"] == "base" and found["other"] == "tuned" and found["adapter"].endswith("/best")
    answers = json_lines(prepared / "adapters" / "judge" / "samples.jsonl")
    asked = {row["problem"] for row in rows("test", 9)}
    assert len(answers) == 8 and {answer["question"] for answer in answers} <= asked
    right = {label: sum(a["correct"] for a in answers if a["contestant"] == label) for label in ("base", "tuned")}
    assert found["fixed"] - found["broken"] == right["tuned"] - right["base"]
    assert json.loads((prepared / "adapters" / "run.json").read_text())["verdict"] == found
    *_, end, event = events(prepared)
    assert end["event"] == "end" and event["event"] == told[-1]["event"] == "verdict" and event["said"] == found["said"]
    assert Path(found["report"]).stat().st_size > 10_000
    # once more, nothing is asked again; another run has its own
    (prepared / "adapters" / "judge" / "report.html").unlink()
    again = sft(**settings, resume=True)
    assert again.verdict == found and json_lines(prepared / "adapters" / "judge" / "samples.jsonl") == answers
    said = train(prepared, "--overwrite", "--max-steps", "1").stderr
    assert "judged" not in said and not (prepared / "adapters" / "judge").exists()


def test_judged_from_where_it_started_and_in_words(prepared: Path) -> None:
    paused = train(prepared, "--adapter-path", "first", "--max-steps", "9", "--pause-at", "2", "--judge", "demo:2")
    assert "not judged, since the run has paused" in paused.stderr and not (prepared / "first" / "judge").exists()
    train(prepared, "--adapter-path", "first", "--max-steps", "9", "--resume")
    said = train(
        prepared, "--init-adapter", "first", "--max-steps", "1", "--learning-rate", "1e-12", "--judge", "demo:2"
    )
    assert "to be judged on 2 of the 200 problems of demo" in said.stderr
    line = next(one for one in said.stderr.splitlines() if one.startswith("judged on 2 problems of demo: "))
    assert "no difference between tuned and start is shown: 0.0 points" in line and "equally on every problem" in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--judge", "gsm8"), "--judge: there is no 'gsm8'"),
        (("--judge", "nowhere.jsonl"), "--judge: nowhere.jsonl does not exist"),
        (("--judge", "demo"), "a reward model gives no answers"),
        (("--judge", "demo:0"), "for example gsm8k:200"),
        (("--judge", "seen.jsonl"), "all 2 problems occur in the training data"),
        (("--validation-metric", "answers"), "needs --validation-split or --validation-dataset"),
        (("--validation-metric", "answers", "--validation-split", "2", "--offload", "on"), "leave --offload"),
    ],
)
def test_bad_input_is_told_before_the_first_step(prepared: Path, arguments: tuple[str, ...], said: str) -> None:
    write(prepared / "seen.jsonl", rows("train", 2))
    name = "reward-model" if "reward" in said else "train"
    write(prepared / "pairs.jsonl", [{"prompt": "1", "chosen": "2", "rejected": "3"}])
    rest = ("--model", "demo", "--dataset", "pairs.jsonl") if name != "train" else ("--debug",)
    refused = run(prepared, name, *rest, *arguments)
    assert refused.returncode == 2 and said in refused.stderr and not (prepared / "adapters" / "run.json").exists()


def test_a_file_keeps_its_number_of_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_exam("gsm8k:200") == "gsm8k:200" and absolute_exam("demo") == "demo"
    assert absolute_exam("a.jsonl:5") == f"{tmp_path}/a.jsonl:5"
    assert absolute_exam("gsm8k=a.jsonl") == f"gsm8k={tmp_path}/a.jsonl"


def test_the_best_adapters_are_those_that_answer_best(prepared: Path) -> None:
    measured = ("--validation-split", "3", "--eval-every", "2", "--max-steps", "4", "--max-seq-len", "256")
    said = train(prepared, *measured, "--validation-metric", "answers").stderr
    found = [event for event in events(prepared) if event["event"] == "validation"]
    assert [event["step"] for event in found] == [0, 2, 4]
    assert all(event["targets"] == 3 and 0 <= event["answers"] <= 1 and event["loss"] > 0 for event in found)
    record = json.loads((prepared / "adapters" / "run.json").read_text())["validation"]
    most = max(event["answers"] for event in found)
    assert record["metric"] == "answers" and record["best"]["answers"] == most and record["held_out"] == 3
    assert [event["best"] for event in found].index(True) == 0 and "the most right answers" in said
    trained = adapters(prepared)
    losses = [event["loss"] for event in found]
    train(prepared, *measured, "--overwrite")  # by loss: the same run, to the last bit
    assert adapters(prepared) == trained
    by_loss = [event["loss"] for event in events(prepared) if event["event"] == "validation"]
    assert by_loss == pytest.approx(losses, rel=1e-6)
