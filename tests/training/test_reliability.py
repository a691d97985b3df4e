"""Runs that are ended, damaged, started twice or given poison, on a random model that is not the bundled one."""

import json
import resource
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import mlxmath
from mlxmath.config.schema import ModelConfig
from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.locks import locked, making
from mlxmath.runtime.sealed import sealed_json, unsealed_json
from mlxmath.training.record import EARLIER
from mlxmath.weights import convert as weights_convert
from tests.data.material import write_lines
from tests.helpers import events
from tests.models.architectures import VOCAB_SIZE, write

SUMS = [(a, b) for a in range(3, 9) for b in (1, 2)]
ROWS = [{"problem": f"What is {a} + {b}?", "solution": f"#### {a + b}", "answer": str(a + b)} for a, b in SUMS]
PAIRS = [{"prompt": row["problem"], "chosen": row["solution"], "rejected": "no idea"} for row in ROWS]
SHORT = {"model": "llama", "max_seq_len": 256, "batch_size": 4, "learning_rate": 1e-3, "max_steps": 3, "save_every": 1}
DRAWN = {
    "num_generations": 4,
    "max_completion_length": 4,
    "rewards": [lambda completions: [float(sum(map(ord, each))) for each in completions]],
}
METHODS: dict[str, Callable[..., Any]] = {
    "train": lambda **given: mlxmath.sft(ROWS, **SHORT | given),
    "dpo": lambda **given: mlxmath.dpo(PAIRS, **SHORT | given),
    "reward-model": lambda **given: mlxmath.reward_model(PAIRS, **SHORT | given),
    "grpo": lambda **given: mlxmath.grpo(ROWS, **SHORT | DRAWN | given),
}


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("llama", tmp_path)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def damage(checkpoint: Path) -> None:
    with (checkpoint / "optimizer.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")


@pytest.mark.parametrize("change", [{"tuning": 5}, {"batching": 5}, {"blas": 7}, {"validation": "x"}], ids=str)
def test_a_checkpoint_that_no_run_has_written_is_one_line(change: dict[str, Any]) -> None:
    METHODS["train"](validation_split=0.3)
    path = max(Path("adapters/checkpoints").iterdir()) / "state.json"
    state = unsealed_json(path, ())
    sealed_json(path, state | {"state": state["state"] | change})
    with pytest.raises(MlxmathError, match="holds what no run has written: "):
        METHODS["train"](validation_split=0.3, resume=True)


