"""`import mlxmath`: what a program or a notebook gets."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import mlxmath
from mlxmath.commands import evaluate
from mlxmath.errors import InputError
from tests.helpers import ENVIRONMENT, invoke

ROWS = [
    {"problem": f"What is {a} + {b}?", "answer": f"{a} + {b} = {a + b}\n#### {a + b}"}
    for a in (3, 4, 5, 6)
    for b in (1, 2)
]
FEW: dict[str, Any] = {
    "model": "demo", "max_steps": 3, "batch_size": 2, "learning_rate": 1e-3, "max_seq_len": 64, "save_every": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_tune_compare_and_grade() -> None:
    result = mlxmath.sft(ROWS, **FEW)
    assert result.ending == "finished" and result.is_complete and result.steps == 3 and np.isfinite(result.loss)
    assert [event["step"] for event in result.events if event["event"] == "step"] == [1, 2, 3]
    model = mlxmath.load("mlx_model", result.folder)
    one, two = mlxmath.generate(model, ["What is 3 + 1?", "What is 4 + 2?"], max_new_tokens=4)
    assert one.text == mlxmath.generate(model, "What is 3 + 1?", max_new_tokens=4).text and two.tokens
    found = mlxmath.evaluate("demo", adapters=result.folder, limit=2, max_tokens=4)
    assert found.accuracy.keys() == {"base", "tuned"} and (found.folder / "report.html").is_file()
    assert len(found.comparisons) == 1
    assert mlxmath.grade("so it is \\boxed{1/2}", "0.5").correct and not mlxmath.grade("3", "4").correct


def test_formulas_and_tools_that_are_asked_for_are_in_the_prompts() -> None:
    mlxmath.convert("demo")
    few: dict[str, Any] = {"adapters": (), "limit": 6, "max_tokens": 2}
    help_: dict[str, Any] = {"retrieve": "bundled", "tools": "calculator"}
    with_both = mlxmath.evaluate("demo", run_name="compared", **few, **help_)
    labels = ["base", "base + calculator", "base + formulas", "base + formulas + calculator"]
    assert sorted(with_both.accuracy) == labels
    assert with_both.results["contestants"]["base + formulas"]["formulas"] > 0
    alone = mlxmath.evaluate("demo", compare=False, run_name="alone", **few, **help_)
    assert alone.accuracy.keys() == {"base"} and alone.results["contestants"]["base"]["formulas"] > 0


def test_a_file_names_the_model_and_the_adapter(tmp_path: Path) -> None:
    few = FEW | {"max_steps": 1, "mlx_path": "base", "adapter_path": "tuned"}
    assert mlxmath.sft(ROWS, **few).ending == "finished"
    asked: dict[str, Any] = {"limit": 1, "max_tokens": 2, "run_name": "python", "config": "tuned/run.toml"}
    assert mlxmath.evaluate("demo", **asked).accuracy.keys() == {"base", "tuned"}
    rest = ("--benchmark", "demo", "--limit", "1", "--max-tokens", "2", "--run-name", "command")
    invoke(evaluate.main, "--config", "tuned/run.toml", *rest)
    for name in ("python", "command"):
        used = json.loads(Path("evaluation_results", name, "settings.json").read_text())["contestants"][-1]
        assert (Path(used["folder"]), Path(used["adapter_folder"])) == (tmp_path / "base", tmp_path / "tuned")
    written = mlxmath.export("peft", config="tuned/run.toml", export_path="out")
    assert load_file(written.folder / "adapter_model.safetensors")


def test_nothing_is_printed_unless_asked() -> None:
    script = (
        f"import mlxmath\nresult = mlxmath.sft({ROWS!r}, verbose=False, **{FEW!r})\nprint(result.ending)\n"
        "mlxmath.evaluate('demo', adapters=result.folder, limit=2, max_tokens=4, verbose=False)\n"
    )
    for verbose in (False, True):
        command = [sys.executable, "-c", script.replace("verbose=False", f"verbose={verbose}, overwrite={verbose}")]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
        for text in ("finished at step 3 of 3", "accuracy"):
            assert (text in done.stderr) == verbose, done.stderr
        assert done.stdout == "finished\n" and (verbose or done.stderr == "")


def test_a_second_run_in_the_process_equals_the_first_and_a_run_of_the_command() -> None:
    first, second = (mlxmath.sft(ROWS, adapter_path=name, **FEW).folder for name in ("one", "two"))
    (Path("rows.jsonl")).write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    command = [sys.executable, "-m", "mlxmath.train", "--dataset", "rows.jsonl", "--adapter-path", "three"]
    command += [part for name, value in FEW.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two, three = (load_file(f"{folder}/adapters.safetensors") for folder in (first, second, "three"))
    assert all(np.array_equal(one[name], two[name]) and np.array_equal(one[name], three[name]) for name in one)


def test_what_a_callback_raises_comes_out_and_nothing_is_left_behind() -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 3:
            raise ZeroDivisionError("mine")

    threads, handlers, device = _threads(), _handlers(), _device()
    with pytest.raises(ZeroDivisionError, match="mine"):
        mlxmath.sft(ROWS, callback=stop, memory_limit_gb=1.0, workers=2, **FEW)
    assert _threads() <= threads and _handlers() == handlers and _device() == device
    assert not list(Path("adapters").rglob(".*"))
    assert json.loads(Path("adapters/run.json").read_text())["status"] == "failed"
    result = mlxmath.sft(ROWS, resume=True, **FEW)
    straight = mlxmath.sft(ROWS, adapter_path="straight", **FEW)
    one, other = (load_file(f"{each.folder}/adapters.safetensors") for each in (result, straight))
    assert all(np.array_equal(one[name], other[name]) for name in one)


def _handlers() -> list[Any]:
    import signal

    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


def _device() -> tuple[Any, ...]:
    import mlx.core as mx
    from threadpoolctl import threadpool_info

    cache = mx.set_cache_limit(0)
    mx.set_cache_limit(cache)
    blas = {pool["filepath"]: pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}
    return mx.default_device(), mx.get_memory_limit(), cache, blas


def _threads() -> set[threading.Thread]:
    """Without those of the kernels' pool, which is the process's as NumPy's is."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith("mlxmath")}


