"""Rows of pairs in every form in use, and what is wrong with the others."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlxmath.config.schema import DataConfig
from mlxmath.data.mixture import Mixture
from mlxmath.data.problem import Message, Problem
from mlxmath.data.sources import load_problems
from mlxmath.errors import InputError
from tests.data.material import write_lines, write_parquet


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def read(path: Path, **settings: Any) -> tuple[list[Problem], dict[str, int]]:
    loaded = load_problems(DataConfig(dataset=str(path), **settings), pairs=True)
    found = list(loaded)
    return found, dict(loaded.skipped)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"Prompt": "q", "Chosen Response": "good", "Rejected Response": "bad"},
        {"question": "q", "chosen": "good", "rejected": "bad", "answer": "1"},
        {"problem": "q", "chosen": "good", "rejected": "bad", "solution": "other"},
        {"prompt": [user("q")], "chosen": [assistant("good")], "rejected": [assistant("bad")]},
        {"chosen": [user("q"), assistant("good")], "rejected": [user("q"), assistant("bad")]},
        {"prompt": "q", "chosen": [user("q"), assistant("good")], "rejected": [user("q"), assistant("bad")]},
        {
            "prompt": json.dumps([user("q")]),
            "chosen": json.dumps([assistant("good")]),
            "rejected": json.dumps([assistant("bad")]),
        },
    ],
)
@pytest.mark.parametrize("write", [write_lines, write_parquet])
def test_each_form_is_the_same_pair(tmp_path: Path, row: dict[str, Any], write: Any) -> None:
    ((pair,), skipped) = read(write(tmp_path / f"a.{'jsonl' if write is write_lines else 'parquet'}", [row]))
    assert (pair.question, pair.solution, pair.rejected, pair.messages) == ("q", "good", "bad", ())
    assert not skipped


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "good", "label": True},
        {"Question": "q", "Response": "good", "Label": 1},
        {"prompt": [user("q")], "completion": [assistant("good")], "label": "true"},
        {"completion": [user("q"), assistant("good")], "label": True, "score": 3},
    ],
)
@pytest.mark.parametrize("write", [write_lines, write_parquet])
def test_each_form_is_the_same_completion_with_a_label(tmp_path: Path, row: dict[str, Any], write: Any) -> None:
    ((one,), skipped) = read(write(tmp_path / f"a.{'jsonl' if write is write_lines else 'parquet'}", [row]))
    assert (one.question, one.solution, one.rejected, one.is_desirable, one.messages) == ("q", "good", None, True, ())
    assert not skipped


def test_what_is_no_label_is_counted(tmp_path: Path) -> None:
    good = {"prompt": "q", "completion": "a", "label": True}
    rows = [good, *(good | {"label": label} for label in (0, False, "0", "yes", 2, 0.5, None)), good | {"prompt": ""}]
    found, skipped = read(write_lines(tmp_path / "a.jsonl", rows))
    assert [one.is_desirable for one in found] == [True, False, False, False]
    assert skipped == {"label that is neither true nor false": 4, "empty prompt": 1}


def test_several_turns_keep_their_conversation(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "s"}, user("q"), assistant("a"), user("r")]
    rows = [
        {"prompt": turns, "chosen": [assistant("good")], "rejected": [assistant("bad")]},
        {"prompt": [], "chosen": [*turns, assistant("good")], "rejected": [*turns, assistant("bad")]},
    ]
    pairs, skipped = read(write_lines(tmp_path / "a.jsonl", rows))
    assert not skipped
    for pair in pairs:
        assert pair.messages == (*(Message(**turn) for turn in turns), Message("assistant", "good"))
        assert (pair.question, pair.rejected) == ("q", "bad")


def test_unusable_rows_are_counted_by_reason(tmp_path: Path) -> None:
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    rows = [
        good,
        good | {"rejected": " a\n"},
        good | {"chosen": "  "},
        good | {"rejected": None},
        good | {"prompt": ""},
        good | {"prompt": 7, "chosen": 3, "rejected": 4},
        good | {"chosen": {"text": "a"}},
        good | {"chosen": [user("q")]},
        good | {"chosen": [user("x"), assistant("a")], "rejected": [user("y"), assistant("b")]},
        good | {"prompt": [user("q"), assistant("a")]},
        good | {"prompt": [{"content": "q"}]},
    ]
    pairs, skipped = read(write_lines(tmp_path / "a.jsonl", rows))
    assert [pair.question for pair in pairs] == ["q", "7"]
    assert skipped == {
        "chosen and rejected are the same": 1, "empty chosen completion": 1, "empty rejected completion": 1,
        "empty prompt": 1, "chosen completion is not text": 1,
        "chosen conversation that does not end with an answer": 1,
        "chosen and rejected answer different conversations": 1, "prompt that ends with an answer": 1,
        "messages without a role": 1,
    }  # fmt: skip


def test_pairs_are_not_trained_on_as_solutions(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    with pytest.raises(InputError, match="pairs of completions .* are for `mlxmath dpo`"):
        load_problems(DataConfig(dataset=str(path)))


def test_missing_columns_are_one_clear_error(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"prompt": "q", "completion": "a", "chosen": "b"}])
    with pytest.raises(InputError, match=r"a\.jsonl: no column 'rejected' among prompt, completion, chosen; expected"):
        read(path)
    path = write_lines(tmp_path / "b.jsonl", [{"text": "q", "chosen": "a", "rejected": "b"}])
    with pytest.raises(InputError, match=r"--question-column: b\.jsonl has no column 'txt'.*did you mean 'text'\?"):
        read(path, question_column="txt")
    assert read(path, question_column="text")[0][0].question == "q"


def test_a_mixture_of_pairs_filters_and_leaves_out_repetitions(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "a", "rejected": r, "score": i} for i, r in enumerate(["b", "b", "c", "d"])]
    config = DataConfig(dataset=str(write_lines(tmp_path / "a.jsonl", rows)), filters=("score < 3",))
    mixture = Mixture(config, pairs=True)
    mixture.choose()
    assert [pair.rejected for pair in mixture] == ["b", "c"]
    assert (mixture.reports[0].repeated, mixture.reports[0].filtered) == (1, {"score < 3": 1})
    assert mixture.key != Mixture(config.model_copy(update={"filters": ()}), pairs=True).key
