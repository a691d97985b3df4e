"""More rows out of those that there are: what is made and counted, and that nothing is made of what is held out."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mlxmath.config.methods import AugmentationConfig, DistillationConfig
from mlxmath.config.schema import DataConfig, RunConfig
from mlxmath.data.dedup import normalise
from mlxmath.data.load import held_out
from mlxmath.distillation.augment import augment
from mlxmath.errors import InputError
from mlxmath.grading import grade
from mlxmath.tools.calculator import calculate
from tests.data.material import write_lines
from tests.distillation.scripted import Request, completion, scripted, solution, sum_of
from tests.helpers import json_lines

NAMES = ("Nora", "Omar", "Ida", "Uma", "Ben", "Eva", "Tom", "Ada")


def tale(i: int) -> dict[str, str]:
    """A row in GSM8K's columns; no two share many words."""
    a, b, c, who = 12 + i, 40 + 3 * i, 5 + i % 4, NAMES[i % 8]
    things = ("eggs", "stones", "cards", "pears", "books")[i % 5]
    question = f"{who} has {a} {things} from day {i} of market{i}, finds {b} and gives away {c}. How many are left?"
    steps = f"{who} has {a}+{b}=<<{a}+{b}={a + b}>>{a + b}.\nSo {a + b}-{c}=<<{a + b}-{c}={a + b - c}>>{a + b - c}."
    return {"question": question, "answer": f"{steps}\n#### {a + b - c}"}


def run_config(path: str, folder: Path, teacher: dict[str, Any] | None = None, **settings: Any) -> RunConfig:
    return RunConfig(
        data=DataConfig(dataset=path, decontaminate=()),
        augmentation=AugmentationConfig(augment_path=str(folder), **settings),
        distillation=DistillationConfig(**(teacher or {})),
    )


def test_rows_are_right_counted_and_none_is_of_what_is_held_out(tmp_path: Path) -> None:
    rows = [tale(i) for i in range(40)]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    made = augment(run_config(path, tmp_path / "out", augment="numbers,names", variations=2, hold_out=0.25))
    train, held = json_lines(tmp_path / "out/train.jsonl"), json_lines(tmp_path / "out/held_out.jsonl")
    questions = [row["question"] for row in rows]
    expected = held_out(normalise(questions).texts, 0.25, 0)
    assert [row["problem"] for row in held] == [q for q, out in zip(questions, expected, strict=True) if out]
    assert not {row["of"] for row in train} & {row["of"] for row in held} and len(held) > 3
    assert {row["problem"] for row in train if row["kind"] == "own"} == set(questions) - {r["problem"] for r in held}
    counts = {kind: sum(row["kind"] == kind for row in train) for kind in ("own", "numbers", "names")}
    assert counts == dict(made.made) and counts["numbers"] > counts["own"] and counts["names"] > 5
    assert all(grade(row["solution"], row["answer"]).correct and "<<" not in row["solution"] for row in train)
    assert len({row["problem"] for row in train}) == len(train) and len({row["id"] for row in train}) == len(train)
    card = (tmp_path / "out/card.md").read_text()
    assert (
        f"| numbers | {counts['numbers']} |" in card
        and f"| held out, with all that could be made of them | {len(held)} |" in card
    )


def test_variations_call_where_the_rows_do(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [tale(i) for i in range(9)])
    config = run_config(path, tmp_path / "out", augment="numbers,names", hold_out=0)
    augment(config.model_copy(update={"data": config.data.model_copy(update={"tools": "calculator"})}))
    rows = json_lines(tmp_path / "out" / "train.jsonl")
    assert {row["kind"] for row in rows} == {"own", "numbers", "names"}
    calls = [re.findall(r"<<(.*?)=(.*?)>>", row["solution"]) for row in rows]
    assert all(len(own) == 2 and all(calculate(call) == result for call, result in own) for own in calls)


def test_a_variation_that_meets_what_is_measured_on_is_left_out(tmp_path: Path) -> None:
    """Two problems that differ in a name alone: the one is held out, or a benchmark's, the other may not become it."""
    base = "{} walks all along the very long river near the old mill and finds 14 stones, then 30 more. How many?"
    answer = "14+30=<<14+30=44>>44\n#### 44"
    rows = [tale(i) for i in range(10)] + [{"question": base.format("Nora"), "answer": answer}]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    write_lines(tmp_path / "bench.jsonl", [{"problem": base.format("The old mouse"), "solution": "44"}])
    config = run_config(path, tmp_path / "out", augment="names,numbers", hold_out=0, variations=1)
    data = config.data.model_copy(update={"decontaminate": (str(tmp_path / "bench.jsonl"),)})
    made = augment(config.model_copy(update={"data": data}))
    train = json_lines(tmp_path / "out/train.jsonl")
    assert not any("river" in row["problem"] for row in train), "it occurs in the benchmark, and so do its variations"
    assert made.num_held_out == 0 and made.num_read == 10


