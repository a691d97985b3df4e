"""Benchmarks out of real files, and a user's own."""

import json
from pathlib import Path

import pytest

from mlxmath.errors import InputError
from mlxmath.evaluation.benchmarks import BENCHMARKS, load_benchmark
from mlxmath.grading import grade

DATA = Path(__file__).parents[3] / "shared" / "data"

PUBLISHED = [
    ("gsm8k", "gsm8k/test.jsonl", 1319, "18", None, None),
    ("math500", "math500/test.jsonl", 500, "\\left( 3, \\frac{\\pi}{2} \\right)", "2", "Precalculus"),
    ("gsm-hard", "gsm_hard/train.jsonl", 1319, "-9867630", None, None),
    ("svamp", "svamp/test.jsonl", 1000, "145", None, "Common-Division"),
    ("aime24", "aime24/test.jsonl", 30, "204", None, None),
    ("minerva", "minerva_math/test.jsonl", 272, "1.6", None, "Introduction to Astronomy (8.282J Spring 2006)"),
]


@pytest.mark.parametrize(("name", "file", "count", "gold", "level", "subject"), PUBLISHED)
def test_published_files(name: str, file: str, count: int, gold: str, level: str | None, subject: str | None) -> None:
    if not (DATA / file).is_file():
        pytest.skip(f"{DATA / file} is not here")
    found = load_benchmark(f"{name}={DATA / file}")
    assert len(found.items) == count and found.num_skipped == 0 and found.name == name
    first = found.items[0]
    assert (first.id, first.gold, first.level, first.subject) == (f"{name}/0", gold, level, subject)
    assert all(item.question and item.gold for item in found.items)
    if name in ("gsm8k", "math500"):  # the gold answers are those that the reference solutions reach
        assert sum(grade(item.solution or "", item.gold).correct for item in found.items[:50]) >= 49


def test_demo_and_a_limit_that_grows() -> None:
    whole = load_benchmark("demo")
    assert len(whole.items) == 200 and whole.max_tokens == BENCHMARKS["demo"].max_tokens
    few, more = ({item.id for item in load_benchmark("demo", n).items} for n in (10, 30))
    assert len(few) == 10 and len(more) == 30 and few < more
    assert max(int(i.partition("/")[2]) for i in few) > 100  # spread over the whole


def test_a_users_file(tmp_path: Path) -> None:
    rows = [
        {"question": "1 + 1?", "answer": "We add.\n#### 2", "level": "Level 3"},
        {"question": "", "answer": "#### 3"},
        {"question": "2 + 2?", "answer": "It is \\boxed{4}."},
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_benchmark(str(path))
    assert [(i.id, i.gold) for i in found.items] == [("mine/0", "2"), ("mine/2", "4")]
    assert found.num_skipped == 1 and found.name == "mine"


def test_what_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'gsm8k'"):
        load_benchmark("gsm8")
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(InputError, match="no column question"):
        load_benchmark(f"gsm8k={tmp_path / 'x.jsonl'}")
