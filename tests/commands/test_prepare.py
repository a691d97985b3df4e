"""`prepare`: from a dataset to the cache, and from the cache."""

import gc
import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlxmath.commands.prepare import main, show_rows
from mlxmath.config.schema import DataConfig, ModelConfig
from mlxmath.data.cache import TokenRows
from mlxmath.data.codec import load_tokenizer
from mlxmath.data.prepare import prepare_rows, tokenizer_folder
from mlxmath.data.render import encode_prompt
from mlxmath.data.sources import load_problems
from mlxmath.data.summary import statistics
from mlxmath.data.templates import get_template, joined
from mlxmath.errors import InputError, MlxmathError
from tests.data.material import write_lines
from tests.helpers import invoke

DEMO_MODEL = Path(__file__).parents[2] / "mlxmath" / "demo" / "model"


def config(tmp_path: Path, **changes: Any) -> DataConfig:
    return DataConfig(**{"dataset": "demo", "num_examples": 30, "cache_dir": str(tmp_path / "cache"), **changes})


def files(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache").glob("*.pkl")}


def test_rows_are_those_of_inference(tmp_path: Path) -> None:
    rows = prepare_rows(config(tmp_path), DEMO_MODEL)
    tokenizer = load_tokenizer(DEMO_MODEL)
    template = get_template("tutor")
    problems = list(load_problems(config(tmp_path)))
    assert len(rows) == len(problems) == 30
    for index, problem in enumerate(problems):
        tokens, mask = rows.row(index)
        start = encode_prompt(tokenizer, template.prompt(problem.question))
        assert tokens[: len(start)].tolist() == start
        assert tokens[-1] == tokenizer.eos_token_id
        assert mask.tolist() == [0] * len(start) + [1] * (len(tokens) - len(start))
        assert tokenizer.decode(tokens[len(start) : -1]) == problem.solution
    assert rows.tokens.dtype == np.uint16


def test_cache_is_used_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = prepare_rows(config(tmp_path), DEMO_MODEL)
    assert "30 rows, " in capsys.readouterr().err
    second = prepare_rows(config(tmp_path), DEMO_MODEL)
    assert "holds these rows already: 30, loaded in" in capsys.readouterr().err
    np.testing.assert_array_equal(first.tokens, second.tokens)
    assert first.stats == second.stats


def test_every_setting_that_changes_the_rows_has_its_own_file(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {}, {"split": "test"}, {"template": "plain"}, {"max_seq_len": 80}, {"max_seq_len": 80, "overflow": "drop"},
        {"max_seq_len": 80, "overflow": "truncate"}, {"train_on_prompt": True}, {"num_examples": 20},
        {"solution_column": "answer"},
    ]  # fmt: skip
    seen = {prepare_rows(config(tmp_path, **change), DEMO_MODEL).tokens.tobytes() for change in changes}
    assert len(files(tmp_path)) == len(changes)
    assert len(seen) >= len(changes) - 1  # train_on_prompt changes the mask alone
    prepare_rows(config(tmp_path, split="train"), DEMO_MODEL)
    assert len(files(tmp_path)) == len(changes), "the default split by its name is the same data"


def test_another_tokenizer_has_its_own_file(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((DEMO_MODEL / name).read_bytes())
    prepare_rows(config(tmp_path), DEMO_MODEL)
    prepare_rows(config(tmp_path), folder)
    assert len(files(tmp_path)) == 1, "the same tokenizer elsewhere"
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<pad>"}))
    prepare_rows(config(tmp_path), folder)
    assert len(files(tmp_path)) == 2


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["flipped", "cut", "empty", "malicious"])
def test_damaged_cache_is_rebuilt(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    rows = prepare_rows(config(tmp_path), DEMO_MODEL)
    expected = np.array(rows.tokens)
    (path,) = (tmp_path / "cache").glob("*.pkl")
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    witness = tmp_path / "ran"
    damaged = {
        "flipped": bytes(data),
        "cut": bytes(data[:-100]),
        "empty": b"",
        "malicious": pickle.dumps(Malicious(witness)),
    }
    path.unlink()  # the rows above are still mapped
    path.write_bytes(damaged[kind])
    rebuilt = prepare_rows(config(tmp_path), DEMO_MODEL)
    assert f"{path} is damaged (" in (said := capsys.readouterr().err) and "; rebuilding" in said
    np.testing.assert_array_equal(rebuilt.tokens, expected)
    assert not witness.exists()
    prepare_rows(config(tmp_path), DEMO_MODEL)
    assert "holds these rows already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "stats",
    [{"problems": "x"}, {"mixture": "{"}, {"mixture": "[5]"}, {"mixture": '[{"name": 1}]'}, {"mixture": "[" * 100_000},
     {"overlong_rows": 3, "overflow": "no"}, {"mixture": 5}],
)  # fmt: skip
def test_statistics_of_odd_types_are_one_error(stats: dict[str, Any]) -> None:
    rows = TokenRows(np.zeros(2, np.uint16), np.ones(2, np.uint8), np.array([0, 2]), stats=stats)
    with pytest.raises(MlxmathError, match="the statistics of the prepared rows are damaged"):
        statistics(rows)


def test_statistics(tmp_path: Path) -> None:
    rows = [{"problem": "Add 1 and 1.", "solution": "1 + 1 = 2\n" * 40}, {"problem": None, "solution": "s"}]
    rows += [{"problem": f"Add {i}.", "solution": "2"} for i in range(3)]
    path = write_lines(tmp_path / "a.jsonl", rows)
    prepared = prepare_rows(config(tmp_path, dataset=path, max_seq_len=64), DEMO_MODEL)
    text = "\n".join(statistics(prepared))
    assert f"4 problems became {len(prepared)} rows of" in text
    assert "1 were longer than 64 tokens and were split into chunks\n" in text
    assert "a.jsonl (train): 1 unusable: empty problem" in text
    assert re.search(r"a\.jsonl \(train\) │ +5 │ +1 │ +0 │ +0 │ +0 │ +4 │ +4 │", text)
    assert text.count("█") > 10
    assert "tokens a row: min " in text and "max 64" in text
    whole = prepare_rows(config(tmp_path, dataset=path), DEMO_MODEL)
    assert whole.num_targets == prepared.num_targets, "a chunk loses no target"
    cut = prepare_rows(config(tmp_path, dataset=path, max_seq_len=64, overflow="truncate"), DEMO_MODEL)
    assert f"were cut; {whole.num_targets - cut.num_targets:,} targets lost" in "\n".join(statistics(cut))
    drop = prepare_rows(config(tmp_path, dataset=path, max_seq_len=64, overflow="drop"), DEMO_MODEL)
    assert len(drop) == 3 and "were left out" in "\n".join(statistics(drop))


@pytest.mark.parametrize(("limit", "value"), [("BATCH_ROWS", 7), ("BATCH_CHARACTERS", 900)])
def test_more_rows_than_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    whole = prepare_rows(config(tmp_path), DEMO_MODEL)
    monkeypatch.setattr(f"mlxmath.data.tokenize.{limit}", value)
    pieces = prepare_rows(config(tmp_path, cache_dir=str(tmp_path / "other")), DEMO_MODEL)
    np.testing.assert_array_equal(whole.tokens, pieces.tokens)
    np.testing.assert_array_equal(whole.offsets, pieces.offsets)
    assert whole.stats == pieces.stats


def test_progress_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("mlxmath.runtime.console.EVERY_S", 0.0)
    prepare_rows(config(tmp_path), DEMO_MODEL)
    assert "tokenizing 30/30 rows" in capsys.readouterr().err


def test_nothing_to_train_on(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"problem": "q", "solution": " "}])
    with pytest.raises(MlxmathError, match=r"a\.jsonl: no row with a target is left \(1 unusable: empty solution"):
        prepare_rows(config(tmp_path, dataset=path), DEMO_MODEL)
    path = write_lines(tmp_path / "b.jsonl", [{"problem": "q " * 50, "solution": "s"}])
    with pytest.raises(MlxmathError, match="1 rows were read; --max-seq-len 8, --overflow truncate"):
        prepare_rows(config(tmp_path, dataset=path, max_seq_len=8, overflow="truncate"), DEMO_MODEL)
    assert not files(tmp_path)