def test_a_variation_like_a_problem_held_out_is_left_out(tmp_path: Path) -> None:
    line = "{} walks all along the very long river near the old mill and finds {} stones, then {} more. How many?"
    rows = []
    for i in range(12):
        a, b = 14 + i, 40 + 2 * i
        rows.append(
            {"question": line.format(NAMES[i % 8], a, b), "answer": f"{a}+{b}=<<{a}+{b}={a + b}>>{a + b}\n#### {a + b}"}
        )
    path = write_lines(tmp_path / "rows.jsonl", [*rows, *(tale(i) for i in range(8))])
    made = augment(run_config(path, tmp_path / "out", augment="numbers", hold_out=0.5))
    held = [row for row in json_lines(tmp_path / "out/held_out.jsonl") if "river" in row["problem"]]
    varied = [row for row in json_lines(tmp_path / "out/train.jsonl") if row["kind"] == "numbers"]
    assert held and varied and not any("river" in row["problem"] for row in varied)
    assert made.left_out["numbers"]["occurs in the problems held out"] > 0


def sums(count: int) -> list[dict[str, str]]:
    return [
        {"question": f"What is {a} + {b}?", "answer": f"It is {a} + {b} = <<{a}+{b}={a + b}>>{a + b}.\n#### {a + b}"}
        for a, b in ((20 + i, 60 + 2 * i) for i in range(count))
    ]


def answers(request: Request, body: dict[str, Any], attempt: int) -> None:
    """Right for even sums, wrong for odd ones."""
    a, b = sum_of(body)
    request.reply(completion(solution(a, b) if (a + b) % 2 == 0 else solution(a, b + 1)))


def test_a_teachers_right_solutions_are_added_and_no_question_held_out_is_asked(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", sums(20))
    with scripted(answers) as server:
        teacher = {"teacher_url": server.url, "teacher_model": "t", "samples": 1, "temperature": 0.0}
        config = run_config(path, tmp_path / "out", teacher, augment="paths,rephrase", hold_out=5)
        made = augment(config)
        asked = "".join(server.seen)
        again = augment(config, resume=True)
        assert sum(server.seen.values()) == 30, "nothing is asked twice"
    train, held = json_lines(tmp_path / "out/train.jsonl"), json_lines(tmp_path / "out/held_out.jsonl")
    assert len(held) == 5 and not any(row["problem"] in asked for row in held)
    assert asked.count("A right solution:") == 15
    shown = [row["problem"] for row in json_lines(tmp_path / "out" / "rephrase" / "problems.jsonl")]
    assert all("in other words" in problem for problem in shown), "not every template takes an instruction"
    assert asked.count("in other words") == len(shown) == 15
    even = sum(int(row["answer"]) % 2 == 0 for row in train if row["kind"] == "own")
    assert made.made == again.made == {"own": 15, "paths": even, "rephrase": even} and 0 < even < 15
    assert all(grade(row["solution"], row["answer"]).correct for row in train)
    assert all("A right solution" not in row["problem"] for row in train)
    assert made.asked == {"paths": (15, even), "rephrase": (15, even)}
    assert made.left_out["paths"].total() == 15 - even


@pytest.mark.parametrize(
    ("settings", "teacher", "message"),
    [
        ({"augment": "paths"}, {}, "--augment paths: name who writes the solutions"),
        ({"augment": "names"}, {"teacher": "m"}, "--augment asks no teacher"),
    ],
)
def test_a_teacher_is_asked_for_where_it_is_needed(
    tmp_path: Path, settings: dict[str, Any], teacher: dict[str, Any], message: str
) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [tale(1)])
    with pytest.raises(InputError, match=message):
        augment(run_config(path, tmp_path / "out", teacher, **settings))


def test_what_is_there_is_replaced_only_on_demand(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [tale(i) for i in range(4)])
    config = run_config(path, tmp_path / "out", augment="numbers", hold_out=0)
    augment(config)
    before = (tmp_path / "out/train.jsonl").read_bytes()
    with pytest.raises(InputError, match="holds a dataset already"):
        augment(config)
    augment(config, overwrite=True)
    assert (tmp_path / "out/train.jsonl").read_bytes() == before, "the same seed, the same rows"
    assert json.loads(before.splitlines()[0])["kind"] == "own"
