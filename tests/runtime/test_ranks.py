"""Several processes on one machine do what one does, refuse to do different things, and end together."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from mlxmath.training.checkpoint import newest_checkpoint
from tests.data.material import write_lines
from tests.helpers import ENVIRONMENT, command, succeed
from tests.runtime.launch import free_port, outcome, run_jobs, start_ranks, write_tiny_model

TRAIN = (
    "--debug", "--num-examples", "19", "--max-seq-len", "128", "--batch-size", "2", "--grad-accumulation-steps", "2",
    "--learning-rate", "5e-4", "--validation-split", "4", "--eval-every", "15", "--max-steps", "30",
    "--max-batch-tokens", "256",
)  # fmt: skip
"""Four windows an epoch, the last of three rows: fewer than four ranks can share."""
LONG = ("--num-epochs", "1000", "--max-steps", "3000")
GRPO = (
    "--model", "tiny", "--mlx-path", "mlx_tiny", "--dtype", "float32", "--dataset", "demo", "--num-examples", "12",
    "--num-epochs", "100", "--max-seq-len", "160",
    "--max-completion-length", "8", "--num-generations", "4", "--batch-size", "8", "--grad-accumulation-steps", "1",
    "--learning-rate", "2e-4", "--reward", "variety:variety", "--reward", "repetition=0.5", "--num-iterations", "2",
    "--beta", "0.05", "--top-entropy-quantile", "0.6", "--validation-split", "2", "--eval-every", "15",
    "--max-steps", "30", "--adapter-path", "improved",
)  # fmt: skip
"""Two prompts a rollout: two of four ranks have nothing to draw. On the tiny model 30 windows take two seconds."""
KTO = (
    "--model", "tiny", "--mlx-path", "mlx_tiny", "--dtype", "float32", "--dataset", "labelled.jsonl", "--loss-type",
    "kto", "--max-seq-len", "64", "--batch-size", "6", "--learning-rate", "2e-3", "--validation-split", "2",
    "--grad-accumulation-steps", "1", "--max-steps", "6", "--adapter-path", "labelled",
)  # fmt: skip
EVALUATE = ("--benchmark", "demo", "--limit", "6", "--max-tokens", "8", "--run-name", "asked")
JOBS = [
    {"name": "train", "command": "train", "arguments": TRAIN},
    {"name": "grpo", "command": "grpo", "arguments": GRPO},
    {"name": "kto", "command": "dpo", "arguments": KTO},
    {"name": "evaluate", "command": "evaluate", "arguments": EVALUATE},
]


def ended_well(folder: Path, name: str, size: int) -> dict[str, Any]:
    found = [outcome(folder, name, rank) for rank in range(size)]
    assert [each["exit_code"] for each in found] == [0] * size, found
    assert not any(each["output"] for each in found[1:])  # rank 0 alone speaks
    return found[0]


def adapters(folder: Path, name: str = "adapters") -> dict[str, np.ndarray]:
    return dict(load_file(folder / name / "adapters.safetensors"))


def largest_difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    assert one.keys() == other.keys()
    return max(float(np.abs(one[key] - other[key]).max()) for key in one)


def events(folder: Path, name: str, kind: str) -> list[dict[str, Any]]:
    lines = (folder / name / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def make(folder: Path) -> Path:
    """What the jobs need besides: a reward, completions with labels, and a model with the demo's tokenizer."""
    write_tiny_model(folder / "tiny")
    rows = [
        {"prompt": f"What is {a} + {b}?", "completion": str(a + b + 7 * (a == 3)), "label": a != 3}
        for a in range(1, 6)
        for b in range(1, 4)
    ]
    write_lines(folder / "labelled.jsonl", rows)
    (folder / "variety.py").write_text(
        "def variety(samples):\n    return [len(set(sample.completion)) / len(samples) for sample in samples]\n"
    )
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make(tmp_path_factory.mktemp("alone"))
    run_jobs(folder, 1, JOBS)
    return folder


