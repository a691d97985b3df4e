"""Datasets of every origin, and one clear error for everything that can be wrong with them."""

import bz2
import gzip
import json
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from mlxmath.config.schema import DataConfig
from mlxmath.data.forms import BARE_ANSWER
from mlxmath.data.rows import AbsentError
from mlxmath.data.sources import load_problems
from mlxmath.errors import InputError, MlxmathError
from tests.data.material import write_lines, write_parquet

ROWS = [{"problem": f"q{i}", "solution": f"s{i}", "answer": str(i)} for i in range(5)]
SHARED = Path(__file__).parents[3] / "shared" / "data"


def config(dataset: Path | str, **changes: Any) -> DataConfig:
    return DataConfig(dataset=str(dataset), **changes)


def test_demo() -> None:
    sizes = {}
    for split in (None, "validation", "test"):
        problems = load_problems(config("demo", split=split))
        found = list(problems)
        assert problems.split == (split or "train")
        assert all(p.question and p.solution and p.answer for p in found)
        assert not problems.skipped
        sizes[problems.split] = len(found)
    assert sizes["train"] > sizes["validation"] > 0
    with pytest.raises(InputError, match="--split: demo has no split 'dev', but train, validation, test"):
        load_problems(config("demo", split="dev"))


def test_every_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps(ROWS))
    (tmp_path / "object.json").write_text(json.dumps({"version": 1, "data": ROWS}))
    (tmp_path / "columns.json").write_text(json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}))
    numbered = {name: {str(i): row[name] for i, row in enumerate(ROWS)} for name in ROWS[0]}
    (tmp_path / "pandas.json").write_text(json.dumps(numbered))
    (tmp_path / "by_id.json").write_text(json.dumps({str(i): row for i, row in enumerate(ROWS)}))
    paths = [
        tmp_path / "columns.json",
        tmp_path / "pandas.json",
        tmp_path / "by_id.json",
        write_lines(tmp_path / "a.jsonl", ROWS),
        write_lines(tmp_path / "lines.json", ROWS),
        tmp_path / "list.json",
        tmp_path / "object.json",
        write_parquet(tmp_path / "a.parquet", ROWS),
    ]
    for path in paths:
        problems = load_problems(config(path))
        assert [(p.id, p.question, p.solution, p.answer) for p in problems] == [
            (str(i), f"q{i}", f"s{i}", str(i)) for i in range(5)
        ]
        assert list(problems) == list(problems), "reading again starts anew"
        assert problems.revision.startswith("sha256:")


def test_byte_order_mark_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS[0]).encode() + b"\r\n\n  \n" + json.dumps(ROWS[1]).encode())
    assert [p.id for p in load_problems(config(path))] == ["0", "1"]


def test_revision_follows_the_contents(tmp_path: Path) -> None:
    first = load_problems(config(write_lines(tmp_path / "a.jsonl", ROWS))).revision
    second = load_problems(config(write_lines(tmp_path / "a.jsonl", ROWS[1:]))).revision
    assert first != second


def test_unusable_rows_are_counted(tmp_path: Path) -> None:
    rows = [{"problem": None, "solution": "s"}, *ROWS, {"problem": "q", "solution": ""}, {"problem": "q"}]
    problems = load_problems(config(write_lines(tmp_path / "a.jsonl", rows)))
    assert len(list(problems)) == 5
    assert problems.skipped == {"empty problem": 1, "empty solution": 2}
    problems = load_problems(config(tmp_path / "a.jsonl", num_examples=2))
    assert [p.question for p in problems] == ["q0", "q1"], "the first two usable rows"
    assert problems.skipped == {"empty problem": 1}
    assert len(list(load_problems(config(tmp_path / "a.jsonl"), solutions_required=False))) == 7


def test_columns_by_name(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"Body": "b", "Why": "w"}])
    (problem,) = load_problems(config(path, question_column="Body", solution_column="Why"))
    assert (problem.question, problem.solution) == ("b", "w")
    with pytest.raises(InputError, match=r"a\.jsonl has no column 'body', but Body, Why; did you mean 'Body'"):
        load_problems(config(path, question_column="body"))