def test_wrong_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no template 'tuter'"):
        prepare_rows(config(tmp_path, template="tuter"), DEMO_MODEL)
    with pytest.raises(InputError, match="holds no tokenizer"):
        prepare_rows(config(tmp_path), tmp_path)


def test_shown_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = prepare_rows(config(tmp_path), DEMO_MODEL)
    show_rows(rows, DEMO_MODEL, 2)
    shown = capsys.readouterr().out
    problems = list(load_problems(config(tmp_path)))
    for problem in problems[:2]:
        assert f"{joined(get_template('tutor').prompt(problem.question))}⟦{problem.solution}</s>⟧\n" in shown
    assert shown.count("--- row ") == 2


def test_contaminated_and_unusable_rows_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = write_lines(
        tmp_path / "benchmark.jsonl", [{"problem": f"Known {n}", "solution": "1"} for n in range(2)]
    )
    rows = [{"problem": f"New {n}", "solution": "2", "note": "x"} for n in range(9)]
    rows[3:3] = [{"problem": "Known 1", "solution": "1"}, {"problem": "Half \ud83d", "solution": "1"}]
    prepared = prepare_rows(
        config(tmp_path, dataset=write_lines(tmp_path / "a.jsonl", rows), decontaminate=(benchmark,)), DEMO_MODEL
    )
    assert "columns not used: note" in capsys.readouterr().err
    text = "\n".join(statistics(prepared))
    assert f"1 problem left out that occur in {benchmark}: 3" in text
    assert "1 unusable: problem with half a character (a lone surrogate) (the first is line 5)" in text
    assert "9 problems became 9 rows" in text
    assert gc.get_freeze_count() == 0


