"""Models without weights, of configurations as transformers 5 writes them: those that a conversion would make."""

from typing import Any

import pytest
from mlx.utils import tree_flatten

from mlxmath.errors import MlxmathError
from mlxmath.models.skeleton import skeleton
from tests.models import architectures


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in tree_flatten(skeleton(config, "bfloat16").parameters())}


def rewritten(model_type: str, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A configuration with the older names, and the same with the newer ones."""
    old = architectures.config_of(model_type)
    new = {name: value for name, value in old.items() if name not in ("rope_theta", "num_experts", "head_dim")}
    rope = {"rope_type": "default", "rope_theta": old["rope_theta"]}
    return old, new | {
        "rope_parameters": rope,
        "num_local_experts": old.get("num_experts", old.get("num_local_experts")),
    } | more


@pytest.mark.parametrize("model_type", ["llama", "mixtral", "qwen3_moe"])
def test_newer_names(model_type: str) -> None:
    old, new = rewritten(model_type)
    assert shapes(new) == shapes(old)


def test_kinds_of_layers_by_name() -> None:
    old, new = rewritten("exaone_moe")
    kinds = ["sparse" if is_mixture else "dense" for is_mixture in new.pop("is_moe_layer")]
    assert shapes(new | {"mlp_layer_types": kinds}) == shapes(old)


def test_a_text_model_under_a_name_of_its_own() -> None:
    whole = architectures.config_of("qwen3_5_moe")
    assert shapes(whole["text_config"]) == shapes(whole)


def test_what_a_conversion_would_refuse() -> None:
    _, new = rewritten("qwen3_moe")
    new["rope_parameters"] |= {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    with pytest.raises(MlxmathError, match="no 'yarn' scaling"):
        skeleton(new, "bfloat16")
