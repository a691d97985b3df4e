"""What pages show of the run of a real model."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks import real_model_pages as pages


def sample(number: int, contestant: str, correct: bool, benchmark: str = "gsm8k") -> dict[str, Any]:
    return {
        "benchmark": benchmark, "id": str(number), "sample": 0, "contestant": contestant, "correct": correct,
        "question": f"question {number}\nin two lines", "gold": "4",
        "response": f"{contestant} says\n```\n{number}\n```",
    }  # fmt: skip


def share(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "right": 100 * value, "total": 1319}


def record(curves: dict[str, Any], answers: list[dict[str, Any]]) -> dict[str, Any]:
    by = {
        name: {"by": {"benchmark": {"gsm8k": share(v), "svamp": share(v)}}}
        for name, v in (("base", 0.1), ("tuned", 0.3))
    }
    paired = {name: {"difference": 0.2, "low": 0.15, "high": 0.25, "p_value": 1e-9} for name in ("gsm8k", "svamp")}
    return {
        "choose": {
            "chosen": "own",
            "contestants": {
                name: {"accuracy": share(value), "cut_off": 3}
                for name, value in {"base": 0.1, "sft": 0.2, "own": 0.3, "grpo": 0.3}.items()
            },
        },
        "test": {"contestants": by, "comparisons": [{"by": {"benchmark": paired}}]},
        "export": {"contestants": {"exported": {"accuracy": share(0.29)}}},
        "show": {"curves": curves, "answers": answers},
    }


def test_curves_are_thinned_to_their_last_point(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = [{"event": "validation", "step": 0, "loss": 1.5}]
    events += [{"event": "step", "step": i, "smoothed_loss": 1 / i} for i in range(1, 501)]
    rewards = [1.0] * 40 + [0.0] * 10
    events += [{"event": "rollout", "step": 501 + i, "reward": reward} for i, reward in enumerate(rewards)]
    events += [{"event": "step", "step": 550, "loss": 0.0}, {"event": "end", "step": 550}]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    found = pages.curves(tmp_path / "events.jsonl")
    assert found["validation"] == [(0, 1.5)] and found["reward"][39:] == [(540 + i, 1 - i / 40) for i in range(11)]
    assert found["loss"][-1] == (500, 0.002) and len(found["loss"]) == 100
    assert {b[0] - a[0] for a, b in zip(found["loss"], found["loss"][1:], strict=False)} == {5}


def test_a_problem_of_each_case_with_both_answers() -> None:
    rights = [(False, True), (True, True), (False, True), (True, False)]
    samples = [sample(i, who, right[j]) for i, right in enumerate(rights) for j, who in enumerate(("base", "tuned"))]
    samples += [sample(9, who, False, "svamp") for who in ("base", "tuned")]  # another benchmark's are not shown
    shown = pages.side_by_side(samples, "gsm8k", 0)
    assert [one["case"] for one in shown] == ["only the tuned model is right", "both are right"]
    assert shown[0]["question"][9] in "02" and shown[1]["question"][9] == "1"
    assert shown == pages.side_by_side(reversed(samples), "gsm8k", 0)
    text = pages.answers(record({}, shown))
    assert "> question 1\n> in two lines" in text and "````text\ntuned says" in text


def test_table_and_picture(tmp_path: Path) -> None:
    found = record(
        {"sft": {"loss": [(1, 2.0), (2, 1.0)], "validation": [(0, 2.0)]}, "grpo": {"reward": [(1, 0.1)]}}, []
    )
    lines = pages.table(found).splitlines()
    assert len(lines) == 5 and len({line.count("|") for line in lines}) == 1
    assert (
        lines[2].startswith("| GSM8K (1,319) | 10.0 %")
        and "+20.0 (+15.0 to +25.0)" in lines[2]
        and "29.0 %" in lines[4]
    )
    stages = pages.stages(found).splitlines()
    assert len(stages) == 6 and len({line.count("|") for line in stages}) == 1
    assert "30.0 % (25.0 to 35.0) | 3 of 1319" in stages[4]
    assert [line for line in stages if "chosen" in line] == stages[4:5] and stages[4].startswith("| own")
    pages.draw(tmp_path / "a.png", found, {"Figures": "x"})
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > 800 and image.info["Figures"] == "x"
