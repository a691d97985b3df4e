"""What is exported computes the same in torch: adapters in PEFT, merged models in transformers."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlxmath.config.load import settings_from
from mlxmath.config.schema import ModelConfig
from mlxmath.exporting import hf
from mlxmath.exporting.original import Job, Original
from mlxmath.models.load import load_model
from mlxmath.models.lora.adapter import load_adapter
from mlxmath.weights.convert import ensure_model
from tests.exporting.tuned import exported, logits_of, make_adapter

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
IDS = [1, 17, 33, 60, 5, 90, 41, 28, 77, 2, 9, 11, 54]
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {}, "dora": {"variant": "dora"}, "rslora": {"rslora": True}, "last block": {"num_layers": 1},
}  # fmt: skip


def base_of(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def torch_logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].numpy()


@pytest.mark.parametrize("variant", VARIANTS)
def test_adapters_in_peft_and_back(debug_run: Path, tmp_path: Path, variant: str) -> None:
    model = debug_run / "mlx_model"
    adapter = make_adapter(tmp_path / "adapters", model, dropout=0.1, **VARIANTS[variant])
    exported(model, adapter, "peft", tmp_path / "peft")
    tuned = Original(model, adapter, "float32").open().model
    ours = logits_of(tuned, IDS)
    base = logits_of(load_model(model, "float32").model, IDS)
    theirs = torch_logits(peft.PeftModel.from_pretrained(base_of(model), tmp_path / "peft"))
    assert np.abs(ours - base).max() > 0.1
    assert np.abs(ours - theirs).max() < 1e-4
    again = load_model(model, "float32").model
    record = load_adapter(again, tmp_path / "peft")
    assert record["template"] == "tutor" and np.array_equal(logits_of(again, IDS), ours)


def test_merged_model_in_transformers(debug_run: Path, tmp_path: Path) -> None:
    model = debug_run / "mlx_model"
    adapter = make_adapter(tmp_path / "adapters", model, variant="dora")
    exported(model, adapter, "hf", tmp_path / "hf", export_dtype="float32")
    ours = logits_of(Original(model, adapter, "float32").open().model, IDS)
    assert np.abs(torch_logits(base_of(tmp_path / "hf")) - ours).max() < 1e-4


def test_texts_beyond_longrope_s_first_factors(debug_run: Path, tmp_path: Path) -> None:
    """In transformers as the source's; and in MLX, which has the first factors alone, as the converted model's."""
    torch.manual_seed(0)
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.5, 2.0, 2.5],
        "long_factor": [3.0, 4.0, 6.0, 9.0], "original_max_position_embeddings": 8,
    }  # fmt: skip
    config = transformers.Phi3Config(
        **SIZES, rope_parameters=rope, original_max_position_embeddings=8, pad_token_id=0, initializer_range=0.2
    )
    source = transformers.Phi3ForCausalLM(config).float().eval()
    source.save_pretrained(tmp_path / "base")
    for file in (debug_run / "mlx_model").glob("*token*"):
        shutil.copy(file, tmp_path / "base")
    ensure_model(ModelConfig(model=str(tmp_path / "base"), mlx_path=str(tmp_path / "mlx")))
    exported(tmp_path / "mlx", None, "hf", tmp_path / "hf")
    found = base_of(tmp_path / "hf")
    for ids in (IDS, IDS[:6]):
        with torch.no_grad():
            one, other = (model(torch.tensor([ids])).logits[0].numpy() for model in (source, found))
        assert np.abs(one - other).max() < 1e-4
    settings = settings_from(("model", "export", "runtime"), to="hf").config
    answers = hf.reopened(Job(Original(tmp_path / "mlx", None, "float32"), settings.export, tmp_path / "hf"))
    wanted = torch.log_softmax(torch.tensor(one), -1)[[2, 3, 4], IDS[3:6]].numpy()
    assert np.abs(np.array(answers.logprobs(IDS[:3], IDS[3:6])) - wanted).max() < 1e-4


SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip
MIXTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe": ("Qwen3Moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}),
    "qwen2_moe": ("Qwen2Moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                               "shared_expert_intermediate_size": 40}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmoe": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")  # PEFT looks for modules, and uses them
@pytest.mark.parametrize(
    ("kind", "parts"), [*((kind, "all") for kind in MIXTURES), ("qwen3_moe", "gates"), ("mixtral", "rslora, downs")]
)
def test_experts_in_peft_and_back(debug_run: Path, tmp_path: Path, kind: str, parts: str) -> None:
    name, more = MIXTURES[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, **more)
    getattr(transformers, f"{name}ForCausalLM")(config).float().save_pretrained(tmp_path / "base")
    for file in (debug_run / "mlx_model").glob("*token*"):
        shutil.copy(file, tmp_path / "base")
    ensure_model(ModelConfig(model=str(tmp_path / "base"), mlx_path=str(tmp_path / "mlx")))
    ends = {"all": ("*switch_mlp*", "*_proj"), "gates": ("*.switch_mlp.gate_proj",),
            "rslora, downs": ("*.switch_mlp.down_proj", "q_proj")}[parts]  # fmt: skip
    if kind == "qwen2_moe" and parts == "all":
        ends = ("*switch_mlp*", "q_proj")
    adapter = make_adapter(tmp_path / "adapters", tmp_path / "mlx", std=0.3, targets=ends, rslora="rslora" in parts)
    exported(tmp_path / "mlx", adapter, "peft", tmp_path / "peft")
    ours = logits_of(Original(tmp_path / "mlx", adapter, "float32").open().model, IDS)
    base = load_model(tmp_path / "mlx", "float32").model
    assert np.abs(ours - logits_of(base, IDS)).max() > 0.05
    theirs = torch_logits(peft.PeftModel.from_pretrained(base_of(tmp_path / "base"), tmp_path / "peft"))
    assert np.abs(ours - theirs).max() < 1e-4
    load_adapter(base, tmp_path / "peft")
    assert np.array_equal(logits_of(base, IDS), ours)
    exported(tmp_path / "mlx", adapter, "hf", tmp_path / "hf")
    assert np.abs(torch_logits(base_of(tmp_path / "hf")) - ours).max() < 1e-4


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("variant", ["lora", "dora", "patterns"])
def test_folders_that_peft_saved(debug_run: Path, tmp_path: Path, variant: str, form: str) -> None:
    model = debug_run / "mlx_model"
    more: dict[str, Any] = {"use_dora": variant == "dora", "use_rslora": variant != "lora"}
    if variant == "patterns":
        more |= {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"layers.0.mlp.up_proj": 5}}
    config = peft.LoraConfig(r=6, lora_alpha=10, target_modules="all-linear", task_type="CAUSAL_LM", **more)
    theirs = peft.get_peft_model(base_of(model), config)
    torch.manual_seed(1)
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad and "magnitude" not in name:
            torch.nn.init.normal_(parameter, std=0.05)
        elif parameter.requires_grad:
            parameter.data *= 1.1
    theirs.save_pretrained(tmp_path / "peft", safe_serialization=form == "safetensors")
    if form == "bin" and not (tmp_path / "peft/adapter_model.bin").exists():  # PEFT writes safetensors all the same
        (tmp_path / "peft/adapter_model.safetensors").unlink()
        torch.save(peft.get_peft_model_state_dict(theirs), tmp_path / "peft/adapter_model.bin")
    found = load_model(model, "float32").model
    load_adapter(found, tmp_path / "peft")
    wanted = torch_logits(theirs.eval())
    assert np.abs(logits_of(found, IDS) - wanted).max() < 1e-4
    exported(model, tmp_path / "peft", "peft", tmp_path / "again")
    again = peft.PeftModel.from_pretrained(base_of(model), tmp_path / "again")
    assert np.abs(torch_logits(again.eval()) - wanted).max() < 1e-4