def test_tokenizer_of_another_model_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "mlx_model"
    model = ModelConfig(model="demo", mlx_path=str(folder))
    assert tokenizer_folder(model) == folder
    with pytest.raises(MlxmathError):
        tokenizer_folder(ModelConfig(model=str(tmp_path / "absent"), mlx_path=str(folder)))


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(main, "--debug", "--show", "1")
    assert re.search(r"data\.num_examples +10 ", result.stderr)
    assert "10 problems became 10 rows" in result.stderr
    assert (tmp_path / "cache" / "token_lengths.png").read_bytes()[:4] == b"\x89PNG"
    assert result.stdout.startswith("--- row 0: ")
    (path,) = (tmp_path / "cache").glob("*.pkl")
    assert len(TokenRows.load(path)) == 10
    assert "did you mean 'problem'" in invoke(main, "--debug", "--question-column", "problm", code=2).stderr


def test_mixture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["easy", "hard", "medium", "very hard"]
    a = [{"problem": f"Add {i} and {i}.", "solution": f"{2 * i}", "difficulty": names[i % 4]} for i in range(40)]
    b = [{"question": f"Take {i} from {i}.", "answer": "0\n#### 0"} for i in range(20)]
    settings: dict[str, Any] = {
        "sources": [
            {"dataset": str(tmp_path / "absent.jsonl"), "fallback": write_lines(tmp_path / "a.jsonl", a), "count": 8},
            {"dataset": write_lines(tmp_path / "b.jsonl", b), "filters": "question contains 1"},
        ],
        "num_examples": None,
        "curriculum": "easy-to-hard",
    }
    rows = prepare_rows(config(tmp_path, **settings), DEMO_MODEL)
    assert len(rows) == 8 + 11
    assert rows.ranks[8:].tolist() == [0] * 11, "all of the same length"
    assert len(set(rows.ranks[:8].tolist())) > 1
    said = capsys.readouterr().err
    assert "absent.jsonl cannot be had" in said
    text = "\n".join(statistics(rows))
    assert f"a.jsonl (train) stands in for {tmp_path}/absent.jsonl, which could not be had" in text
    assert "b.jsonl (train): 9 left out by the filter 'question contains 1'" in text
    assert "from easy to hard by difficulty" in text
    again = prepare_rows(config(tmp_path, **settings), DEMO_MODEL)
    assert (again.fingerprint, again.stats) == (rows.fingerprint, rows.stats)
    prepare_rows(config(tmp_path, **(settings | {"mixture_seed": 1})), DEMO_MODEL)
    assert len(files(tmp_path)) == 2


def test_ranks_follow_chunks_and_problems_left_out(tmp_path: Path) -> None:
    data = [
        {"problem": "A.", "solution": "1 + 1 = 2\n" * 40, "level": 3},
        {"problem": "B.", "solution": "</s>", "level": 1},
        {"problem": "C.", "solution": "2", "level": 2},
    ]
    path = write_lines(tmp_path / "a.jsonl", data)
    settings = {"dataset": path, "max_seq_len": 64, "curriculum": "easy-to-hard"}
    rows = prepare_rows(config(tmp_path, **settings), DEMO_MODEL)
    chunks = len(rows) - 2
    assert chunks > 3
    assert rows.ranks.tolist() == [666] * chunks + [0, 333]
    assert rows.sources.tolist() == [0] * chunks + [1, 2]
    dropped = prepare_rows(config(tmp_path, **settings, overflow="drop"), DEMO_MODEL)
    assert (dropped.ranks.tolist(), dropped.sources.tolist()) == ([0, 333], [1, 2])