def test_a_run_without_a_whole_checkpoint_begins_anew(capsys: pytest.CaptureFixture[str]) -> None:
    adapters = Path("adapters/adapters.safetensors")
    METHODS["train"](validation_split=0.3)
    straight = adapters.read_bytes()
    best = Path("adapters/best/adapters.safetensors").read_bytes()

    (newest, before) = sorted(Path("adapters/checkpoints").iterdir(), reverse=True)
    damage(newest)
    METHODS["train"](resume=True, verbose=True, validation_split=0.3)
    error = capsys.readouterr().err
    assert f"{newest / 'optimizer.safetensors'} is damaged" in error and f"resuming {before} (step 2)" in error
    assert adapters.read_bytes() == straight

    for checkpoint in Path("adapters/checkpoints").iterdir():
        damage(checkpoint)
    METHODS["train"](resume=True, verbose=True, max_steps=2)
    assert "holds no whole checkpoint; starting from the beginning" in capsys.readouterr().err
    earlier = adapters.parent / EARLIER
    assert (earlier / adapters.name).read_bytes() == straight != adapters.read_bytes()
    assert (earlier / "best" / adapters.name).read_bytes() == best and not Path("adapters/best").exists()
    assert mlxmath.generate(mlxmath.load("llama", earlier), ROWS[0]["problem"], max_new_tokens=2).text
    assert [event["step"] for event in events(Path()) if event["event"] == "step"] == [1, 2]

    shutil.rmtree("adapters/checkpoints")  # as a full disk that took the adapters alone
    record = Path("adapters/run.json")
    sealed_json(record, unsealed_json(record, None) | {"status": "failed"})
    METHODS["train"](resume=True, max_steps=1)
    assert Path(f"adapters/{EARLIER}-2/adapters.safetensors").exists()


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_killed_before_its_first_checkpoint_was_whole_begins_anew(method: str) -> None:
    half = Path("adapters/checkpoints/.step-1.00000000.1.abc.tmp")
    half.mkdir(parents=True)
    (half / "adapters.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match="holds the adapters of another run. Use resume= to continue it"):
        METHODS[method](max_steps=1)
    assert METHODS[method](max_steps=1, resume=True).ending == "finished"


@pytest.mark.parametrize("content", [b"", b"{\xff", b'{"fine_tune_type": "lora"}'])
def test_a_damaged_adapter_config_is_written_anew(content: bytes) -> None:
    METHODS["train"]()
    straight = Path("adapters/adapters.safetensors").read_bytes()
    config = Path("adapters/adapter_config.json")
    whole = config.read_bytes()
    config.write_bytes(content)
    (config.parent / "checkpoints/step-²").mkdir()
    METHODS["train"](resume=True)
    assert config.read_bytes() == whole
    assert Path("adapters/adapters.safetensors").read_bytes() == straight


def test_the_adapters_are_saved_where_the_checkpoint_does_not_fit() -> None:
    METHODS["train"]()
    straight = contents(Path("adapters"))
    sizes = [
        len(straight[Path("adapters/checkpoints/step-3") / f"{name}.safetensors"]) for name in ("adapters", "optimizer")
    ]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(event: dict[str, Any]) -> None:
        if (event["event"], event["step"]) == ("step", 3):
            resource.setrlimit(resource.RLIMIT_FSIZE, (sum(sizes) // 2, before[1]))

    try:
        with pytest.raises(MlxmathError, match="cannot write .*step-3.*: File too large"):
            METHODS["train"](overwrite=True, save_every=100, callback=limit)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert Path("adapters/adapters.safetensors").read_bytes() == straight[Path("adapters/adapters.safetensors")]
    assert METHODS["train"](resume=True).steps == 3


@pytest.mark.parametrize("method", ["train", "dpo", "grpo"])
def test_a_run_does_not_write_over_the_adapter_that_it_starts_from(method: str) -> None:
    METHODS["train"](max_steps=1, validation_split=0.3)
    before = contents(Path("adapters"))
    for initial in ("adapters", "./adapters/best", "adapters/checkpoints/step-1"):
        with pytest.raises(InputError, match="adapter_path=.*; write the result to another"):
            METHODS[method](init_adapter=initial, overwrite=True)
    assert contents(Path("adapters")) == before


def test_adapters_that_are_no_runs_are_not_replaced() -> None:
    METHODS["train"](max_steps=1)
    shutil.rmtree("adapters/checkpoints")
    before = contents(Path("adapters"))
    with pytest.raises(InputError, match="adapters of another run, and no checkpoint to go on from"):
        METHODS["train"](max_steps=1, resume=True)
    assert contents(Path("adapters")) == before


@pytest.mark.parametrize("method", [*METHODS, "evaluate", "distill"])
def test_what_somebody_writes_to_is_nobody_elses(method: str) -> None:
    write_lines(Path("solutions.jsonl"), ROWS)
    calls = METHODS | {
        "evaluate": lambda **given: mlxmath.evaluate(
            "solutions.jsonl", model="llama", adapters=(), limit=2, max_tokens=2, results_path=".", run_name="adapters",
            **given,
        ),
        "distill": lambda **given: mlxmath.distill(rank_only="solutions.jsonl", output_path="adapters", **given),
    }  # fmt: skip
    folder = Path("adapters")
    calls[method](**{"max_steps": 1} if method in METHODS else {})
    assert not (folder / ".lock").exists()
    before = contents(folder)
    with locked(folder, "--x", "mlxmath y"), pytest.raises(InputError, match=r"is in use by `mlxmath y`, process \d+"):
        calls[method](overwrite=True)
    assert contents(folder) == before
    calls[method](**{"max_steps": 1} if method in METHODS else {}, overwrite=True)


def test_two_do_not_export_into_one_folder() -> None:
    METHODS["train"](max_steps=1)
    with making(Path("out"), "mlxmath y"), pytest.raises(InputError, match="out is in use by `mlxmath y`"):
        mlxmath.export("peft", "mlx_model", export_path="out", overwrite=True)
    assert not Path("out").exists()
    assert mlxmath.export("peft", "mlx_model", export_path="out").folder == Path("out")
    assert not list(Path().glob(".out*"))


def test_of_two_that_want_a_model_one_makes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made, config = list[str](), ModelConfig(model="llama", mlx_path="made")
    real = weights_convert.convert

    def convert(*given: Any) -> Any:
        made.append("")
        time.sleep(0.5)
        return real(*given)

    monkeypatch.setattr(weights_convert, "convert", convert)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(weights_convert.ensure_model, [config] * 2)
    assert first == second and len(made) == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_wrong_column_is_told_before_a_model_is_converted(method: str) -> None:
    for given in ({"question_column": "absent"}, {"filters": ["absent > 1"]}, {"validation_dataset": "absent.jsonl"}):
        with pytest.raises(InputError, match="absent"):
            METHODS[method](max_steps=1, **given)
    assert not Path("mlx_model").exists()


def test_a_project_that_was_moved_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "before"
    write("llama", place)
    write_lines(place / "rows.jsonl", ROWS)
    monkeypatch.chdir(place)
    given = SHORT | {"validation_split": 0.3}
    mlxmath.sft("rows.jsonl", **given)
    adapters = Path("adapters/adapters.safetensors")
    straight = adapters.read_bytes()
    for path in (adapters, Path("adapters/checkpoints/step-3/state.json")):
        path.unlink()
    place.rename(tmp_path / "after")
    monkeypatch.chdir(tmp_path / "after")
    result = mlxmath.sft("rows.jsonl", resume=True, **given)
    assert result.ending == "finished" and adapters.read_bytes() == straight
    assert [event["event"] for event in events(Path())].count("resume") == 1


def test_checkpoints_that_are_kept_elsewhere_stay_there() -> None:
    METHODS["train"](max_steps=3)
    shutil.move("adapters/checkpoints", "elsewhere")
    Path("elsewhere/mine").write_text("not the run's")
    Path("adapters/checkpoints").symlink_to("../elsewhere")
    METHODS["train"](max_steps=2, overwrite=True)
    assert Path("adapters/checkpoints").is_symlink()
    assert {path.name for path in Path("elsewhere").iterdir()} == {"step-1", "step-2", "mine"}


@pytest.mark.parametrize("is_added", [True, False])
@pytest.mark.parametrize("method", [*METHODS, "generate", "evaluate"])
def test_a_token_beyond_the_embedding_is_refused(method: str, is_added: bool) -> None:
    path = Path("llama/tokenizer.json")
    tokenizer = json.loads(path.read_text())
    if is_added:
        added = {"id": VOCAB_SIZE, "content": "What", "special": False}
        tokenizer["added_tokens"].append(tokenizer["added_tokens"][-1] | added)
    else:
        tokenizer["model"]["vocab"]["Wh"] = VOCAB_SIZE
        tokenizer["model"]["merges"].append(["W", "h"])
    path.write_text(json.dumps(tokenizer))
    write_lines(Path("problems.jsonl"), ROWS)
    calls = METHODS | {
        "generate": lambda: mlxmath.generate("llama", ROWS[0]["problem"], max_new_tokens=2),
        "evaluate": lambda: mlxmath.evaluate("problems.jsonl", model="llama", adapters=(), max_tokens=2),
    }
    with pytest.raises(MlxmathError, match=f"token id {VOCAB_SIZE}, but the embedding ends at {VOCAB_SIZE - 1}"):
        calls[method]()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_poisoned_adapters_are_refused(value: float) -> None:
    METHODS["train"](max_steps=1)
    path = "adapters/adapters.safetensors"
    arrays = mx.load(path)
    mx.eval(arrays)
    name = sorted(arrays)[-1]
    arrays[name][0, 0] = value
    mx.save_safetensors(path, arrays, metadata={"format": "mlx"})
    for call in (
        lambda: mlxmath.load("llama", "adapters"),
        lambda: mlxmath.evaluate("demo", model="llama", limit=1, max_tokens=2),
        *(lambda m=m: METHODS[m](init_adapter="adapters", adapter_path="next") for m in ("train", "dpo", "grpo")),
    ):
        with pytest.raises(
            MlxmathError, match=rf"adapters.safetensors is damaged or its training diverged: {name} holds"
        ):
            call()
    assert not Path("next").exists()
