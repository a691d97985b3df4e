"""`plan`: sizes, verdicts, remedies; and that `train` asks it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlxmath.config.load import resolve
from mlxmath.errors import InputError
from mlxmath.models.measured import Measured
from mlxmath.models.memory import MemoryPlan
from mlxmath.runtime.device import DeviceInfo
from mlxmath.training import footprint
from mlxmath.training.plan import Objective, parse_size, planned, remedies
from tests.helpers import run, succeed

SMALL: dict[str, Any] = {
    "model_type": "llama", "num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 704,
    "num_attention_heads": 4, "vocab_size": 4096, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
}  # fmt: skip
BLOCK = 4 * 256**2 + 3 * 256 * 704 + 2 * 256
"""Parameters of a block of it, with norms."""


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Weights are counted, and no block is tried: what is for a GPU takes a CPU too long."""

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("not tried")

    monkeypatch.setattr(footprint, "_Trial", fail)
    footprint.KNOWN.clear()
    yield
    footprint.KNOWN.clear()


def model(folder: Path, **changes: Any) -> str:
    """A folder with nothing but a config.json."""
    (folder / "small").mkdir()
    (folder / "small" / "config.json").write_text(json.dumps(SMALL | changes))
    return "small"


def plan_of(objective: Objective, device: str = "cpu", memory: float = 500e9, **values: object) -> MemoryPlan:
    """Of rows of 640 tokens."""
    config = resolve([("t", {name.replace("__", "."): value for name, value in values.items()})]).config
    dtype = "float32" if device == "cpu" else "bfloat16"
    return planned(config, SMALL, DeviceInfo(device, "D", int(memory), dtype, ""), 640, objective)[0]


def test_it_needs_only_the_configuration_and_says_what_would_fit(tmp_path: Path) -> None:
    name = model(tmp_path, num_hidden_layers=24)
    fits = succeed(tmp_path, "plan", "--model", name, "--memory", "128GB", "--quantize", "4")
    assert "fits" in fits.stdout and "weights" in fits.stdout
    assert re.search(r"about [\d,]+ tokens/s on this cpu", fits.stdout)
    assert "an optimizer step of 8 rows takes at most" in fits.stdout
    counted = succeed(tmp_path, "plan", "--model", name, "--memory", "128GB", "--quantize", "4", "--max-steps", "3")
    assert "24 rows of at most 1,024 tokens take at most" in counted.stdout
    tight = run(tmp_path, "plan", "--model", name, "--memory", "30 MB")
    assert tight.returncode == 1
    assert "does not fit into 30.00 MB" in tight.stdout
    assert (
        "with --grad-checkpoint 1" in tight.stdout and "--quantize" in tight.stdout and "--max-seq-len" in tight.stdout
    )
    sizes = [float(found) for found in re.findall(r": ([\d.]+) MB \((?:fits|still too much)\)", tight.stdout)]
    assert len(sizes) >= 2 and sizes == sorted(sizes, reverse=True)  # each takes less than the one before


MIXTURES = {
    "of 128": (
        {
            "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
            "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
            "vocab_size": 151936, "num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1,
            "mlp_only_layers": [], "norm_topk_prob": True, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
            "max_position_embeddings": 40960, "tie_word_embeddings": False,
        },
        30.53e9,
    ),
    "of 8": (
        {
            "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "num_local_experts": 8,
            "num_experts_per_tok": 2, "tie_word_embeddings": False,
        },
        46.70e9,
    ),
}  # fmt: skip
"""Configurations, and the parameters that their publishers state."""


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize("name", MIXTURES)
def test_experts_are_counted(name: str) -> None:
    model_config, parameters = MIXTURES[name]
    device = DeviceInfo("metal", "D", int(500e9), "bfloat16", "")
    plain = planned(resolve([]).config, model_config, device, 256)[0]
    assert plain.weights == pytest.approx(2 * parameters, rel=0.002)
    packed = planned(resolve([("t", {"model.quantize": 4})]).config, model_config, device, 256)[0]
    assert packed.weights == pytest.approx(parameters * (4 + 32 / 64) / 8, rel=0.01)