def test_nested_parquet_columns_are_read_only_if_used(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    path = write_parquet(tmp_path / "a.parquet", [{"messages": messages, "generations": ["x"], "source": "s"}])
    (problem,) = load_problems(config(path))
    assert (problem.question, problem.solution, dict(problem.meta)) == ("q", "a", {"source": "s"})


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        (
            "a.jsonl",
            '{"problem": "q", "solution": "s"}\n{"problem": \n',
            MlxmathError,
            r"a\.jsonl:2: expected one JSON",
        ),
        ("a.jsonl", '{"problem": "q", "solution": "s"}\n3\n', MlxmathError, r"a\.jsonl:2: .*found a number"),
        ("a.jsonl", b'{"problem": "\xff"}\n', MlxmathError, r"a\.jsonl:1: .*utf-8"),
        ("a.jsonl", "", InputError, "holds no rows"),
        ("a.json", "[]", InputError, "holds no rows"),
        ("a.json", "[1", MlxmathError, r"a\.json:1: expected a JSON list"),
        ("a.json", "[1]", MlxmathError, "row 1: expected a JSON object, found a number"),
        ("a.json", '{"a": 1}', MlxmathError, "expected a JSON list of rows, found an object"),
        ("a.parquet", "PAR1", MlxmathError, "not a readable parquet file"),
        ("a.txt", "a,b", InputError, r"is not a \.jsonl, \.json, .* file"),
        ("a.csv", "problem,solution", InputError, "holds no rows"),
        ("a.csv", "problem,solution\nq,s\nq,s,t\n", MlxmathError, r"a\.csv:3: .* found 3 cells"),
        ("a.csv", 'problem,solution\nq,"s\n', MlxmathError, r"a\.csv:2: .* found unexpected end"),
        ("a.jsonl.gz", "plain", MlxmathError, r"a\.jsonl\.gz cannot be read to its end"),
        ("a.arrow", "ARROW", MlxmathError, "is not a readable Arrow file"),
        ("a.jsonl", '{"x": 1}', InputError, "no column for the problem among x; name it with --question-column"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: str | bytes, error: type[Exception], message: str) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(error, match=message) as caught:
        list(load_problems(config(tmp_path / name)))
    assert type(caught.value) is error


def test_a_table_whose_texts_are_none(tmp_path: Path) -> None:
    import pyarrow as pa

    texts = [f"solution {number}" for number in range(5)]
    table = pa.Table.from_pylist([{"problem": "q", "solution": text} for text in texts])
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    whole = (tmp_path / "a.arrow").read_bytes()
    assert [problem.solution for problem in load_problems(config(tmp_path / "a.arrow"))] == texts
    places = np.arange(6, dtype=np.int32) * len(texts[0])  # where each text begins
    for old, new in ((b"solution 3", b"solution \xff"), (places.tobytes(), places[::-1].tobytes())):
        assert old in whole
        (tmp_path / "a.arrow").write_bytes(whole.replace(old, new))
        with pytest.raises(MlxmathError, match=r"a\.arrow is damaged: ArrowInvalid: "):
            list(load_problems(config(tmp_path / "a.arrow")))
    (tmp_path / "a.arrow").write_bytes(whole.replace(b"problem", b"prob\xffem"))  # a column's name
    with pytest.raises(MlxmathError, match=r"a\.arrow is damaged: UnicodeDecodeError: "):
        list(load_problems(config(tmp_path / "a.arrow")))


def test_malformed_line_far_down(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + (json.dumps(ROWS[0]) + "\n") * 500 + "{oops\n")
    problems = load_problems(config(path))
    with pytest.raises(MlxmathError, match=re.escape(f"{path}:502: expected one JSON object")):
        list(problems)


def test_no_such_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_problems(config(tmp_path / "a.jsonl"))
    with pytest.raises(InputError, match=r"data/train\.jsonl does not exist"):
        load_problems(config("data/train.jsonl"))
    with pytest.raises(InputError, match=r"is a folder without any \.jsonl, \.json, .* file"):
        load_problems(config(tmp_path))


def test_folder_with_splits(tmp_path: Path) -> None:
    write_lines(tmp_path / "test.jsonl", ROWS[:1])
    assert [p.question for p in load_problems(config(tmp_path))] == ["q0"], "the only split"
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", ROWS[:2])
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", ROWS[2:])
    problems = load_problems(config(tmp_path))
    assert ([p.question for p in problems], problems.split, problems.rows.num_rows) == (
        ["q0", "q1", "q2", "q3", "q4"], "train", 5,
    )  # fmt: skip
    assert len(list(load_problems(config(tmp_path, split="test")))) == 1
    with pytest.raises(InputError, match="has no split 'dev', but train, test; choose one"):
        load_problems(config(tmp_path, split="dev"))
    (tmp_path / "data" / "train-00000-of-00002.parquet").unlink()
    (tmp_path / "data" / "train-00001-of-00002.parquet").unlink()
    write_lines(tmp_path / "dev.jsonl", ROWS)
    with pytest.raises(InputError, match="has no split 'train', but dev, test"):
        load_problems(config(tmp_path))


def test_tables_of_text_and_compressed_files(tmp_path: Path) -> None:
    csv = 'problem,solution,answer\r\n"q, ""0""\nmore",s0,007\r\n\r\nq1,s1,1\r\n'
    expected = [('q, "0"\nmore', "s0", "007"), ("q1", "s1", "1")]
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + csv.encode())
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(csv.encode()))
    (tmp_path / "b.csv").write_text('problem;solution;answer\n"q, ""0""\nmore";s0;007\nq1;s1;1\n')
    (tmp_path / "a.tsv").write_text("problem\tsolution\tanswer\nq,\ts\t1\n")
    for name in ("a.csv", "a.csv.gz", "b.csv"):
        assert [(p.question, p.solution, p.answer) for p in load_problems(config(tmp_path / name))] == expected
    assert [p.question for p in load_problems(config(tmp_path / "a.tsv"))] == ["q,"]
    whole = write_lines(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "z.jsonl.gz").write_bytes(gzip.compress(Path(whole).read_bytes()))
    (tmp_path / "z.json.bz2").write_bytes(bz2.compress(json.dumps(ROWS).encode()))
    for name in ("z.jsonl.gz", "z.json.bz2"):
        assert list(load_problems(config(tmp_path / name))) == list(load_problems(config(whole)))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(Path(whole).read_bytes())[:-9])
    with pytest.raises(MlxmathError, match=r"cut\.jsonl\.gz cannot be read to its end: Truncated"):
        list(load_problems(config(tmp_path / "cut.jsonl.gz")))


