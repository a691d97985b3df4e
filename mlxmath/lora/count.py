"""Counts a model's weights and what trains of them, before anything of it is there but config.json."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from mlxmath.config.schema import LoraConfig, RunConfig
from mlxmath.lora.inject import adapter_arrays, open_blocks
from mlxmath.lora.targets import resolve_targets
from mlxmath.models.memory import Counted
from mlxmath.models.skeleton import skeleton, weight_bytes


def counted(model_config: Mapping[str, Any], config: RunConfig, dtype: str) -> Counted:
    """Build the model that config.json describes without its weights, and count.

    Args:
        model_config: config.json.
        config: quantization, what trains.
        dtype: that the model computes in.

    Raises:
        InputError: a target matches nothing, or what is asked for cannot be trained.
        MlxmathError: config.json describes no model that mlx_lm can build.
    """
    model, lora = config.model, config.lora
    text = json.dumps(dict(model_config), sort_keys=True, default=str)
    return _counted(text, lora.model_dump_json(), model.quantize, model.group_size, config.training.full, dtype)


@cache
def _counted(
    model_config: str, lora: str, quantize: int | None, group_size: int, full: bool, dtype: str
) -> Counted:  # fmt: skip
    settings = LoraConfig.model_validate_json(lora)
    model = skeleton(json.loads(model_config), dtype, quantize, group_size)
    weights = weight_bytes(model)
    if full:
        open_blocks(model, settings.num_layers)
        return Counted(weights, sum(array.size for array in adapter_arrays(model).values()))
    return Counted(weights, resolve_targets(model, settings).num_parameters(settings))