@pytest.mark.usefixtures("untried")
def test_sizes_inside_a_shell_and_a_mapping_of_bits() -> None:
    inner = {
        "model_type": "gemma3_text", "hidden_size": 1024, "num_hidden_layers": 6, "intermediate_size": 4096,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262208,
    }  # fmt: skip
    shell = {"model_type": "gemma3", "text_config": inner, "vocab_size": 262208, "vision_config": {"hidden_size": 9}}
    device = DeviceInfo("metal", "D", int(500e9), "bfloat16", "")
    whole = planned(resolve([]).config, shell, device, 256)[0].weights
    embedding = 2 * 262208 * 1024
    assert embedding < whole < 2 * embedding, "tied, though config.json does not say so"
    packed = planned(resolve([]).config, shell | {"quantization": {"bits": 4, "group_size": 64}}, device, 256)[
        0
    ].weights
    assert packed == pytest.approx(whole * 4.5 / 16, rel=0.01)
    mixed = {"bits": 4, "group_size": 64, "language_model.model.embed_tokens": {"bits": 8, "group_size": 64}}
    found = planned(resolve([]).config, shell | {"quantization": mixed}, device, 256)[0].weights
    assert found == pytest.approx(packed + embedding / 2 * 0.5, rel=0.01)


def test_remedies_help_and_are_allowed() -> None:
    full = resolve([("t", {"training.full": True})]).config
    device = DeviceInfo("cpu", "D", int(16e6), "float32", "")
    now = planned(full, SMALL, device, 640)[0].total
    named = remedies(full, SMALL, device, 640)
    assert named and not any("--quantize" in change for change, _ in named)
    totals = [now, *(total for _, total in named)]
    assert totals == sorted(totals, reverse=True) and len(set(totals)) == len(totals)
    stored = SMALL | {"quantization": {"bits": 4, "group_size": 64}}
    assert not any("--quantize" in change for change, _ in remedies(resolve([]).config, stored, device, 640))


def test_train_refuses_what_cannot_fit_unless_told_otherwise(prepared: Path) -> None:
    refused = run(prepared, "train", "--debug", "--memory-limit-gb", "0.001")
    assert refused.returncode == 2 and "takes about" in refused.stderr and "--allow-overcommit" in refused.stderr
    assert not (prepared / "adapters").exists()
    succeed(prepared, "train", "--debug", "--memory-limit-gb", "0.05", "--allow-overcommit", "--max-steps", "1")


@pytest.mark.parametrize(("text", "expected"), [("16GB", 16e9), ("1.5 tb", 1.5e12), ("500", 500), ("64B", 64)])
def test_sizes(text: str, expected: float) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0GB", "16GiB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match="--memory: expected a size such as 16GB"):
        parse_size(text)


def test_grpo_draws_first_and_learns_then() -> None:
    whole, plan = plan_of("train"), plan_of("grpo")
    assert plan.weights == whole.weights and whole.drawing == whole.reference == 0
    a_token = 2 * 4 * 256 * 4
    assert plan.drawing > 8 * 512 * a_token  # a step has 8 completions, of 512 tokens by default
    assert plan.total == plan.steady + max(plan.learning, plan.drawing)
    few = plan_of("grpo", grpo__concurrency=2)
    assert few.drawing == plan.drawing // 4 and few.learning == plan.learning
    of = footprint.measured(SMALL, resolve([]).config, DeviceInfo("cpu", "D", int(500e9), "float32", "")).measured
    assert isinstance(of, Measured)
    prompts, completions = 128, 512
    per_token = 4 * 256 + 2 * 2 * 4 * 256  # a prompt's token: a block's input, keys, values, and their gradients
    assert plan.activations == pytest.approx(of.kept.at(completions, 640) + 4 * prompts * per_token)
    packed = plan_of("grpo", training__batching="pack")  # prompts are shared in buckets alone
    assert packed.drawing > 0 and packed.learning == plan_of("train", training__batching="pack").learning