def test_what_datasets_saves_to_disk(tmp_path: Path) -> None:
    import datasets

    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    data = datasets.Dataset.from_list([{"messages": messages}] * 3)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(tmp_path / "two")
    for name in ("one", "two"):
        problems = load_problems(config(tmp_path / name))
        assert [(p.question, p.solution) for p in problems] == [("q", "a")] * 3
        assert problems.rows.num_rows == 3
    assert len(list(load_problems(config(tmp_path / "two", split="test")))) == 1
    (tmp_path / "three" / "train").mkdir(parents=True)
    write_lines(tmp_path / "three" / "train" / "part-1.jsonl", ROWS[:2])
    write_lines(tmp_path / "three" / "train" / "part-2.jsonl", ROWS[2:])
    assert [p.question for p in load_problems(config(tmp_path / "three"))] == [f"q{i}" for i in range(5)]


def test_columns_that_come_late_count(tmp_path: Path) -> None:
    late = [{"problem": f"p{i}"} for i in range(120)] + [{"problem": "p", "solution": "s", "level": "3"}]
    problems = load_problems(config(write_lines(tmp_path / "a.jsonl", late), filters=("level = 3",)))
    assert [(p.question, p.solution) for p in problems] == [("p", "s")]
    assert problems.skipped == {"empty solution": 120}
    assert problems.rows.place(problems.first_skipped["empty solution"]) == "line 1"
    alpaca = [{"instruction": f"i{i}", "output": "o"} for i in range(120)]
    alpaca += [{"instruction": "Solve it.", "input": "q", "output": "o"}]
    assert list(load_problems(config(write_lines(tmp_path / "b.jsonl", alpaca))))[-1].question == "Solve it.\n\nq"


