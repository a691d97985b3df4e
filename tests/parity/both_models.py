"""The same tiny model in torch with peft and in MLX."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxmath.config.schema import LoraConfig
from mlxmath.models.load import load_model
from mlxmath.models.lora.inject import inject

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
RANK, ALPHA = 4, 12.0


def both_models(folder: Path, targets: tuple[str, ...]) -> tuple[Any, Any]:
    """The same tiny Llama with the same LoRA values (B not zero) in torch + peft and in mlx."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    base = transformers.LlamaForCausalLM(config).float()
    base.save_pretrained(folder)
    ours = load_model(folder, "float32").model
    inject(ours, LoraConfig(rank=RANK, alpha=ALPHA, targets=targets))
    theirs = peft.get_peft_model(
        base, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(targets), lora_dropout=0.0)
    )
    values = {}
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
            values[our_name(name)] = mx.array(parameter.detach().numpy().T)
    ours.load_weights(list(values.items()), strict=False)
    return ours, theirs


def our_name(peft_name: str) -> str:
    """`base_model.model.model.layers.0.….lora_A.default.weight` -> `model.layers.0.….lora_a`."""
    return (
        peft_name.removeprefix("base_model.model.")
        .replace("lora_A.default.weight", "lora_a")
        .replace("lora_B.default.weight", "lora_b")
    )