def test_the_device_is_as_it_was_after_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    import mlxmath.runtime.device as device

    opened = []
    real = device.Backend.open
    monkeypatch.setattr(device.Backend, "open", lambda *given, **more: opened.append(given) or real(*given, **more))
    threads, limit = _threads(), {"memory_limit_gb": 1.0}
    mlxmath.convert("demo")
    before = _device()
    rows = [row | {"answer": row["answer"].split()[-1]} for row in ROWS]
    for number, call in enumerate((
        lambda: mlxmath.sft(ROWS, **FEW, **limit),
        lambda: mlxmath.grpo(
            rows, rewards=[lambda completions: [1.0] * len(completions)], num_generations=2, max_completion_length=4,
            adapter_path="drawn", **limit, **FEW,
        ),
        lambda: mlxmath.evaluate("demo", limit=1, max_tokens=2, **limit),
        lambda: mlxmath.distill(
            teacher="mlx_model", dataset="demo", num_examples=2, samples=1, max_tokens=2, instruction="x", **limit
        ),
        lambda: mlxmath.plan(model="demo", **limit),
        lambda: mlxmath.generate("mlx_model", "1 + 1", max_new_tokens=2),
    )):  # fmt: skip
        call()
        assert len(opened) > number and _device() == before, number
    with pytest.raises(InputError, match="is not usable|no_such|gone"):
        mlxmath.sft("gone.jsonl", overwrite=True, **FEW, **limit)
    assert _device() == before and _threads() <= threads