@pytest.fixture(scope="module")
def pair(alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks: the same jobs, then some in which rank 1 differs."""
    folder = make(tmp_path_factory.mktemp("pair"))
    quantized = [
        "--mlx-path", "other_model", "--quantize", "8", "--group-size", "32", "--dtype", "float16",
    ]  # fmt: skip
    again = [*TRAIN, "--adapter-path", "refused"]
    run_jobs(
        folder,
        2,
        [
            *JOBS,
            {"name": "model", "command": "train", "arguments": again, "only": {"1": {"arguments": quantized}}},
            {"name": "data", "command": "train", "arguments": again,
             "only": {"1": {"arguments": ["--num-examples", "18"]}}},
            {"name": "recipe", "command": "train", "arguments": again,
             "only": {"1": {"arguments": ["--learning-rate", "1e-4", "--lora-rank", "4"]}}},
            {"name": "version", "command": "train", "arguments": again, "only": {"1": {"version": "9.9.9"}}},
            {"name": "stopped", "command": "train", "only": {"1": {"stop_at": 5}},
             "arguments": [*TRAIN, *LONG, "--adapter-path", "stopped"]},
            {"name": "convert", "command": "convert", "arguments": ["--model", "demo"]},
            {"name": "late", "command": "train",
             "arguments": [*TRAIN, *LONG, "--max-training-time-hours", "0.0004", "--adapter-path", "late"]},
            {"name": "loss", "command": "train", "only": {"1": {"breaks": "loss"}},
             "arguments": [*TRAIN, "--max-steps", "5", "--adapter-path", "loss"]},
            {"name": "disk", "command": "train", "only": {"0": {"breaks": "disk"}},
             "arguments": [*TRAIN, "--max-steps", "5", "--save-every", "2", "--adapter-path", "disk"]},
        ],
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def four(alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make(tmp_path_factory.mktemp("four"))
    for name in ("mlx_model", "cache"):
        shutil.copytree(alone / name, folder / name)
    run_jobs(folder, 4, JOBS)
    return folder


@pytest.fixture(params=[("pair", 2), ("four", 4)], ids=["pair", "four"])
def several(request: pytest.FixtureRequest) -> tuple[Path, int]:
    """A folder, and how many ranks did the jobs there."""
    name, size = request.param
    return request.getfixturevalue(name), size


def test_training_is_that_of_one_process(alone: Path, several: tuple[Path, int]) -> None:
    ended_well(alone, "train", 1)
    folder, size = several
    said = ended_well(folder, "train", size)["output"]
    assert f"on {size} ranks" in said and "finished at step 30 of 30" in said
    assert largest_difference(adapters(alone), adapters(folder)) < 1e-5
    assert largest_difference(adapters(alone, "adapters/best"), adapters(folder, "adapters/best")) < 1e-5
    for kind, fields in (("step", ("tokens", "targets", "epoch", "applied")), ("validation", ("step", "targets"))):
        one, other = (events(each, "adapters", kind) for each in (alone, folder))
        assert [[e[f] for f in fields] for e in one] == [[e[f] for f in fields] for e in other]
        np.testing.assert_allclose([e["loss"] for e in one], [e["loss"] for e in other], rtol=1e-4)


def test_reinforcement_learning_is_that_of_one_process(alone: Path, several: tuple[Path, int]) -> None:
    ended_well(alone, "grpo", 1)
    folder, size = several
    ended_well(folder, "grpo", size)
    trained = adapters(alone, "improved").items()
    assert max(float(np.abs(array).max()) for name, array in trained if name.endswith("lora_b")) > 5e-4
    assert largest_difference(adapters(alone, "improved"), adapters(folder, "improved")) < 1e-5
    one, other = (events(each, "improved", "rollout") for each in (alone, folder))
    names = ("reward", "completions", "tokens", "example", "mean_length")
    assert [[e[n] for n in names] for e in one] == [[e[n] for n in names] for e in other]
    one, other = (events(each, "improved", "validation") for each in (alone, folder))
    assert [(e["step"], e["accuracy"]) for e in one] == [(e["step"], e["accuracy"]) for e in other]


def test_labelled_completions_have_one_baseline_on_all_ranks(alone: Path, several: tuple[Path, int]) -> None:
    ended_well(alone, "kto", 1)
    folder, size = several
    ended_well(folder, "kto", size)
    assert largest_difference(adapters(alone, "labelled"), adapters(folder, "labelled")) < 1e-5
    for kind in ("step", "validation"):
        one, other = (events(each, "labelled", kind) for each in (alone, folder))
        for name in ("loss", "kl", "chosen_reward", "rejected_reward", "accuracy"):
            np.testing.assert_allclose([e[name] for e in one], [e[name] for e in other], atol=1e-4, err_msg=name)
    assert any(event["kl"] > 0 for event in events(alone, "labelled", "step"))


def test_evaluation_finds_the_same_answers(alone: Path, several: tuple[Path, int]) -> None:
    ended_well(several[0], "evaluate", several[1])
    one, other = (
        [json.loads(line) for line in (folder / "evaluation_results/asked/samples.jsonl").read_text().splitlines()]
        for folder in (alone, several[0])
    )
    names = ("id", "response", "correct")
    assert len(one) == 6 and [[s[n] for n in names] for s in one] == [[s[n] for n in names] for s in other]


@pytest.mark.parametrize(
    ("name", "messages"),
    [
        ("model", ["base model is "]),
        ("data", ["data is "]),
        ("recipe", ["lora.rank is 4 on rank 1", "training.learning_rate is 0.0001 on rank 1", "and 8 on rank 0"]),
        ("version", ["mlxmath is 9.9.9 on rank 1"]),
    ],
)
def test_ranks_that_differ_are_refused(pair: Path, name: str, messages: list[str]) -> None:
    found = [outcome(pair, name, rank) for rank in range(2)]
    assert [each["exit_code"] for each in found] == [1, 1], found
    for message in ["the ranks do not do the same: ", "on rank 1 (", *messages]:
        assert all(message in each["stderr"] for each in found), found
    assert found[1]["stderr"].startswith("rank 1 (") and found[1]["stderr"].count("\n") == 1
    assert not (pair / "refused").exists()


def test_work_of_one_process_is_refused_to_several(pair: Path) -> None:
    for rank in range(2):
        found = outcome(pair, "convert", rank)
        assert found["exit_code"] == 2 and "`mlxmath convert` is the work of one process" in found["stderr"]


def test_a_killed_rank_ends_all_and_the_run_goes_on_with_any_number(alone: Path, tmp_path: Path) -> None:
    for name in ("mlx_model", "cache"):
        shutil.copytree(alone / name, tmp_path / name)
    saved = (*TRAIN, "--save-every", "2")
    chance = random.Random(4)
    for attempt, killed in enumerate((1, 0)):
        processes = start_ranks(tmp_path, 2, "train", *saved, *(["--resume"] if attempt else []))
        log, end = tmp_path / "adapters" / "events.jsonl", time.monotonic() + 60
        while time.monotonic() < end and not (log.exists() and f'"step": {4 + 9 * attempt},' in log.read_text()):
            time.sleep(0.01)
        time.sleep(0.3 * chance.random())
        assert all(process.poll() is None for process in processes)
        processes[killed].kill()
        start = time.monotonic()
        codes = [process.wait(60) for process in processes]
        assert time.monotonic() - start < 20
        assert codes[killed] == -signal.SIGKILL and codes[1 - killed] == 1
        said = (tmp_path / f"rank-{1 - killed}.log").read_text()
        assert f"error: rank {killed} (" in said and "has ended before its time" in said and "Traceback" not in said
        found = newest_checkpoint(tmp_path / "adapters")
        assert found is not None and found.position.step >= 4
    result = succeed(tmp_path, "train", *saved, "--resume")
    assert "resuming adapters/checkpoints/step-" in result.stderr and "is not usable" not in result.stderr
    assert largest_difference(adapters(alone), adapters(tmp_path)) < 1e-5
    assert not list((tmp_path / "adapters").rglob("*.tmp"))


def test_a_signal_to_one_rank_stops_all_in_the_same_window(pair: Path) -> None:
    found = [outcome(pair, "stopped", rank) for rank in range(2)]
    assert [each["exit_code"] for each in found] == [128 + signal.SIGTERM] * 2, found
    saved = newest_checkpoint(pair / "stopped")
    assert saved is not None and 5 <= saved.position.step < 50
    assert f"stopped at step {saved.position.step} of" in found[0]["stderr"] and not found[1]["stderr"]
    assert "continue with the same command and --resume" in found[0]["stderr"]


def test_the_deadline_ends_all_in_the_same_window(pair: Path) -> None:
    assert "deadline at step" in ended_well(pair, "late", 2)["stderr"]
    record = json.loads((pair / "late" / "run.json").read_text())
    assert record["status"] == "deadline" and 0 < record["steps"] < 3000 and record["seconds"] < 0.0004 * 3600 + 1


def test_a_loss_that_is_nan_on_one_rank_is_skipped_by_all(pair: Path) -> None:
    said = ended_well(pair, "loss", 2)["stderr"]
    assert "step 3: loss is not finite, the step is not applied; rows" in said
    assert [event["applied"] for event in events(pair, "loss", "step")] == [True, True, False, True, True]
    assert all(np.isfinite(array).all() for array in adapters(pair, "loss").values())


def test_a_full_disk_at_the_end_is_an_error_on_all_and_the_last_checkpoint_is_whole(pair: Path) -> None:
    found = [outcome(pair, "disk", rank) for rank in range(2)]
    assert [each["exit_code"] for each in found] == [1, 1], found
    assert "no checkpoint at step 4: " in found[0]["stderr"] and "No space left on device" in found[0]["stderr"]
    assert "rank 0 (" in found[1]["stderr"] and "has ended before its time" in found[1]["stderr"]
    saved = newest_checkpoint(pair / "disk")
    assert saved is not None and saved.position.step == 2 and not list((pair / "disk").rglob("*.tmp"))


def test_ctrl_c_on_the_launcher_saves_and_ends_all(alone: Path, tmp_path: Path) -> None:
    for name in ("mlx_model", "cache"):
        shutil.copytree(alone / name, tmp_path / name)
    launcher = [str(Path(sys.executable).parent / "mlx.launch"), "-n", "2", "--backend", "ring"]
    launcher += ["--starting-port", str(free_port()), "--"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*launcher, *command("train", *TRAIN, *LONG)], cwd=tmp_path, env=ENVIRONMENT, stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    steps, end = tmp_path / "adapters" / "events.jsonl", time.monotonic() + 60
    while time.monotonic() < end and not (steps.exists() and '"step": 5,' in steps.read_text()):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    process.wait(60)  # on a busy machine saving and a last validation take their time
    saved = newest_checkpoint(tmp_path / "adapters")
    assert saved is not None and saved.position.step >= 5, (tmp_path / "log").read_text()
    assert json.loads((tmp_path / "adapters" / "run.json").read_text())["status"] == "stopped"
