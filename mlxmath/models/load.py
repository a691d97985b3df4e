"""Loads an MLX model folder by mlx_lm's model classes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model as mlx_lm_load_model

from mlxmath.backends.blas import blas_is_missing
from mlxmath.errors import MlxmathError
from mlxmath.models.dequantized import use_products
from mlxmath.models.finite import check_finite
from mlxmath.models.numpy_linear import use_numpy


@dataclass(frozen=True)
class Loaded:
    """A model in memory and its config.json."""

    model: nn.Module
    config: dict[str, Any]


def load_model(folder: Path, dtype: str, *, lazy: bool = False) -> Loaded:
    """Load the model in `folder` with its floating-point parameters as `dtype` (quantized weights stay packed).

    Args:
        folder: config.json and model*.safetensors, as `mlxmath convert` or mlx_lm writes them.
        dtype: "float32", "bfloat16" or "float16".
        lazy: leave the weights on the disk until they are used, and layers as they are.

    Raises:
        MlxmathError: files are missing or damaged, weights are not finite, or mlx_lm does not know the architecture.
    """
    if not (folder / "config.json").is_file():
        raise MlxmathError(f"{folder} is not a model folder: config.json is missing. Make one with `mlxmath convert`.")
    try:
        model, config = mlx_lm_load_model(folder, lazy=True)
    except (ValueError, RuntimeError, FileNotFoundError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise MlxmathError(
            f"{folder} does not load: {reason}. `mlxmath convert --overwrite` makes it again."
        ) from error
    except SystemExit:  # after a line of mlx_lm's that names it (olmo)
        raise MlxmathError(f"{folder} does not load: mlx_lm needs another package for it, named above.") from None
    if not hasattr(model, "_no_grad"):  # RecurrentGemma's class in mlx_lm leaves out what every module has
        nn.Module.__init__(model)
    model.set_dtype(getattr(mx, dtype))
    if lazy:
        return Loaded(model, config)
    if mx.default_device() == mx.Device(mx.cpu, 0):
        use_products(model)
        if dtype == "float32" and blas_is_missing():
            use_numpy(model)
    mx.eval(model.parameters())
    check_finite(folder, dict(tree_flatten(model.parameters())))
    return Loaded(model, config)
