"""The prompt at which the bundled base does best: the search is on record, and asking again gives its figure."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlxmath.data.templates import TEMPLATE_FOLDER, get_template, read_definition
from mlxmath.demo.__main__ import BASE_TEMPLATE
from tests.helpers import succeed
from tools.make_demo.find_prompt import SHOT_KINDS, STYLES, TABLE, prompts
from tools.make_demo.word_problems import LEARNED_KINDS

DEMO = Path(__file__).parents[2] / "mlxmath" / "demo"
TRIED: list[dict[str, Any]] = json.loads(TABLE.read_text(encoding="utf-8"))


def train_rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in (DEMO / "problems" / "train.jsonl").read_text(encoding="utf-8").splitlines()]


def test_search_tried_every_style_and_worked_examples_each_also_cut() -> None:
    names = {row["name"] for row in TRIED}
    assert {prompt.name: prompt.definition for prompt in prompts(train_rows())} == {
        row["name"]: {key: row[key] for key in ("prompt", "stop") if key in row} for row in TRIED
    }
    whole = {name for name in names if not name.endswith((", cut", ", one line"))}
    worked = {f"{style}, {shots}" for style in STYLES for shots in SHOT_KINDS if style != "short answer"}
    assert whole == {*STYLES} | worked
    one_line = {f"{name}, one line" for name in worked if not name.startswith("tutor")}
    assert names == whole | {f"{name}, cut" for name in whole} | one_line
    assert all(row["asked"] == 200 for row in TRIED)


def test_winner_is_what_the_demo_asks_the_base_in() -> None:
    best, spec = TRIED[0], read_definition(TEMPLATE_FOLDER / f"{BASE_TEMPLATE}.toml")
    assert best["right"] == max(row["right"] for row in TRIED)
    assert (spec.prompt, list(spec.stop or ())) == (best["prompt"], best.get("stop", []))
    assert best["cut off by the limit"] <= 0.01 * best["asked"]
    assert get_template(BASE_TEMPLATE).stop_strings == tuple(best.get("stop", ()))


def test_base_is_right_on_what_it_learned_and_has_most_to_learn() -> None:
    right = {kind: [int(part) for part in found.split("/")] for kind, found in TRIED[0]["by kind"].items()}
    assert all(right[kind][0] >= 0.6 * right[kind][1] for kind in LEARNED_KINDS)
    assert all(0.05 * row["asked"] <= row["right"] for row in TRIED[:1])
    assert all(row["right"] <= 0.4 * row["asked"] for row in TRIED)


@pytest.mark.slow
def test_asked_again_the_base_gives_the_figure_on_record(tmp_path: Path) -> None:
    succeed(tmp_path, "convert", "--model", "demo", "--dtype", "float32")
    succeed(
        tmp_path, "evaluate", "--no-adapter", "--template-for", f"base={BASE_TEMPLATE}", "--run-name", "asked",
        "--benchmark", f"demo={DEMO / 'problems' / 'validation.jsonl'}",
    )  # fmt: skip
    found = json.loads((tmp_path / "evaluation_results" / "asked" / "results.json").read_text())
    assert found["num_problems"] == TRIED[0]["asked"]
    assert found["contestants"]["base"]["accuracy"]["right"] == pytest.approx(TRIED[0]["right"], abs=2)
