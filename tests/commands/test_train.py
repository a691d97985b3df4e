"""`train` as a user runs it, on the bundled model: what it leaves, reuse, kill and resume, deadline, signals."""

import json
import shlex
import shutil
import signal
from pathlib import Path

import pytest

from tests.data.material import write_lines
from tests.helpers import adapters, events, kill_at, run, start, succeed, wait_for_step

DEMO_MODEL = Path(__file__).parents[2] / "mlxmath" / "demo" / "model"
QUICK = (
    "--debug", "--num-examples", "40", "--max-seq-len", "128", "--save-every", "3", "--lora-dropout", "0.1",
    "--num-epochs", "8",
)  # fmt: skip
SUMS = [{"problem": f"What is {n} + 1?", "solution": str(n + 1)} for n in range(9)]


def test_debug_leaves_model_cache_and_a_described_adapter(debug_run: Path) -> None:
    assert (debug_run / "mlx_model" / "config.json").exists()
    assert list((debug_run / "cache").glob("*.pkl"))
    found = {path.name for path in (debug_run / "adapters").iterdir()}
    assert found == {
        "adapters.safetensors", "adapter_config.json", "chat_template.jinja", "checkpoints", "events.jsonl",
        "loss.png", "run.json", "run.toml",
    }  # fmt: skip
    record = json.loads((debug_run / "adapters" / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["config"]["lora"]["rank"] == 8 and record["origin"]["data.num_examples"] == "--debug"
    assert (debug_run / "adapters" / "loss.png").read_bytes().startswith(b"\x89PNG")
    steps = [event for event in events(debug_run) if event["event"] == "step"]
    assert [event["step"] for event in steps] == list(range(1, record["steps"] + 1))
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_every_value_and_its_origin_is_printed_and_the_second_run_reuses(debug_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(debug_run, folder)
    result = succeed(folder, "train", "--debug", "--lora-rank", "4", "--max-steps", "1")
    lines = {tuple(line.split()) for line in result.stderr.splitlines()}
    assert ("lora.rank", "4", "option") in lines
    assert ("lora.alpha", "16.0", "default") in lines
    assert ("data.dataset", "demo", "--debug") in lines
    assert "mlx_model is valid" in result.stderr and "holds these rows already" in result.stderr
    assert "(1.0" in result.stderr or "parameters train (" in result.stderr
    assert result.stdout == ""


def test_same_seed_same_adapters_other_seed_other_adapters(prepared: Path) -> None:
    found = []
    for seed in ("0", "0", "1"):
        succeed(prepared, "train", "--debug", "--max-steps", "5", "--seed", seed)
        found.append(adapters(prepared))
    assert found[0] == found[1] != found[2]


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(prepared: Path, tmp_path: Path) -> None:
    straight = tmp_path / "straight"
    shutil.copytree(prepared, straight)
    succeed(straight, "train", *QUICK)
    kill_at(prepared, 4, "train", *QUICK)  # killed twice, each time after a checkpoint and between two
    kill_at(prepared, 11, "train", *QUICK, "--resume")
    result = succeed(prepared, "train", *QUICK, "--resume")
    assert "resuming adapters/checkpoints/step-" in result.stderr
    assert adapters(prepared) == adapters(straight)
    straight_steps = [(e["step"], e["loss"]) for e in events(straight) if e["event"] == "step"]
    assert [(e["step"], e["loss"]) for e in events(prepared) if e["event"] == "step"] == straight_steps
    assert not list((prepared / "adapters").rglob("*.tmp"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGHUP, 129), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_ends_and_the_run_can_go_on(
    prepared: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    held_out = ("--validation-split", "0.2")
    long = (*QUICK, *held_out, "--num-epochs", "1000", "--save-every", "100000")
    process = start(prepared, "train", *long, log=tmp_path / "log")
    wait_for_step(prepared, 3)
    process.send_signal(number)
    assert process.wait(timeout=60) == code
    log = (tmp_path / "log").read_text()
    assert number.name in log and "continue with the same command and --resume" in log and "Traceback" not in log
    step = json.loads((prepared / "adapters" / "run.json").read_text())["steps"]
    assert step >= 3
    measured = [event["step"] for event in events(prepared) if event["event"] == "validation"]
    assert measured[0] == 0 and measured[-1] == step
    assert (prepared / "adapters" / "checkpoints" / f"step-{step}").is_dir()
    succeed(prepared, "infer", "--prompt", "What is 12 + 7?", "--max-new-tokens", "2")
    resumed = succeed(prepared, "train", *long, "--max-steps", str(step + 2), "--resume")
    assert f"finished at step {step + 2}" in resumed.stderr


def test_a_second_signal_ends_at_once_and_leaves_whole_files(prepared: Path, tmp_path: Path) -> None:
    process = start(prepared, "train", *QUICK, "--num-epochs", "1000", log=tmp_path / "log")
    wait_for_step(prepared, 7)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) in (-signal.SIGINT, 130)
    succeed(prepared, "infer", "--prompt", "What is 12 + 7?", "--max-new-tokens", "2")


def test_the_deadline_ends_a_run_on_time_with_valid_adapters(prepared: Path) -> None:
    hours = 0.003
    result = succeed(
        prepared, "train", *QUICK, "--num-epochs", "100000", "--max-training-time-hours", str(hours),
        "--validation-split", "0.2", "--schedule", "cosine", "--warmup-ratio", "0.1",
    )  # fmt: skip
    record = json.loads((prepared / "adapters" / "run.json").read_text())
    assert record["status"] == "deadline" and record["steps"] > 0
    assert 0.5 * hours * 3600 < record["seconds"] < hours * 3600 + 20  # a busy machine may stall the last step
    assert "deadline at step" in result.stderr
    assert "the deadline comes first: at " in result.stderr and "validation on " in result.stderr
    measured = [event for event in events(prepared) if event["event"] == "validation"]
    assert len(measured) >= 2 and measured[0]["step"] == 0
    assert measured[-1]["step"] == record["steps"] or "not measured once more" in result.stderr  # on a busy machine
    assert (prepared / "adapters" / "best" / "adapters.safetensors").exists()
    rates = [event["learning_rate"] for event in events(prepared) if event["event"] == "step"]
    assert max(rates) > 1e-3  # over 100,000 epochs it would still be warming up
    assert record["pace"]["deadline_first"] and record["pace"]["expected_steps"] < record["pace"]["planned_steps"]
    succeed(prepared, "infer", "--prompt", "What is 12 + 7?", "--max-new-tokens", "2")


def test_another_runs_adapters_are_not_overwritten(prepared: Path) -> None:
    write_lines(prepared / "mine.jsonl", SUMS)
    mine = ("--model", "mlx_model", "--dataset", "mine.jsonl", "--max-steps", "2", "--grad-accumulation-steps", "2")
    succeed(prepared, "train", *mine)
    before = adapters(prepared)
    for arguments in (mine, ("--debug",)):
        refused = run(prepared, "train", *arguments)
        assert refused.returncode == 2
        assert "--adapter-path: adapters holds the adapters of another run" in refused.stderr
        assert "--resume" in refused.stderr and "--overwrite" in refused.stderr
        assert adapters(prepared) == before
    succeed(prepared, "train", *mine, "--seed", "3", "--overwrite")
    assert adapters(prepared) != before


def test_what_was_measured_is_in_run_json_and_is_not_measured_again(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(text: str) -> None:
        monkeypatch.setattr("mlxmath.training.setup.tune", lambda *_: {"loss": "a kernel", "loss_measured": text})

    def kept() -> dict:
        return json.loads((prepared / "adapters" / "run.json").read_text())["tuning"]

    measured("by the clock, first")
    assert "by the clock, first" in succeed(prepared, "train", "--debug", "--max-steps", "1").stderr
    first = kept()
    assert first == {"loss": "a kernel", "loss_measured": "by the clock, first"}
    measured("by the clock, second")
    again = succeed(prepared, "train", "--debug", "--max-steps", "2", "--resume").stderr
    assert "by the clock, first" in again and "second" not in again and kept() == first
    succeed(prepared, "train", "--debug", "--max-steps", "1", "--overwrite")
    assert kept()["loss_measured"] == "by the clock, second"


def test_resume_refuses_another_run_and_names_what_differs(prepared: Path) -> None:
    succeed(prepared, "train", *QUICK, "--max-steps", "3")
    refused = run(prepared, "train", *QUICK, "--lora-rank", "4", "--seed", "9", "--resume")
    assert refused.returncode == 2
    assert "lora.rank was 8 and is 4" in refused.stderr and "training.seed was 0 and is 9" in refused.stderr


def test_max_steps_beyond_the_epochs_are_taken_and_said(prepared: Path) -> None:
    result = succeed(prepared, "train", "--debug", "--num-epochs", "1", "--max-steps", "5")
    assert "--max-steps 5 are 2.5 epochs of 2 steps, and count more than --num-epochs 1" in result.stderr
    assert "finished at step 5 of 5" in result.stderr
    assert [event["epoch"] for event in events(prepared) if event["event"] == "step"] == [0, 0, 1, 1, 2]
    longer = succeed(prepared, "train", "--debug", "--num-epochs", "1", "--max-steps", "7", "--resume")
    assert "finished at step 7 of 7" in longer.stderr
    resumed = adapters(prepared)
    succeed(prepared, "train", "--debug", "--num-epochs", "4", "--max-steps", "7")
    assert adapters(prepared) == resumed


def test_the_command_that_it_ends_with_works_as_printed(prepared: Path) -> None:
    (prepared / "mlx_model").rename(prepared / "my model")
    result = succeed(
        prepared, "train", "--debug", "--max-steps", "1", "--mlx-path", "my model", "--adapter-path", "my adapters"
    )
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("try: "))
    python, dash_m, module, *arguments = shlex.split(line.removeprefix("try: "))
    assert (python, dash_m, module) == ("python", "-m", "mlxmath.infer")
    answered = succeed(prepared, "infer", *arguments, "--max-new-tokens", "2")
    assert answered.stdout


def test_what_a_run_records_means_the_same_from_another_folder(prepared: Path, tmp_path: Path) -> None:
    write_lines(prepared / "mine.jsonl", SUMS)
    write_lines(prepared / "other.jsonl", SUMS[1:])
    shutil.copytree(DEMO_MODEL, prepared / "base")
    succeed(
        prepared, "train", "--model", "base", "--mlx-path", "converted", "--dataset", "mine.jsonl", "--decontaminate",
        "other.jsonl", "--validation-dataset", "other.jsonl", "--max-steps", "1", "--set", "model.dtype=float32",
        "--deduplicate", "off",
    )  # fmt: skip
    record = json.loads((prepared / "adapters" / "adapter_config.json").read_text())
    assert record["base_model"] == str((prepared / "base").resolve())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    file = str(prepared / "adapters" / "run.toml")
    result = succeed(elsewhere, "train", "--config", file, "--adapter-path", "again")
    assert "holds these rows already" in result.stderr
    one, other = (folder / "adapters.safetensors" for folder in (prepared / "adapters", elsewhere / "again"))
    assert one.read_bytes() == other.read_bytes()
    assert [path.name for path in elsewhere.iterdir()] == ["again"]
    names = succeed(prepared, "train", "--debug", "--max-steps", "1", "--overwrite")
    assert names and json.loads((prepared / "adapters" / "adapter_config.json").read_text())["base_model"] == "demo"
