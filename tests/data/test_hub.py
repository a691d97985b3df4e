"""Dataset repositories: `datasets` is real, the repository is a folder."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from mlxmath.config.schema import DataConfig
from mlxmath.data.rows import AbsentError
from mlxmath.data.sources import load_problems
from mlxmath.errors import InputError, MlxmathError
from tests.data.test_sources import ROWS, write_parquet

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


def config(**changes: Any) -> DataConfig:
    return DataConfig(dataset=NAME, **changes)


def test_rows(repository: Path) -> None:
    problems = load_problems(config())
    assert [(p.question, p.solution, p.answer) for p in problems] == [(f"q{i}", f"s{i}", str(i)) for i in range(5)]
    assert next(iter(problems)).meta == {"source": "s"}, "lists are not read"
    assert (problems.split, problems.revision, problems.rows.num_rows) == ("train", f"default@{COMMIT}", 5)


def test_few_rows_are_streamed(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("downloaded")

    monkeypatch.setattr(datasets.DatasetBuilder, "download_and_prepare", refuse)
    with pytest.raises(AssertionError, match="downloaded"):
        load_problems(config())
    problems = load_problems(config(num_examples=2))
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
    problems = load_problems(config(**changes))
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
        load_problems(config(**changes))


def test_other_commit_than_asked_for(repository: Path) -> None:
    assert load_problems(config(dataset_revision=COMMIT)).revision.endswith(COMMIT)
    with pytest.raises(MlxmathError, match="the local copy of owner/repository is 0123"):
        load_problems(config(dataset_revision="f" * 40))


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
        load_problems(config())
    assert type(caught.value) is error
