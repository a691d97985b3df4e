"""Loads an MLX model folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path

from mlxmath.errors import MlxmathError
from mlxmath.models.checks import check_finite
from mlxmath.models.linear import use_numpy, use_products
from mlxmath.runtime.blas import blas_is_missing
from mlxmath.runtime.files import read_json
from mlxmath.weights.architecture import probe
from mlxmath.weights.layout import check_claims
from mlxmath.weights.manifest import FILE_NAME, verify
from mlxmath.weights.source import open_weights


@dataclass(frozen=True)
class Loaded:
    """A model in memory and its config.json."""

    model: nn.Module
    config: dict[str, Any]


def load_model(folder: Path, dtype: str, *, lazy: bool = False) -> Loaded:
    """Load the model in `folder` with its floating-point parameters as `dtype`.

    Quantized weights stay packed, and what the architecture wants in a type of its own keeps the one it is stored in
    (mlx_lm's `cast_predicate`: the biases of a router, the decay of a state).

    Args:
        folder: config.json and model*.safetensors, as `mlxmath convert` or mlx_lm writes them.
        dtype: "float32", "bfloat16" or "float16".
        lazy: leave the weights on the disk until they are used, and layers as they are.

    Raises:
        MlxmathError: files are missing or damaged, weights are not finite, mlx_lm does not know the architecture,
            or the weights are not of the model that config.json describes (all that is missing, unknown or of another
            shape is named).
    """
    if not (folder / "config.json").is_file():
        raise MlxmathError(f"{folder} is not a model folder: config.json is missing. Make one with `mlxmath convert`.")
    weights = open_weights(folder)
    if weights.files[0].suffix != ".safetensors":
        raise MlxmathError(
            f"{folder} holds a model that is not converted yet. Make an MLX model with `mlxmath convert`."
        )
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise MlxmathError(f"{folder / 'config.json'} has no model_type; expected the configuration of a model.")
    check_claims(config, weights.tensors, folder)
    try:
        built = probe(folder)
    except MlxmathError as error:
        raise MlxmathError(f"{folder} does not load: {error}. {_advice(folder)}") from error
    if built.problems:
        raise MlxmathError(
            f"{folder} does not load, since its weights are not those of the model that config.json describes. Tensors "
            f"{'; '.join(built.problems)}. {_advice(folder)}"
        )
    model = built.model
    model.__class__ = type(model).__mro__[1]  # mlx_lm's own
    if not hasattr(model, "_no_grad"):  # RecurrentGemma's class in mlx_lm leaves out what every module has
        nn.Module.__init__(model)
    model.load_weights(list(built.arrays.items()))
    cast(model, getattr(mx, dtype))
    if lazy:
        return Loaded(model, built.config)
    suit(model, dtype)
    mx.eval(model.parameters())
    check_finite(folder, dict(tree_flatten(model.parameters())))
    return Loaded(model, built.config)


def suit(model: nn.Module, dtype: str) -> None:
    """Let a model's layers compute as is best on MLX's default device."""
    if mx.default_device() == mx.Device(mx.cpu, 0):
        use_products(model)
        if dtype == "float32" and blas_is_missing():
            use_numpy(model)


def cast(model: nn.Module, dtype: mx.Dtype) -> None:
    """Give a model's floating-point parameters the type, but for those that its architecture keeps out of casts."""
    may_cast = getattr(model, "cast_predicate", lambda _: True)

    def converted(name: str, array: mx.array) -> mx.array:
        is_fixed = not mx.issubdtype(array.dtype, mx.floating) or name.endswith("global_scale") or not may_cast(name)
        return array if is_fixed else array.astype(dtype)

    model.update(tree_map_with_path(converted, model.parameters()))


def _advice(folder: Path) -> str:
    """What helps, given how the folder came about."""
    if not (folder / FILE_NAME).exists():
        return "It was made by another program: convert the original model with `mlxmath convert`."
    damage = verify(folder, full=True)
    if isinstance(damage, str):
        return f"It was changed after it was made ({damage}); `mlxmath convert --overwrite` makes it again."
    return "It was made by another version of mlxmath or mlx_lm; convert it again, into another --mlx-path."
