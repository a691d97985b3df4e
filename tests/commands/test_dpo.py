"""`dpo` and `reward-model` as a user runs them, on the bundled model, and pairs from `distill`."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from mlxmath.commands import distill, dpo, grpo, reward_model, train
from mlxmath.config.schema import ModelConfig
from mlxmath.training.checkpoint import Position, Saver
from mlxmath.weights.convert import ensure_model
from tests.data.material import write_lines
from tests.helpers import invoke, json_lines

PROBLEMS = Path(__file__).parents[2] / "mlxmath" / "demo" / "problems" / "train.jsonl"
MODEL = ("--model", "demo", "--dtype", "float32", "--max-seq-len", "128", "--template", "plain")
SMALL = (*MODEL, "--dataset", "pairs.jsonl", "--batch-size", "4", "--grad-accumulation-steps", "1")
TUNE = (*SMALL, "--learning-rate", "3e-3", "--num-epochs", "2", "--save-every", "2")


def events(folder: str, kind: str) -> list[dict[str, Any]]:
    return [event for event in json_lines(Path(folder) / "events.jsonl") if event["event"] == kind]


def arrays(path: str) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in load_file(path).items()}


def problems(count: int) -> list[dict[str, str]]:
    return json_lines(PROBLEMS)[:count]


def wrong_answer(solution: str, answer: str) -> str:
    """The solution with another number after ####."""
    return solution.replace(f"#### {answer}", f"#### {int(answer) + 7}")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "mlx_model"
    ensure_model(ModelConfig(model="demo", dtype="float32", mlx_path=str(folder)))
    return folder