MIXED: list[dict[str, Any]] = [
    {"problem": "q", "solution": "s"},
    {"question": "q", "answer": "worked\n#### 8"},
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    {"instruction": "Solve it.", "input": "q", "output": "o"},
    {"problem": "q", "answer": "8"},
    {"question": "q", "answer": 8},
    {"foo": "q"},
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_in_another_known_form_are_read_for_what_they_are(tmp_path: Path, kind: str) -> None:
    if kind == "jsonl":
        path = write_lines(tmp_path / "a.jsonl", MIXED)
    else:
        names = {name for row in MIXED for name in row}
        rows = [{name: row.get(name) for name in sorted(names)} for row in MIXED]
        path = write_parquet(
            tmp_path / "a.parquet", [{**row, "answer": row["answer"] and str(row["answer"])} for row in rows]
        )
    problems = load_problems(config(path))
    assert [(p.id, p.question, p.solution) for p in problems] == [
        ("0", "q", "s"), ("1", "q", "worked\n#### 8"), ("2", "q", "a"), ("3", "Solve it.\n\nq", "o"),
    ]  # fmt: skip
    assert problems.skipped == {BARE_ANSWER: 2, "empty problem": 1}
    first = {reason: problems.rows.place(index) for reason, index in problems.first_skipped.items()}
    word = "line" if kind == "jsonl" else "row"
    assert first == {BARE_ANSWER: f"{word} 5", "empty problem": f"{word} 7"}
    if kind == "jsonl":
        assert problems.unused == ("foo",)


def test_an_answer_in_another_column_than_the_other_rows_have_it(tmp_path: Path) -> None:
    rows = [{"problem": "q", "answer": "7", "solution": "s"}, {"problem": "q", "ground_truth": "8", "solution": "s"}]
    assert [p.answer for p in load_problems(config(write_lines(tmp_path / "a.jsonl", rows)))] == ["7", "8"]
    assert [p.answer for p in load_problems(config(tmp_path / "a.jsonl", answer_column="answer"))] == ["7", None]


def test_pairs_with_prompts_of_several_names(tmp_path: Path) -> None:
    rows = [{name: "q", "chosen": "a", "rejected": "b"} for name in ("prompt", "question")]
    problems = load_problems(config(write_lines(tmp_path / "a.jsonl", rows)), pairs=True)
    assert [(p.question, p.solution) for p in problems] == [("q", "a")] * 2


def test_a_row_without_verified_generation_is_named(tmp_path: Path) -> None:
    row = {"problem": "q", "solution": "s", "generations": ["g"], "correctness_math_verify": [False]}
    problems = load_problems(config(write_lines(tmp_path / "a.jsonl", [row]), solutions="all"))
    assert not list(problems) and problems.first_skipped == {"no verified generation": 0}


@pytest.mark.parametrize("option", ["split", "dataset_config", "dataset_revision"])
def test_options_that_a_file_does_not_have(tmp_path: Path, option: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(InputError, match=f"--{option.replace('_', '-')}: .* is (one file|local) and has no 'x'"):
        load_problems(config(path, **{option: "x"}))
    assert list(load_problems(config(path, split="train")))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gsm8k/train", 7473),
        ("gsm8k/test", 1319),
        ("math500/test", 500),
        ("minerva_math/test", 272),
        ("gsm_hard/train", 1319),
        ("svamp/test", 1000),
        ("aime24/test", 30),
    ],
)
def test_real_data_loses_no_row(name: str, count: int) -> None:
    path = SHARED / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    for where in (path, path.parent) if name != "gsm8k/test" else (path,):
        problems = load_problems(config(where))
        found = list(problems)
        assert (len(found), dict(problems.skipped)) == (count, {})
        assert all(p.question and p.solution and p.answer for p in found)
    if name.startswith("gsm8k"):
        assert not any("<<" in (p.solution or "") for p in found)
        assert all(re.fullmatch(r"-?[\d,.]+", p.answer or "") for p in found)


NAME = "owner/repository"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = """\
---
configs:
- config_name: default
  data_files:
  - {split: train, path: train.parquet}
  - {split: test, path: test.parquet}
- config_name: all
  data_files:
  - {split: default, path: train.parquet}
  - {split: extended, path: test.parquet}
- config_name: single
  data_files:
  - {split: test, path: test.parquet}
- config_name: two
  data_files:
  - {split: dev, path: test.parquet}
  - {split: test, path: test.parquet}
---
"""
GENERATIONS = [row | {"generations": ["x", "y"], "source": "s"} for row in ROWS]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset folder that stands in for the repository."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    write_parquet(folder / "train.parquet", GENERATIONS)
    write_parquet(folder / "test.parquet", GENERATIONS[:2])
    real = datasets.load_dataset_builder

    def load(name: str, config_name: str | None = None, revision: str | None = None) -> Any:
        assert name == NAME
        builder = real(str(folder), config_name, cache_dir=str(tmp_path / "arrow"))
        builder.hash = COMMIT
        return builder

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    return folder


