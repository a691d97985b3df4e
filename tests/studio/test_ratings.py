"""The file of ratings, and what they are of: sources of answers, and solutions in steps."""

import threading
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from mlxmath.errors import MlxmathError
from mlxmath.runtime.sealed import sealed_line
from mlxmath.studio.place import Studio
from mlxmath.studio.ratings import Ratings, ratings_of
from mlxmath.studio.sources import problems_in, source, sources
from mlxmath.studio.steps import steps
from tests.studio.answers import RUN, distillation, evaluation, kept, rate, rating


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []), ("One.", ["One."]), ("a line\n\nanother\n", ["a line\n\n", "another\n"]),
        ("It is 3.5 so. Then \\(x\\) is 4. So 5.", ["It is 3.5 so. ", "Then \\(x\\) is 4. ", "So 5."]),
        ("1. Add them.\n2. Halve them.", ["1. Add them.\n", "2. Halve them."]),
        ("$$a\n=\nb$$ holds\nSo c", ["$$a\n=\nb$$ holds\n", "So c"]),
        ("\\begin{align*}a\\\\\nb\\end{align*}\nwell", ["\\begin{align*}a\\\\\nb\\end{align*}\n", "well"]),
    ],
)  # fmt: skip
def test_steps_are_lines_and_sentences_and_cut_no_formula(text: str, expected: list[str]) -> None:
    assert steps(text) == expected
    long = "Step.\n" * 1000
    assert len(steps(long)) == 300 and "".join(steps(long)) == long


def test_several_answers_of_one_and_those_of_a_teacher(folder: Path, client: TestClient, studio: Studio) -> None:
    evaluation(folder / "x", num=4, labels=("base",), samples=3)
    found = source(studio, "x")
    pairs = problems_in(folder / "x").pairs(found, 0, 0)
    assert len(pairs) == 12 and len({pair.problem for pair in pairs[:4]}) == 4  # each problem before any twice
    distillation(folder / "distilled")
    assert {(one.folder, one.kind, one.labels) for one in sources(studio)} == {
        ("x", "evaluation", ("base",)), ("distilled", "distillation", ("a-teacher",))
    }  # fmt: skip
    text = client.get("/rate/next", params={"source": "distilled", "rater": "Ann", "disagree": "on"}).text
    assert "0 of 6 rated" in text
    rate(client, text, "left")
    (line,) = kept(folder)
    assert {line["left_correct"], line["right_correct"]} == {True, False} and line["kind"] == "distillation"
    distillation(folder / "unjudged", is_judged=False)
    assert "0 of 9 rated" in client.get("/rate/next", params={"source": "unjudged", "rater": "A", "differ": "on"}).text


def test_lines_that_are_damaged_or_half_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "studio" / "ratings.jsonl"
    ratings = Ratings(path)
    assert ratings.all() == []
    ratings.add(rating(0, "left"))
    whole = path.read_bytes()
    path.write_bytes(whole + whole.replace(b'"left"', b'"right"', 1) + b'{"rater": "x"}\n\xff\n\n' + whole[:90])
    assert [one.verdict for one in ratings.all()] == ["left"] and ratings.left_out == 3
    ratings.add(rating(1, "same"))  # begins a line of its own
    assert [one.pair for one in ratings.all()] == ["pair0", "pair1"] and ratings.left_out == 4
    assert [one.pair for one in Ratings(path).all()] == ["pair0", "pair1"]
    path.write_bytes(sealed_line({**vars(rating(2, "left")), "verdict": "better"}))
    assert ratings.all() == [] and ratings.left_out == 1  # another file


def test_two_studios_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "studio" / "ratings.jsonl"
    writers = [Ratings(path) for _ in range(4)]

    def write(place: int) -> None:
        for number in range(10):
            writers[place].add(rating(number, "left", rater=f"rater {place}", comment="x" * 20_000))

    threads = [threading.Thread(target=write, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(writers[0].all()) == 40 and writers[0].left_out == 0
    assert [child.name for child in path.parent.iterdir()] == ["ratings.jsonl"]


def test_links_that_lead_out_are_not_read(folder: Path, tmp_path: Path, client: TestClient) -> None:
    outside = evaluation(tmp_path / "outside")
    inside = folder / "inside"
    inside.mkdir()
    (inside / "settings.json").write_bytes((outside / "settings.json").read_bytes())
    (inside / "samples.jsonl").symlink_to(outside / "samples.jsonl")
    assert client.get("/rate/next", params=RUN | {"source": "inside"}).status_code == 422
    (folder / "studio").symlink_to(tmp_path)
    with pytest.raises(MlxmathError, match="outside"):
        ratings_of(Studio(folder))