@pytest.fixture
def place(converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the model and 12 pairs."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(converted, "mlx_model")
    pairs = [
        {"prompt": row["problem"], "chosen": row["solution"], "rejected": wrong_answer(row["solution"], row["answer"])}
        for row in problems(12)
    ]
    write_lines(Path("pairs.jsonl"), pairs)
    return tmp_path


def test_the_margin_rises_and_a_run_leaves_metrics_and_curves(place: Path) -> None:
    result = invoke(dpo.main, *TUNE, "--validation-split", "4")
    assert "4 of 12 pairs are held out" in result.output
    assert "8 pairs, " in result.output and "4 steps of 4 x 1 pairs" in result.output
    assert "chosen reward" in result.output and "accuracy" in result.output
    steps, held_out = events("adapters", "step"), events("adapters", "validation")
    assert len(steps) == 4 and [event["step"] for event in held_out] == [0, 2, 4]
    names = ("chosen_reward", "rejected_reward", "margin", "accuracy", "chosen_logprob", "rejected_logprob")
    for event in (*steps, *held_out):
        assert all(isinstance(event[name], float) for name in names)
        assert event["margin"] == pytest.approx(event["chosen_reward"] - event["rejected_reward"], abs=1e-4)
        assert 0 <= event["accuracy"] <= 1 and event["targets"] == 4
    assert steps[0]["margin"] == 0 and steps[0]["accuracy"] == 0 and steps[0]["loss"] == pytest.approx(math.log(2))
    assert steps[-1]["margin"] > 0.1 and steps[-1]["loss"] < math.log(2)
    assert held_out[-1]["loss"] < held_out[0]["loss"] and held_out[-1]["margin"] > held_out[0]["margin"]
    assert Path("adapters/curves.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads(Path("adapters/run.json").read_text())
    assert record["status"] == "finished" and record["data"]["training_rows"] == 8
    assert record["validation"]["best"]["step"] == 4 and Path("adapters/best/adapters.safetensors").exists()
    assert 'loss_type = "sigmoid"' in Path("adapters/run.toml").read_text()


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = (*TUNE, "--lora-dropout", "0.1", "--validation-split", "4", "--eval-every", "3", "--batch-size", "3")
    invoke(dpo.main, *run, "--adapter-path", "straight")
    plain = Saver.after

    def die(self: Saver, position: Position) -> None:
        plain(self, position)
        if position.step == 5:  # in the second epoch, of three steps; the last checkpoint is of step 4
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Saver, "after", die)
        invoke(dpo.main, *run, "--adapter-path", "killed", code=130)
    assert not Path("killed/checkpoints/step-5").exists()
    result = invoke(dpo.main, *run, "--adapter-path", "killed", "--resume")
    assert "resuming killed/checkpoints/step-4" in result.output
    for name in ("adapters.safetensors", "best/adapters.safetensors"):
        assert arrays(f"killed/{name}") == arrays(f"straight/{name}")
    for kind in ("step", "validation"):
        found, expected = (
            [
                {k: v for k, v in event.items() if k not in ("time", "seconds", "checksum")}
                for event in events(folder, kind)
            ]
            for folder in ("killed", "straight")
        )
        assert found == expected
    refused = invoke(dpo.main, *run, "--adapter-path", "killed", "--resume", "--beta", "0.2", code=2)
    assert "dpo.beta was 0.1 and is 0.2" in refused.output


def test_the_initial_adapter_is_the_reference(place: Path) -> None:
    invoke(train.main, *MODEL, "--dataset", "demo", "--num-examples", "8", "--learning-rate", "3e-3")
    tune = (*TUNE, "--init-adapter", "adapters", "--adapter-path", "tuned")
    invoke(dpo.main, *tune, "--max-steps", "2")
    first = events("tuned", "step")[0]
    assert (first["margin"], first["chosen_reward"], first["rejected_reward"]) == (0, 0, 0)
    before, after = arrays("adapters/adapters.safetensors"), arrays("tuned/adapters.safetensors")
    assert before.keys() == after.keys() and before != after
    wrong = invoke(dpo.main, *SMALL, "--init-adapter", "adapters", code=2)
    assert "--init-adapter and --adapter-path are both adapters" in wrong.output
    Path("adapters/adapters.safetensors").write_bytes(Path("tuned/adapters.safetensors").read_bytes())
    other = invoke(dpo.main, *tune, "--resume", code=2)
    assert "initial adapter was" in other.output


def test_distilled_pairs_tune_and_are_the_right_ones(place: Path) -> None:
    rows = []
    for number, row in enumerate(problems(8)):
        wrong = wrong_answer(row["solution"], row["answer"])
        texts = [row["solution"], f"{wrong}\n\n", "Let me think about it for a while. " + wrong, "I cannot tell."]
        texts = {0: texts[:1], 1: texts[1:3]}.get(number, texts)  # all right, all wrong, some of each
        rows += [{"problem": row["problem"], "solution": text, "answer": row["answer"]} for text in texts]
    write_lines(Path("samples.jsonl"), rows)
    result = invoke(distill.main, "--rank-only", "samples.jsonl")
    assert "6 pairs" in result.output and "distilled/pairs.jsonl" in result.output
    pairs = json_lines(Path("distilled/pairs.jsonl"))
    assert len(pairs) == 6
    by_problem = {row["problem"]: row for row in problems(8)}
    for pair in pairs:
        row = by_problem[pair["problem"]]
        assert pair["chosen"] == row["solution"]
        assert pair["rejected"] == wrong_answer(row["solution"], row["answer"]), "the nearest in length"
        assert (pair["answer"], pair["chosen_sample"], pair["rejected_sample"]) == (row["answer"], 0, 1)
    assert "| pairs of a kept and a wrong solution | 6 |" in Path("distilled/card.md").read_text()
    invoke(dpo.main, *TUNE, "--dataset", "distilled/pairs.jsonl")
    margins = [event["margin"] for event in events("adapters", "step")]
    assert margins[0] == 0 and margins[-1] > 0.1


def test_a_reward_model_tells_right_from_wrong_and_rewards_completions(place: Path) -> None:
    """Wrong solutions stop before the answer. Of 24 held-out pairs 18 right are no chance (p < 0.02)."""
    rows = [
        {"prompt": row["problem"], "chosen": row["solution"], "rejected": row["solution"].rpartition("\n")[0]}
        for row in problems(88)
    ]
    write_lines(Path("pairs.jsonl"), rows)
    train_it = (
        *SMALL, "--batch-size", "8", "--learning-rate", "3e-3", "--validation-split", "24", "--adapter-path", "reward",
        "--lora-targets", "*_proj",
    )  # fmt: skip
    result = invoke(reward_model.main, *train_it)
    assert "grpo --reward model:reward" in result.output
    found = events("reward", "validation")
    assert found[-1]["accuracy"] >= 18 / 24 and found[-1]["margin"] > 0
    names = load_file("reward/adapters.safetensors")
    assert names["score.weight"].shape == (1, 192) and len(names) == 1 + 2 * 4 * 7
    config = json.loads(Path("reward/adapter_config.json").read_text())
    assert config["reward_model"] is True and config["template"] == "plain"

    learn = (
        *MODEL, "--dataset", "demo", "--num-examples", "4", "--max-completion-length", "10", "--num-generations", "4",
        "--batch-size", "8", "--grad-accumulation-steps", "1", "--max-steps", "2", "--adapter-path", "learned",
    )  # fmt: skip
    invoke(grpo.main, *learn, "--reward", "model:reward=0.5", "--reward", "repetition")
    for rollout in events("learned", "rollout"):
        rewards = rollout["rewards"]
        assert rollout["reward"] == pytest.approx(0.5 * rewards["model:reward"] + rewards["repetition"])
        assert rewards["model:reward"] != 0
    assert f'"model:{Path("reward").resolve()}" = 0.5' in Path("learned/run.toml").read_text()
    for reward, message in (
        ("model:learned", "learned holds a plain adapter, not a reward model"),
        ("model:none", "none holds no reward model"),
    ):
        refused = invoke(grpo.main, *learn, "--overwrite", "--reward", reward, code=1)
        assert message in refused.output


def test_bad_input_is_one_clear_error_or_a_counted_skip(place: Path) -> None:
    good = {"prompt": "Add 1 and 2.", "chosen": "It is 3.", "rejected": "It is 4."}
    long = good | {"prompt": "Add 3.", "rejected": "4 " * 200}
    rows = [good, long, good | {"chosen": "It is 4."}, good | {"chosen": ""}, good | {"prompt": "Add 5 and 6."}]
    write_lines(Path("mixed.jsonl"), rows)
    short = ("--num-epochs", "1", "--max-steps", "1")
    result = invoke(dpo.main, *SMALL, *short, "--dataset", "mixed.jsonl")
    assert "2 pairs, " in result.output and "1 steps of" in result.output
    assert "left out: 1 pair with a completion that is too long" in result.output
    assert "1 unusable: chosen and rejected are the same" in result.output
    assert "1 unusable: empty chosen completion" in result.output

    write_lines(Path("bad.jsonl"), rows[1:3])
    nothing = invoke(reward_model.main, *SMALL, *short, "--dataset", "bad.jsonl", "--overwrite", code=1)
    assert "no pair is left (1 unusable: chosen and rejected are the same, 1 skipped: pair with" in nothing.output
    write_lines(Path("columns.jsonl"), [{"prompt": "q", "completion": "a"}])
    missing = invoke(dpo.main, *SMALL, *short, "--dataset", "columns.jsonl", "--overwrite", code=2)
    assert "columns.jsonl: no column 'chosen' and no column 'rejected' among prompt, completion" in missing.output
    assert "--dataset: name one with the columns prompt" in invoke(dpo.main, *MODEL, "--overwrite", code=2).output
    for arguments, message in (
        (("--label-smoothing", "0.1", "--loss-type", "ipo"), "--label-smoothing (option): needs --loss-type sigmoid"),
        (("--label-smoothing", "0.5"), "--label-smoothing (option)"),
        (("--beta", "0"), "--beta (option)"),
        (("--dataset", "none.jsonl"), "none.jsonl does not exist"),
        (("--set", "data.overflow=drop"), "--set data.overflow has no meaning for pairs"),
        (("--set", "grpo.beta=0.1"), "the settings of [grpo] have no use in this run"),
        (("--validation-split", "12"), "--validation-split 12 holds out 12 of 12"),
    ):
        refused = invoke(dpo.main, *SMALL, *short, "--overwrite", *arguments, code=2)
        assert message in refused.output, refused.output