def hub_config(**changes: Any) -> DataConfig:
    return DataConfig(dataset=NAME, **changes)


def test_rows(repository: Path) -> None:
    problems = load_problems(hub_config())
    assert [(p.question, p.solution, p.answer) for p in problems] == [(f"q{i}", f"s{i}", str(i)) for i in range(5)]
    assert next(iter(problems)).meta == {"source": "s"}, "lists are not read"
    assert (problems.split, problems.revision, problems.rows.num_rows) == ("train", f"default@{COMMIT}", 5)


def test_few_rows_are_streamed(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("downloaded")

    monkeypatch.setattr(datasets.DatasetBuilder, "download_and_prepare", refuse)
    with pytest.raises(AssertionError, match="downloaded"):
        load_problems(hub_config())
    problems = load_problems(hub_config(num_examples=2))
    assert [p.question for p in problems] == ["q0", "q1"]
    assert problems.revision == f"default@{COMMIT}"


@pytest.mark.parametrize(
    ("changes", "split", "count"),
    [
        ({"split": "test"}, "test", 2),
        ({"split": "train[:3]"}, "train[:3]", 3),
        ({"split": "train+test"}, "train+test", 7),
        ({"dataset_config": "all"}, "default+extended", 7),
        ({"dataset_config": "single"}, "test", 2),
    ],
)
def test_splits(repository: Path, changes: dict[str, str], split: str, count: int) -> None:
    problems = load_problems(hub_config(**changes))
    assert problems.split == split
    assert len(list(problems)) == count


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "dev"}, "--split: owner/repository has no split 'dev', but train, test"),
        ({"dataset_config": "two"}, "--split: .* has no split 'train', but dev, test; choose"),
        ({"dataset_config": "other"}, "--dataset-config: .*'other' not found. Available: .*'default'"),
        ({"question_column": "problen"}, "--question-column: .* has no column 'problen'.*did you mean 'problem'"),
    ],
)
def test_wrong_names(repository: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_problems(hub_config(**changes))


def test_other_commit_than_asked_for(repository: Path) -> None:
    assert load_problems(hub_config(dataset_revision=COMMIT)).revision.endswith(COMMIT)
    with pytest.raises(MlxmathError, match="the local copy of owner/repository is 0123"):
        load_problems(hub_config(dataset_revision="f" * 40))


@pytest.mark.parametrize(
    ("raised", "error", "message"),
    [
        (ConnectionError("Couldn't reach it"), MlxmathError, "cannot be fetched: ConnectionError.*Check the network"),
        (TimeoutError(), MlxmathError, "cannot be fetched: TimeoutError"),
        (DatasetNotFoundError("Dataset 'x' doesn't exist."), AbsentError, "--dataset: Dataset 'x' doesn't exist"),
        (DatasetNotFoundError("Revision 'x' doesn't exist"), AbsentError, "--dataset-revision: Revision 'x'"),
        (
            ValueError("Config name is missing.\nPick one"),
            InputError,
            "--dataset-config: .*Config name is missing. Pick",
        ),
        (RuntimeError("Dataset scripts are no longer supported"), InputError, "--dataset: .*no longer supported"),
        (DatasetGenerationError("disk"), MlxmathError, "cannot be read: DatasetGenerationError: disk"),
    ],
)
def test_failures(monkeypatch: pytest.MonkeyPatch, raised: Exception, error: type[Exception], message: str) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    with pytest.raises(error, match=message) as caught:
        load_problems(hub_config())
    assert type(caught.value) is error


@pytest.mark.parametrize("raised", [ConnectionError("no network"), DatasetNotFoundError("Dataset doesn't exist.")])
@pytest.mark.parametrize(("name", "hint"), [("gms8k", "; did you mean 'gsm8k'?"), ("owner/gms8k", "")])
def test_a_misspelt_name_of_a_known_dataset(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, name: str, hint: str
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    with pytest.raises(MlxmathError) as caught:
        load_problems(DataConfig(dataset=name))
    assert str(caught.value).endswith(hint or ".") and ("did you mean" in str(caught.value)) == bool(hint)
