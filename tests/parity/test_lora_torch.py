"""LoRA, DoRA, rsLoRA, full fine-tuning and the optimizers against torch and peft."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from mlxmath.config.schema import LoraConfig
from mlxmath.config.training import TrainingConfig
from mlxmath.models.load import load_model
from mlxmath.models.lora.inject import adapter_arrays, inject, open_blocks
from mlxmath.training.optimizers import make_optimizer

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

RANK, ALPHA = 4, 12.0
TOKENS = np.random.default_rng(0).integers(1, 64, (3, 11))


def torch_model(**changes: Any) -> Any:
    torch.manual_seed(0)
    settings = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64, "tie_word_embeddings": False,
    } | changes  # fmt: skip
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).float()


def our_name(peft_name: str) -> str:
    """`base_model.model.model.layers.0.….lora_A.default.weight` -> `model.layers.0.….lora_a`."""
    name = peft_name.removeprefix("base_model.model.")
    for theirs, ours in (("lora_A", "lora_a"), ("lora_B", "lora_b"), ("lora_magnitude_vector", "m")):
        name = name.replace(f"{theirs}.default.weight", ours)
    return name


def both_adapted(folder: Path, config: LoraConfig, **changes: Any) -> tuple[Any, Any]:
    """The same tiny Llama with the same adapter values in torch + peft and in mlx."""
    base = torch_model(**changes)
    base.save_pretrained(folder)
    ours = load_model(folder, "float32").model
    inject(ours, config)
    theirs = peft.get_peft_model(
        base,
        peft.LoraConfig(
            r=config.rank, lora_alpha=config.alpha, target_modules=list(config.targets), lora_dropout=0.0,
            use_dora=config.variant == "dora", use_rslora=config.rslora,
        ),
    )  # fmt: skip
    values = {}
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            with torch.no_grad():
                if "magnitude" in name:
                    ours_m = adapter_arrays(ours)[our_name(name)]
                    np.testing.assert_allclose(np.array(ours_m), parameter.numpy(), rtol=1e-5)  # the same start
                    parameter.mul_(torch.rand_like(parameter) + 0.5)
                else:
                    torch.nn.init.normal_(parameter, std=0.1)
            values[our_name(name)] = mx.array(parameter.detach().numpy().T)
    ours.load_weights(list(values.items()), strict=False)
    return ours, theirs


def check_gradients(ours: nn.Module, theirs: Any, rename: Any, count: int) -> None:
    """The same logits, and the same gradients of Σ logits · noise for everything that trains."""
    noise = np.random.default_rng(1).standard_normal((3, 11, 64)).astype(np.float32)
    logits = theirs(torch.tensor(TOKENS)).logits
    (logits * torch.tensor(noise)).sum().backward()
    found = ours(mx.array(TOKENS))
    np.testing.assert_allclose(np.array(found), logits.detach().numpy(), rtol=1e-4, atol=1e-4)
    _, gradients = nn.value_and_grad(ours, lambda m: (m(mx.array(TOKENS)) * mx.array(noise)).sum())(ours)
    gradients = dict(tree_flatten(gradients))
    compared = 0
    for name, parameter in theirs.named_parameters():
        if parameter.grad is not None and rename(name) in gradients:
            reference = parameter.grad.numpy()
            reference = reference.T if "lora_" in rename(name) else reference
            error = np.abs(np.array(gradients[rename(name)]) - reference).max() / np.abs(reference).max()
            assert error < 1e-4, name
            compared += 1
    assert compared == len(gradients) == count


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("settings", "arrays"),
    [({}, 2), ({"rslora": True}, 2), ({"variant": "dora"}, 3), ({"variant": "dora", "rslora": True}, 3)],
)
def test_adapter_gradients(tmp_path: Path, settings: dict[str, Any], arrays: int, bias: bool) -> None:
    targets = ("q_proj", "v_proj", "o_proj", "down_proj")
    config = LoraConfig(rank=RANK, alpha=ALPHA, targets=targets, **settings)
    ours, theirs = both_adapted(tmp_path, config, attention_bias=bias)
    check_gradients(ours, theirs, our_name, 2 * len(targets) * arrays)


@pytest.mark.parametrize(("num_layers", "count"), [(-1, 18), (1, 9)])
def test_full_gradients(tmp_path: Path, num_layers: int, count: int) -> None:
    theirs = torch_model()
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path, "float32").model
    open_blocks(ours, num_layers)
    check_gradients(ours, theirs, lambda name: name, count)


def steps(optimizer: Any, parameters: dict[str, np.ndarray], gradients: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    tree = tree_unflatten([(k, mx.array(v)) for k, v in parameters.items()])
    for step, gradient in enumerate(gradients):
        optimizer.learning_rate = mx.array(1e-2 / (step + 1), mx.float32)
        tree = optimizer.apply_gradients(tree_unflatten([(k, mx.array(v)) for k, v in gradient.items()]), tree)
    return {k: np.array(v) for k, v in tree_flatten(tree)}


@pytest.mark.parametrize("ratio", [1.0, 16.0])
def test_adamw_with_groups(ratio: float) -> None:
    """Decay of matrices only, and LoRA+: torch's parameter groups."""
    rng = np.random.default_rng(2)
    shapes = {"layers.1.q.lora_a": (8, 4), "layers.1.q.lora_b": (4, 6), "layers.1.q.m": (6,)}
    start = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    gradients = [{k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()} for _ in range(6)]

    model = nn.Module()
    model.layers = tree_unflatten([(k, mx.array(v)) for k, v in start.items()])["layers"]
    optimizer = make_optimizer(TrainingConfig(weight_decay=0.1), model, ratio)
    found = steps(optimizer, start, gradients)

    reference = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in start.items()}
    rates = {k: ratio if k.endswith("lora_b") else 1.0 for k in start}
    torch_optimizer = torch.optim.AdamW(
        [{"params": [p], "lr": 1.0, "weight_decay": 0.1 if p.ndim > 1 else 0.0} for p in reference.values()]
    )
    for step, gradient in enumerate(gradients):
        for group, (k, p) in zip(torch_optimizer.param_groups, reference.items(), strict=True):
            group["lr"] = 1e-2 / (step + 1) * rates[k]
            p.grad = torch.tensor(gradient[k])
        torch_optimizer.step()
    for k, p in reference.items():
        np.testing.assert_allclose(found[k], p.detach().numpy(), rtol=1e-4, atol=1e-5)