def test_a_teacher_is_counted_unless_it_has_the_students_weights(tmp_path: Path) -> None:
    def reference(*more: str) -> str:
        named = ("--model", "demo", "--max-completion-length", "96", "--memory", "8GB", *more)
        shown = succeed(tmp_path, "plan", "--for", "gkd", *named).stdout
        assert "drawing" in shown
        return "".join(re.findall(r"reference or teacher +(.*)", shown))

    succeed(tmp_path, "convert", "--model", "demo")
    assert reference("--teacher", "mlx_model") == ""
    assert reference("--teacher", "mlx_model", "--mlx-path", "another") == "7.87 MB"
    missing = run(tmp_path, "plan", "--for", "gkd", "--model", "demo")
    assert missing.returncode == 2 and "--teacher: name the model" in missing.stderr


@pytest.mark.parametrize(
    ("objective", "copies", "settings"),
    [
        ("dpo", 1, {"training.full": True}),
        ("dpo", 1, {"training.init_adapter": "adapters"}),
        ("dpo", 0, {}),
        ("dpo", 0, {"training.full": True, "dpo.loss_type": "orpo"}),
        ("dpo", 0, {"training.full": True, "dpo.loss_type": "simpo"}),
        ("dpo", 0, {"training.full": True, "dpo.loss_type": "cpo"}),
        ("dpo", 1, {"training.full": True, "dpo.loss_type": "kto"}),
        ("grpo", 1, {"grpo.beta": 0.1}),
        ("grpo", 0, {}),
        ("train", 0, {"training.full": True}),
    ],
)
def test_a_reference_is_counted(objective: Objective, copies: int, settings: dict[str, object]) -> None:
    full = bool(settings.get("training.full"))
    trained = 4 * (BLOCK if full else 2 * resolve([]).config.lora.rank * 2 * 256)
    plan = plan_of(objective, **{name.replace(".", "__"): value for name, value in settings.items()})
    assert plan.reference == copies * 4 * trained


def test_what_is_converted_already_is_planned_for_as_it_is(tmp_path: Path) -> None:
    def weights(*more: str) -> float:
        shown = succeed(tmp_path, "plan", "--model", "demo", *more).stdout
        found = re.search(r"weights +([\d.]+) (MB|KB)", shown)
        assert found, shown
        return float(found[1])

    whole = weights()
    succeed(tmp_path, "convert", "--model", "demo", "--quantize", "4")
    assert weights() == weights("--quantize", "4") < 0.4 * whole
    assert weights("--mlx-path", "another") == whole
    (tmp_path / "mlx_model" / "mlxmath.json").unlink()  # as if somebody else had made it
    assert weights("--model", "mlx_model", "--mlx-path", "mlx_model") < 0.4 * whole
    shown = succeed(tmp_path, "plan", "--for", "grpo", "--model", "demo", "--max-completion-length", "96")
    assert "drawing" in shown.stdout


def test_the_tokens_that_were_prepared_are_counted(tmp_path: Path) -> None:
    shown = succeed(tmp_path, "plan", "--model", "demo", "--dataset", "demo").stdout
    assert "an upper bound" in shown
    told = succeed(tmp_path, "prepare", "--model", "demo", "--dataset", "demo", "--num-examples", "50")
    counted = re.search(r"([\d,]+) rows?, ([\d,]+) tokens", told.stderr)
    assert counted, told.stderr
    rows, tokens = (int(number.replace(",", "")) for number in counted.groups())
    shown = succeed(tmp_path, "plan", "--model", "demo", "--dataset", "demo", "--num-examples", "50").stdout
    assert f"rows of about {tokens / rows:,.0f} tokens" in shown and "an upper bound" not in shown
    other = succeed(tmp_path, "plan", "--model", "demo", "--dataset", "demo", "--num-examples", "49").stdout
    assert "49 rows of at most" in other and "an upper bound" in other
