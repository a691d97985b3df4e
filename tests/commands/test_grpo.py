"""`grpo` as a user runs it, on the bundled model: what it leaves, resume between iterations, failures."""

import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from tests.helpers import in_terminal, run, succeed

REWARDS = """
def variety(samples):
    return [len(set(sample.completion)) / 10 for sample in samples]

def same(samples):
    return [1.0 for _ in samples]

def crash(samples):
    raise ZeroDivisionError("no")
"""
SMALL = (
    "--model", "demo", "--dtype", "float32", "--dataset", "demo", "--num-examples", "12", "--max-seq-len", "160",
    "--max-completion-length", "12", "--num-generations", "4", "--batch-size", "8", "--grad-accumulation-steps", "1",
    "--learning-rate", "1e-3", "--save-every", "1",
)  # fmt: skip
VARIED = (*SMALL, "--reward", "mine:variety", "--reward", "repetition=0.5", "--num-iterations", "2", "--beta", "0.05")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after six steps of three rollouts, each used twice; not to be changed."""
    folder = tmp_path_factory.mktemp("grpo")
    (folder / "mine.py").write_text(REWARDS)
    validated = ("--validation-split", "2", "--eval-every", "3")
    code, shown = in_terminal(folder, "grpo", *VARIED, *validated, "--max-steps", "5")
    assert code == 0, shown
    (folder / "shown.txt").write_text(shown)
    return folder


def events(folder: Path, kind: str) -> list[dict]:
    lines = (folder / "adapters" / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def test_it_leaves_a_described_adapter_events_and_curves(straight: Path) -> None:
    folder = straight / "adapters"
    assert {"adapters.safetensors", "adapter_config.json", "curves.png", "run.json", "run.toml", "best"} <= {
        path.name for path in folder.iterdir()
    }
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished" and record["steps"] == 5 and record["answers_timed_out"] == 0
    rollouts, steps = events(straight, "rollout"), events(straight, "step")
    assert [rollout["step"] for rollout in rollouts] == [1, 3, 5] and len(steps) == 5
    for rollout in rollouts:
        assert set(rollout["rewards"]) == {"mine:variety", "repetition"} and rollout["completions"] == 8
        weighted = rollout["rewards"]["mine:variety"] + 0.5 * rollout["rewards"]["repetition"]
        assert rollout["reward"] == pytest.approx(weighted)
        assert {"zero_variance", "truncated", "mean_length", "tokens_per_second"} <= set(rollout)
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-6) and steps[1]["kl"] > 1e-6
    assert steps[0]["clipped"] == 0 and steps[0]["entropy"] > 0
    assert [event["step"] for event in events(straight, "validation")] == [0, 3, 5]
    with safe_open(folder / "best" / "adapters.safetensors", "np") as best:
        assert best.metadata().keys() == {"format", "step", "validation_accuracy"}
    assert record["validation"]["best"].keys() == {"step", "accuracy"}
    assert any(a.any() for name, a in load_file(folder / "adapters.safetensors").items() if name.endswith("lora_b"))


def test_a_terminal_shows_the_figures_live_below_the_lines(straight: Path) -> None:
    shown = (straight / "shown.txt").read_text()
    panel = shown[shown.rindex("╭") :]
    for name in ("reward mine:variety", "reward repetition", "groups all the same", "clipped", "KL", "entropy",
                 "completion length", "cut off", "rollout", "update"):  # fmt: skip
        assert f"│ {name} " in panel, panel
    assert "5/5 steps, learned, 0.0s left" in panel
    last = events(straight, "step")[-1]
    assert f"{last['entropy']:.3f}" in panel
    update = re.search(r"│ update +([\d,]+) tokens/s", panel)
    # the event's own rounding to a tenth may carry the shown figure over a half
    assert update and int(update[1].replace(",", "")) == pytest.approx(last["tokens_per_second"], abs=0.6)
    assert shown.count("╭") > 3 and "of 2 held-out problems right" in shown and "finished at step 5 of 5" in panel


def test_resumed_between_two_iterations_equals_uninterrupted(straight: Path, tmp_path: Path) -> None:
    for name in ("mlx_model", "mine.py"):
        copy = shutil.copytree if (straight / name).is_dir() else shutil.copyfile
        copy(straight / name, tmp_path / name)
    validated = ("--validation-split", "2", "--eval-every", "3")
    succeed(tmp_path, "grpo", *VARIED, *validated, "--max-steps", "3")
    result = succeed(tmp_path, "grpo", *VARIED, *validated, "--max-steps", "5", "--resume")
    assert "step-3" in result.stderr and "at a time (as before)" in result.stderr
    for name in ("adapters.safetensors", "best/adapters.safetensors"):
        one, other = (load_file(folder / "adapters" / name) for folder in (straight, tmp_path))
        assert {key: array.tobytes() for key, array in one.items()} == {k: a.tobytes() for k, a in other.items()}
    assert [e["reward"] for e in events(tmp_path, "rollout")] == [e["reward"] for e in events(straight, "rollout")]
    refused = run(tmp_path, "grpo", *VARIED, *validated, "--epsilon", "0.1", "--resume")
    assert refused.returncode == 2 and "grpo.epsilon was 0.2 and is 0.1" in refused.stderr


def test_a_constant_reward_changes_nothing_and_failures_name_their_cause(straight: Path, tmp_path: Path) -> None:
    for name in ("mlx_model", "mine.py"):
        copy = shutil.copytree if (straight / name).is_dir() else shutil.copyfile
        copy(straight / name, tmp_path / name)
    ended = run(tmp_path, "grpo", *SMALL, "--reward", "mine:same")
    assert ended.returncode == 1 and "finished" not in ended.stderr
    assert "no_signal at step 0 of " in ended.stderr
    assert "error: GRPO found nothing to learn from: in the last 6 rollouts 1" in ended.stderr
    assert "of the completions were cut off at 12 tokens; raise --max-completion-length" in ended.stderr
    assert json.loads((tmp_path / "adapters" / "run.json").read_text())["status"] == "no_signal"
    weights = load_file(tmp_path / "adapters" / "adapters.safetensors")
    assert not any(array.any() for name, array in weights.items() if name.endswith("lora_b"))
    failed = run(tmp_path, "grpo", *SMALL, "--reward", "mine:crash", "--overwrite")
    assert failed.returncode == 1 and "the reward mine:crash failed: ZeroDivisionError: no" in failed.stderr
    for arguments, message in (
        (("--reward", "mine:absent"), "--reward mine:absent"),
        (("--reward", "correctness=much"), "--reward correctness=much"),
        (("--init-adapter", "adapters"), "write the result to another folder"),
        (("--batch-size", "6"), "no multiple of --num-generations 4"),
        (("--lora-dropout", "0.1"), "--lora-dropout (option): expected 0 where completions are drawn, found 0.1"),
    ):
        refused = run(tmp_path, "grpo", *SMALL, *arguments)
        assert refused.returncode == 2 and message in refused.stderr
