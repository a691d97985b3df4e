"""The benchmarks run: their options, their arithmetic, and one tiny run of each. Nothing here looks at a time."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from benchmarks import gpu_parts
from benchmarks.bench_grpo import ratios as grpo_ratios
from benchmarks.contestants import entries
from benchmarks.gpu import opened
from benchmarks.gpu_plan import FULL, training_entries
from benchmarks.processes import run_process
from benchmarks.random_weights import write_weights
from benchmarks.shapes import SHAPES
from benchmarks.training import loss_disagreements, ratios
from tests.helpers import ENVIRONMENT, REPOSITORY

BENCHMARKS = REPOSITORY / "benchmarks"
DEMO_ROWS = REPOSITORY / "mlxmath" / "demo" / "problems" / "train.jsonl"


def run(script: str, *arguments: str | Path) -> str:
    result = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *map(str, arguments)],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


SCRIPTS = sorted(path.name for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text())


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script: str) -> None:
    assert script in run(script, "--help")


def test_gpu_dry_run_names_all_parts() -> None:
    text = run("gpu.py", "--dry-run")
    for part in ("tests of backends", "0.5b", "1.5b", "7b", "mlxmath", "mlx_lm.lora", "torch + peft", "bfloat16"):
        assert part in text


def test_a_further_call_on_the_same_gpu_adds_to_the_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu.gpu_parts.gpu", lambda: "H200")
    options = argparse.Namespace(backend="cuda", tiny=False, fresh=False)
    out = tmp_path / "gpu.json"
    record = opened(out, options)
    record["shapes"]["0.5b"] = {"matmul": 1}
    out.write_text(json.dumps(record))
    assert opened(out, options)["shapes"] == {"0.5b": {"matmul": 1}}
    options.fresh = True
    assert opened(out, options)["shapes"] == {}
    options.fresh = False
    monkeypatch.setattr("benchmarks.gpu.gpu_parts.gpu", lambda: "another")
    assert opened(out, options)["shapes"] == {}


def test_what_trains_on_a_gpu() -> None:
    names = ["ours", "mlx_lm", "torch"]
    assert [entry.name for entry in training_entries(names, FULL, 16)] == [
        "mlxmath, batch 32", "mlx_lm.lora, batch 4", "mlx_lm.lora, batch 32", "torch + peft, batch 32",
        "torch + peft, batch 32, compiled",
    ]  # fmt: skip
    assert [entry.setting.get("bits") for entry in training_entries(names, FULL, 4, Path("dense"))] == [None, None, 4]


@pytest.mark.slow
def test_gpu_benchmark(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    run(
        "gpu.py", "--backend", "cpu", "--tiny", "--parts", "parity,matmul,profile,generate", "--bits", "4", "--out", out
    )
    record = json.loads(out.read_text())
    assert record["parity"]["disagreeing"] == [] and record["parity"]["worst_float32"] < 1e-4
    part = record["shapes"]["0.5b"]
    assert part["matmul"]["float32"]["flops_per_s"] > 1e8
    assert part["4-bit"]["profile"]["milliseconds"]["step"] > 0
    assert all(found["tokens_per_s"] > 0 for found in part["4-bit"]["generate"].values())


@pytest.mark.slow
def test_training_benchmark(tmp_path: Path) -> None:
    out = tmp_path / "train.json"
    run("bench_train.py", "--shape", "tiny", "--contestants", "ours,mlx_lm,unsloth", "--batches", "4", "--rows", "16",
        "--data", DEMO_ROWS, "--work", tmp_path / "work", "--out", out)  # fmt: skip
    record = json.loads(out.read_text())
    part = record["shapes"]["tiny"]
    outcomes = {run["name"]: run for run in part["runs"]}
    assert {run["contestant"] for run in part["runs"]} == {"ours", "mlx_lm", "unsloth"}
    for name, outcome in outcomes.items():
        if outcome["contestant"] == "unsloth":
            assert "--peer-python" in outcome["skipped"]
            continue
        assert outcome.get("tokens_per_s", 0) > 0, (name, outcome)
        assert outcome["above_weights_bytes"] > 0 and outcome["peak_rss_bytes"] > 0 and outcome["of_ceiling"] > 0
    assert part["loss_disagreements"] == []
    assert part["ratios"][0]["peer"] == "mlx_lm.lora"
    assert record["machine"]["versions"]["mlx"]


@pytest.mark.slow
def test_memory_benchmark(tmp_path: Path) -> None:
    out = tmp_path / "memory.json"
    run("bench_memory.py", "--shape", "tiny", "--lengths", "64,128", "--vocabularies", "2000", "--length", "64",
        "--work", tmp_path / "work", "--out", out)  # fmt: skip
    record = json.loads(out.read_text())
    assert {point["length"] for point in record["by_length"]} == {64, 128}
    assert all(point["above_weights_bytes"] > 0 for point in record["by_length"] + record["by_vocabulary"])
    assert out.with_suffix(".png").stat().st_size > 0


@pytest.mark.slow
def test_long_rows_benchmark(tmp_path: Path) -> None:
    out = tmp_path / "long_rows.json"
    run("bench_long_rows.py", "--shape", "tiny", "--lengths", "512,1024", "--earlier", REPOSITORY, "--repeat", "1",
        "--length", "64", "--work", tmp_path / "work", "--out", out)  # fmt: skip
    record = json.loads(out.read_text())
    assert [point["length"] for point in record["by_length"]] == [512, 1024]
    assert all(point["above_weights_bytes"] > 0 and point["step_s"] > 0 for point in record["by_length"])
    assert {(point["build"], point["grad_checkpoint"]) for point in record["speed"]} == {
        ("this build", 0), ("this build", 1), ("earlier", 0), ("earlier", 1),
    }  # fmt: skip


@pytest.mark.slow
def test_grpo_benchmark(tmp_path: Path) -> None:
    out = tmp_path / "grpo.json"
    run("bench_grpo.py", "--shape", "tiny", "--prompts", "2", "--tokens", "8", "--data", DEMO_ROWS,
        "--work", tmp_path / "work", "--out", out)  # fmt: skip
    runs = json.loads(out.read_text())["shapes"]["tiny"]["runs"]
    both = [run for run in runs if run["contestant"] == "ours"]
    assert [run["setting"] for run in both] == ["default", "little memory"]
    for ours in both:
        assert ours["completions"] == 16 and ours["completions_per_s"] > 0 and ours["above_weights_bytes"] > 0
        assert 7 < ours["mean_length"] <= 8
    assert all("-python was given" in run["skipped"] for run in runs if run not in both)


def test_a_process_that_takes_too_long_is_killed_with_its_children() -> None:
    sleeper = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(100)'])"
    finished = run_process([sys.executable, "-c", sleeper], timeout_s=1)
    assert finished.timed_out and finished.seconds < 30 and "not finished" in (finished.failure or "")


def test_a_process_that_fails_says_why() -> None:
    finished = run_process([sys.executable, "-c", "raise SystemExit('no such thing')"], timeout_s=60)
    assert "exit code 1" in (finished.failure or "") and "no such thing" in (finished.failure or "")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_a_readable_checkpoint(tmp_path: Path, dtype: str) -> None:
    shape = SHAPES["tiny"]
    write_weights(shape, tmp_path, dtype)
    arrays = mx.load(str(tmp_path / "model.safetensors"))
    assert {name: array.shape for name, array in arrays.items()} == dict(shape.tensors())
    assert all(array.dtype == getattr(mx, dtype) for array in arrays.values())
    embedding = arrays["model.embed_tokens.weight"].astype(mx.float32)
    assert embedding.std().item() == pytest.approx(0.02, rel=0.05)
    assert not mx.array_equal(embedding[0], embedding[1])


def test_shapes_are_what_their_names_say() -> None:
    for name, millions in {"small": 58.5, "0.5b": 494.0, "1.5b": 1543.7, "7b": 7615.6}.items():
        assert SHAPES[name].num_parameters / 1e6 == pytest.approx(millions, rel=2e-3)


def test_flops_count_frozen_weights_twice_and_the_head_on_targets() -> None:
    shape = SHAPES["tiny"]
    block = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 160
    assert shape.flops_per_token(0.0) == 4 * 2 * block
    assert shape.flops_per_token(0.5) == 4 * (2 * block + 0.5 * 2_000 * 64)


def test_losses_that_differ_are_named() -> None:
    runs = [{"name": "a", "first_batch_loss": 1.0}, {"name": "b", "first_batch_loss": 1.0005}, {"name": "s"}]
    assert loss_disagreements(runs, 1e-3) == []
    found = loss_disagreements([*runs, {"name": "c", "first_batch_loss": 1.1}], 1e-3)
    assert len(found) == 1 and found[0].startswith("c has")
    assert loss_disagreements([*runs, {"name": "c", "first_batch_loss": float("nan")}], 1e-3)


def test_ratios_take_our_fastest_and_each_peers_default_and_fastest() -> None:
    def outcome(contestant: str, setting: str, rate: float, peak: int) -> dict:
        return {"contestant": contestant, "setting": setting, "tokens_per_s": rate, "peak_device_bytes": peak}

    found = ratios(
        [
            outcome("ours", "batch 1", 100.0, 10), outcome("ours", "batch 8", 300.0, 30),
            outcome("mlx_lm", "batch 4", 100.0, 60), outcome("mlx_lm", "batch 1", 150.0, 20),
            {"contestant": "torch", "setting": "batch 1", "skipped": "no torch"},
        ]
    )  # fmt: skip
    assert [(r["setting"], r["tokens_per_s"], r["peak_device_bytes"]) for r in found] == [
        ("default: batch 4", 3.0, 0.5), ("fastest: batch 1", 2.0, 1.5),
    ]  # fmt: skip


def test_grpo_ratios_take_each_peers_default_and_fastest() -> None:
    def outcome(contestant: str, setting: str, rate: float, above: int) -> dict:
        return {
            "contestant": contestant, "setting": setting, "completions_per_s": rate, "above_weights_bytes": above,
            "peak_device_bytes": 10 + above,
        }  # fmt: skip

    found = grpo_ratios(
        [
            outcome("mlx_lm_lora", "default (batch 1)", 0.5, 5), outcome("mlx_lm_lora", "batch 4", 1.0, 20),
            outcome("ours", "default", 3.0, 10), outcome("ours", "little memory", 1.5, 2),
            {"contestant": "unsloth", "setting": "default", "skipped": "no"},
        ]
    )  # fmt: skip
    assert [(r["ours"], r["setting"], r["completions_per_s"], r["above_weights_bytes"]) for r in found] == [
        ("default", "default (batch 1)", 6.0, 2.0), ("little memory", "default (batch 1)", 3.0, 0.4),
        ("default", "fastest: batch 4", 3.0, 0.5), ("little memory", "fastest: batch 4", 1.5, 0.1),
    ]  # fmt: skip


def test_mlx_lm_is_always_tried_at_its_default() -> None:
    assert [entry.label for entry in entries(["mlx_lm"], [1], [8])] == ["batch 1", "batch 4"]


def test_tests_that_are_cut_off_leave_what_they_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_slow.py").write_text(
        "import time\ndef test_one(): pass\ndef test_two(): assert not 1\ndef test_three(): time.sleep(60)\n"
    )
    monkeypatch.setattr(gpu_parts, "_REPORT_S", 28.0)
    found = gpu_parts.run_tests((str(tmp_path),), 40.0)
    assert found["tests"] >= 2 and found["failures"] == 1 and "cut_off" in found
    assert found["failed"][0]["test"].endswith("test_two")


def test_a_backend_that_is_not_here_ends_the_run_with_its_reason() -> None:
    assert gpu_parts.unavailable("cpu") is None
    assert "Apple" in (gpu_parts.unavailable("metal") or "") or sys.platform == "darwin"