def test_a_trainer_that_cannot_begin_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlxmath.training.accumulate import Workers

    def used(workers: Any) -> int:
        workers.run(lambda gradients, share: share, [0, 1])
        raise ZeroDivisionError("after its workers were made")

    monkeypatch.setattr(Workers, "takes_parts", property(used))
    monkeypatch.setattr(Workers, "how", property(used))
    threads = _threads()
    with pytest.raises(ZeroDivisionError):
        mlxmath.sft(ROWS, workers=2, **FEW)
    assert _threads() <= threads and not Path("adapters").exists()


def test_it_runs_in_another_thread() -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(mlxmath.sft(ROWS, **FEW)))
    thread.start()
    thread.join()
    assert found[0].ending == "finished"


def test_rewards_of_trls_form_and_of_ours() -> None:
    seen: dict[str, Any] = {}

    def brief(completions: list[str], level: list[str], gold: list[str], **_: Any) -> list[float]:
        seen.update(level=level, gold=gold)
        return [-len(text) / 100 for text in completions]

    def right(samples: Any) -> list[float]:
        seen["samples"] = samples
        return [float(sample.grade.correct) for sample in samples]

    rows = [{"problem": row["problem"], "answer": row["answer"].split()[-1], "level": "easy"} for row in ROWS]
    result = mlxmath.grpo(
        rows, rewards=[brief, right], model="demo", max_steps=1, batch_size=8, num_generations=4,
        max_completion_length=8, max_seq_len=64, learning_rate=1e-3,
    )  # fmt: skip
    assert set(seen["level"]) == {"easy"} and set(seen["gold"]) <= {row["answer"] for row in rows}
    assert len(seen["samples"]) == len(seen["gold"]) and len(seen["samples"][0].tokens) == seen["samples"][0].num_tokens
    (rollout,) = [event for event in result.events if event["event"] == "rollout"][:1]
    assert [name.rpartition(".")[2] for name in rollout["rewards"]] == ["brief", "right"]


def test_pairs() -> None:
    pairs = [{"prompt": row["problem"], "chosen": row["answer"], "rejected": "no idea"} for row in ROWS]
    for method in (mlxmath.dpo, mlxmath.reward_model):
        result = method(pairs, adapter_path=method.__name__, **FEW)
        assert result.steps == 3 and {"margin", "accuracy"} <= result.events[-2].keys()


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: mlxmath.sft(ROWS, learning_rat=1), r"learning_rat=.*did you mean 'learning_rate'"),
        (lambda: mlxmath.sft(ROWS, learning_rate="fast"), r"learning_rate= .*found"),
        (lambda: mlxmath.sft([]), "data=: expected at least one row"),
        (lambda: mlxmath.sft([{"problem": object()}]), "data=: expected rows of plain values"),
        (lambda: mlxmath.sft("gone.jsonl", model="demo"), "gone.jsonl"),
        (lambda: mlxmath.evaluate("gone", model="demo"), "gone"),
        (
            lambda: mlxmath.sft(ROWS, set=["grpo.beta=0.1"], **FEW),
            r"^set= grpo\.beta: the settings of \[grpo\] have no",
        ),
        (lambda: mlxmath.sft(ROWS, adapter_path=__file__, **FEW), r"^adapter_path=: .*test_api\.py is a file"),
    ],
)
def test_errors_are_exceptions_that_name_the_argument(call: Any, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        call()


EVERY = """
import importlib, pkgutil, sys
import mlxmath
assert "mlx" not in sys.modules and "numpy" not in sys.modules, "importing mlxmath imports nothing"
names = [m.name for m in pkgutil.walk_packages(mlxmath.__path__, "mlxmath.") if not m.name.endswith("__main__")]
for name in sorted(names, reverse=bool(int(sys.argv[1]))):
    importlib.import_module(name)
for name in mlxmath.__all__:
    assert callable(getattr(mlxmath, name)), name
    assert getattr(mlxmath, name).__doc__, name
assert mlxmath.grade("7", "7").correct
"""


@pytest.mark.parametrize("backwards", [0, 1])
def test_no_module_hides_a_function(backwards: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EVERY, str(backwards)], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
