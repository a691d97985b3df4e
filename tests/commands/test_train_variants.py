"""`train` with other adapters, optimizers and schedules, as a user runs it on the bundled model."""

import json
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.utils import load as mlx_lm_load

from mlxmath.generation.model import load_generation_tokenizer
from mlxmath.models.load import load_model
from mlxmath.models.lora.adapter import load_adapter
from tests.data.material import write_lines
from tests.helpers import events, run, succeed
from tests.models.architectures import write

SHORT = ("--debug", "--num-epochs", "3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the converted model and the cache."""
    folder = tmp_path_factory.mktemp("variants")
    succeed(folder, "train", *SHORT, "--max-steps", "1")
    return folder


def losses_and_rates(folder: Path) -> tuple[list[float], list[float]]:
    steps = [event for event in events(folder) if event["event"] == "step"]
    return [event["loss"] for event in steps], [event["learning_rate"] for event in steps]


def check_both_loaders(folder: Path) -> None:
    """The adapters load here and in mlx_lm, and give the same logits, which are not the base's."""
    tokens = mx.array([load_generation_tokenizer(folder / "mlx_model").encode("What is 12 + 7?")])
    ours = load_model(folder / "mlx_model", "float32").model
    base = ours(tokens)
    load_adapter(ours, folder / "adapters")
    theirs, _ = mlx_lm_load(str(folder / "mlx_model"), adapter_path=str(folder / "adapters"))
    assert mx.allclose(ours(tokens), theirs(tokens), rtol=1e-3, atol=1e-3)
    assert not mx.allclose(ours(tokens), base, atol=1e-2)


def test_dora_with_every_option(folder: Path) -> None:
    options = (
        "--lora-variant", "dora", "--lora-rslora", "--lora-plus-ratio", "4", "--lora-rank", "16", "--lora-alpha", "8",
        "--lora-targets", "*", "--optimizer", "adamw8bit", "--weight-decay", "0.01", "--schedule", "cosine",
        "--warmup-ratio", "0.4", "--min-learning-rate-ratio", "0.1", "--learning-rate", "1e-3",
    )  # fmt: skip
    result = succeed(folder, "train", *SHORT, *options, "--overwrite")
    assert "DoRA adapters on mlp.down_proj" in result.stderr
    losses, rates = losses_and_rates(folder)
    assert losses[-1] < losses[0]
    warmup = -(-4 * len(rates) // 10)
    assert rates[:warmup] == pytest.approx([1e-3 * (s + 1) / warmup for s in range(warmup)])
    assert rates[-1] > 1e-4
    record = json.loads((folder / "adapters" / "adapter_config.json").read_text())
    assert (record["fine_tune_type"], record["lora_parameters"]["scale"]) == ("dora", 2.0)
    check_both_loaders(folder)
    succeed(folder, "infer", "--prompt", "What is 12 + 7?", "--max-new-tokens", "2")
    refused = run(folder, "train", *SHORT, "--optimizer", "lion", "--full", "--resume")
    assert refused.returncode == 2
    for difference in (
        "training.optimizer was 'adamw8bit' and is 'lion'", "training.full was False and is True",
        "lora.variant was 'dora' and is 'lora'", "lora.rslora was True and is False",
        "lora.plus_ratio was 4.0 and is 1.0",
    ):  # fmt: skip
        assert difference in refused.stderr


def test_full_of_the_last_blocks_and_its_resumption(folder: Path) -> None:
    options = ("--full", "--lora-num-layers", "2", "--optimizer", "adafactor", "--learning-rate", "1e-3")
    result = succeed(folder, "train", *SHORT, *options, "--max-steps", "4", "--overwrite")
    assert "layers: input_layernorm, mlp.down_proj" in result.stderr
    losses, _ = losses_and_rates(folder)
    assert losses[-1] < losses[0]
    check_both_loaders(folder)
    result = succeed(folder, "train", *SHORT, *options, "--max-steps", "6", "--resume")
    assert "finished at step 6" in result.stderr


def test_a_mixture_says_whether_its_experts_train_and_a_spoilt_adapter_answers_nothing(tmp_path: Path) -> None:
    source = write("gpt_oss", tmp_path / "source")
    rows = [{"question": f"w5 w{9 + i} w7", "solution": f"w{10 + i} w11 w8"} for i in range(16)]
    write_lines(tmp_path / "rows.jsonl", rows)
    options = (
        "--model", source, "--dataset", "rows.jsonl", "--decontaminate", "none", "--lora-rank", "4",
        "--learning-rate", "1e-2",
    )  # fmt: skip
    default = succeed(tmp_path, "train", *options, "--max-steps", "1").stderr
    assert "no --lora-targets are given: self_attn.q_proj, self_attn.v_proj" in default
    assert "the experts stay as they are; add experts.* to --lora-targets" in default
    whole = succeed(tmp_path, "train", *options, "--max-steps", "8", "--lora-targets", "*", "--overwrite").stderr
    assert "experts train" in whole and "mlp.experts.down_proj" in whole
    losses, _ = losses_and_rates(tmp_path)
    assert losses[-1] < losses[0]
    arrays = mx.load(str(tmp_path / "adapters" / "adapters.safetensors"))
    assert all(array.any() for name, array in arrays.items() if "experts" in name and name.endswith("lora_b"))
    tokens = mx.array([[5, 9, 33, 7]])
    ours = load_model(tmp_path / "mlx_model", "float32").model
    load_adapter(ours, tmp_path / "adapters")
    theirs, _ = mlx_lm_load(str(tmp_path / "mlx_model"), adapter_path=str(tmp_path / "adapters"))
    assert mx.allclose(ours(tokens), theirs(tokens), rtol=1e-3, atol=1e-3)

    ask = ("infer", "--prompt", "w5 w9", "--max-new-tokens", "1", "--raw")
    succeed(tmp_path, *ask)
    name = "model.layers.0.mlp.experts.up_proj.lora_b"
    mx.eval(arrays)
    mx.save_safetensors(str(tmp_path / "adapters" / "adapters.safetensors"), arrays | {name: arrays[name] * mx.nan})
    refused = run(tmp_path, *ask)
    assert refused.returncode == 1 and f"{name} holds nan" in refused.stderr
    (tmp_path / "adapters" / "adapter_config.json").write_text('["lora"]')
    refused = run(tmp_path, *ask)
    assert refused.returncode == 1 and "adapter_config.json is not an adapter configuration" in refused.stderr


def test_a_resumed_run_is_batched_as_it_was_unless_told_otherwise(folder: Path) -> None:
    """What it is chosen by is measured, and another choice would be another run."""
    run_json = folder / "adapters" / "run.json"
    succeed(folder, "train", *SHORT, "--max-steps", "1", "--overwrite")
    chosen = json.loads(run_json.read_text())["batching"]
    (state_path,) = (folder / "adapters" / "checkpoints").glob("*/state.json")
    state = json.loads(state_path.read_text())
    assert state["state"]["batching"]["ranks"] == [[chosen["num_workers"], chosen["tokens"]]]
    state["state"]["batching"]["ranks"] = [[1, 272]]
    del state["checksum"]
    state_path.write_text(json.dumps(state))
    succeed(folder, "train", *SHORT, "--max-steps", "2", "--resume")
    assert json.loads(run_json.read_text())["batching"] == {"num_workers": 1, "tokens": 272}
    succeed(folder, "train", *SHORT, "--max-steps", "3", "--resume", "--max-batch-tokens", "300")
    assert json.loads(run_json.read_text())["batching"]["tokens"] == 300
