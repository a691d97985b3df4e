"""An adapter that changes something, beside the demo's model; no test."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlxmath.config.load import settings_from
from mlxmath.config.schema import LoraConfig
from mlxmath.exporting.export import Exported, export
from mlxmath.models.load import load_model
from mlxmath.models.lora.adapter import adapter_config, save_config, save_weights
from mlxmath.models.lora.inject import adapter_arrays, inject
from mlxmath.weights.manifest import read_fingerprint

ALL = ("*_proj",)


def make_adapter(folder: Path, model: Path, std: float = 0.05, **lora: Any) -> Path:
    """Write an adapter with random values (B and m too) for a model folder."""
    config = LoraConfig(**{"rank": 4, "alpha": 12.0, "targets": ALL} | lora)
    loaded = load_model(model, "float32").model
    mx.random.seed(3)
    injected = inject(loaded, config)
    values = {}
    for name, array in adapter_arrays(loaded).items():
        noise = mx.random.normal(array.shape) * std
        values[name] = array * (1 + noise) if name.endswith(".m") else noise
    loaded.load_weights(list(values.items()), strict=False)
    folder.mkdir(parents=True)
    record = adapter_config(
        config, injected.keys, base_model="demo", base_fingerprint=read_fingerprint(model), template="tutor"
    )
    save_config(folder, record)
    save_weights(folder / "adapters.safetensors", loaded)
    return folder


def exported(model: Path, adapter: Path | None, to: str, folder: Path, **settings: Any) -> Exported:
    """`mlxmath export`."""
    config = settings_from(
        ("model", "export", "runtime"), to=to, mlx_path=str(model), export_path=str(folder), backend="cpu", **settings
    ).config
    return export(config, adapter)


def logits_of(model: Any, ids: list[int]) -> np.ndarray:
    """(L, V) of a model of MLX."""
    model.eval()
    return np.array(model(mx.array([ids])).astype(mx.float32))[0]
