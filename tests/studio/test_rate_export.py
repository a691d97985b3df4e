"""Ratings as rows to train on, which `mlxmath dpo` reads."""

import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from mlxmath.config.schema import SourceConfig
from mlxmath.data.sources import load_problems
from mlxmath.studio.pairs_file import exported
from mlxmath.studio.place import Studio
from mlxmath.studio.ratings import ratings_of
from tests.helpers import json_lines
from tests.studio.answers import rating


def test_the_majority_counts_and_what_is_no_preference_is_counted() -> None:
    given = [
        rating(0, "left"), rating(0, "left", rater="b", is_swapped=False), rating(0, "right", rater="c"),
        rating(1, "left"), rating(1, "right", rater="b"),
        rating(2, "same"), rating(3, "both bad"), rating(4, "left", is_swapped=True), rating(5, "left"),
        rating(5, "same", rater="b"),
    ]  # fmt: skip
    found = exported(given)
    assert [(row["chosen_by"], row["rejected_by"], row["raters"]) for row in found.rows] == [
        ("base", "tuned", "a, b, c"), ("tuned", "base", "a")
    ]  # fmt: skip
    assert found.left_out == {"without a majority": 2, "same": 1, "both bad": 1} and not found.tests
    assert found.rows[0]["prompt"] == "Question 0" and found.rows[0]["chosen"] == "Answer of base to 0."
    labels = exported(given, "labels")
    assert [row["label"] for row in labels.rows] == [True, False, False, False, True, False]
    assert labels.left_out == {"without a majority": 2, "same": 1}


def test_test_problems_of_a_benchmark_carry_a_warning_and_marked_steps_are_kept() -> None:
    marks = {"right_wrong_step": 2, "right_wrong_text": "So 4."}
    given = [
        rating(0, "left", benchmark="gsm8k", **marks), rating(0, "left", rater="b", benchmark="gsm8k", **marks),
        rating(0, "left", rater="c", benchmark="gsm8k", right_wrong_step=1, right_wrong_text="It is."),
        rating(1, "left"),
    ]  # fmt: skip
    found = exported(given)
    labels = exported(given, "labels")
    assert labels.tests == {"gsm8k": 2} and sum(row["warning"] is not None for row in labels.rows) == 2
    assert found.tests == {"gsm8k": 1} and "gsm8k" in found.rows[0]["warning"] and found.rows[1]["warning"] is None
    assert (found.rows[0]["rejected_wrong_step"], found.rows[0]["rejected_wrong_text"]) == (2, "So 4.")
    assert found.rows[0]["chosen_wrong_step"] is None and found.rows[0].keys() == found.rows[1].keys()


@pytest.mark.parametrize(("form", "num", "flags"), [("pairs", 6, ""), ("labels", 14, " --loss-type=kto")])
def test_the_file_is_what_dpo_reads(
    folder: Path, studio: Studio, client: TestClient, form: str, num: int, flags: str
) -> None:
    ratings = ratings_of(studio)
    for number in range(6):
        ratings.add(rating(number, "left" if number % 2 else "right", benchmark="math500", left_wrong_step=1))
    ratings.add(rating(6, "both bad"))
    ratings.add(rating(7, "same"))
    answer = client.post("/rate/export", data={"name": "pairs of Ann.jsonl", "form": form})
    assert answer.status_code == 200 and f"mlxmath dpo{flags} &#39;--dataset=pairs of Ann.jsonl&#39;" in answer.text
    kto = "loss_type=kto&amp;" if flags else ""
    assert f"/new?command=dpo&amp;{kto}dataset=pairs+of+Ann.jsonl" in answer.text
    assert "test problems of math500" in answer.text
    path = folder / "pairs of Ann.jsonl"
    assert client.get("/rate/pairs.jsonl", params={"form": form}).content == path.read_bytes()
    loaded = load_problems(SourceConfig(dataset=str(path)), pairs=True)
    found = list(loaded)
    assert len(found) == num == len(json_lines(path)) and not loaded.skipped
    if form == "pairs":
        assert {one.solution for one in found} == {
            f"Answer of {'base' if number % 2 else 'tuned'} to {number}." for number in range(6)
        }
        assert all(one.rejected and one.question.startswith("Question") for one in found)
    else:
        assert [one.is_desirable for one in found].count(True) == 6


@pytest.mark.parametrize(
    "name",
    ["", "../x.jsonl", "/tmp/x.jsonl", "x.txt", "studio/ratings.jsonl", "studio/x.jsonl", "there.jsonl", "a\0.jsonl",
     "sub/../../x.jsonl", "link/x.jsonl"],
)  # fmt: skip
def test_nothing_is_written_elsewhere_or_over_what_is_there(
    folder: Path, tmp_path: Path, studio: Studio, client: TestClient, name: str
) -> None:
    ratings_of(studio).add(rating(0, "left"))
    (folder / "there.jsonl").write_text("mine\n")
    (folder / "link").symlink_to(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert client.post("/rate/export", data={"name": name}).status_code == 422
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert client.post("/rate/export", data={"name": "new.jsonl", "form": "other"}).status_code == 422
    if name == "there.jsonl":
        assert client.post("/rate/export", data={"name": name, "overwrite": "on"}).status_code == 200
        assert json.loads((folder / name).read_text())["chosen"] == "Answer of base to 0."
