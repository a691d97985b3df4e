"""Affine quantization by mlx_lm's rules, a block of rows at a time.

mlx_lm decides by building the model: every layer with `to_quantized` whose last dimension the group size divides, less
those that the model's own predicate leaves out. The model is built here too, but never filled: MLX is lazy, so its
arrays take no memory. `mx.quantize` works row by row, so quantizing blocks of rows gives the same bits.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlxmath.errors import InputError, MlxmathError
from mlxmath.weights.dtypes import DTYPES, Array
from mlxmath.weights.layout import model_source
from mlxmath.weights.tensors import TensorRef

MODE = "affine"


@dataclass(frozen=True)
class QuantizationPlan:
    """
    Attributes:
        tensors: name in the output -> where it lies (the model's own names).
        bits: name of each weight that is quantized -> its (bits, group size).
        settings: what config.json says under "quantization".
        skipped: layers that stay as they are because the group size does not divide their last dimension.
    """

    tensors: Mapping[str, TensorRef]
    bits: Mapping[str, tuple[int, int]]
    settings: dict[str, Any]
    skipped: tuple[str, ...]


def _skeleton(config: dict[str, Any]) -> Any:
    """The model with random, unevaluated weights."""
    from mlx_lm.utils import _get_classes

    model_class, arguments = _get_classes(config)
    try:
        return model_class(arguments.from_dict(config))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise MlxmathError(
            f"config.json does not describe a model of type {config['model_type']!r}: {error}"
        ) from error


def kept_floats(config: dict[str, Any], names: Mapping[str, TensorRef]) -> frozenset[str]:
    """Tensors whose type the model itself wants unchanged (mlx_lm's `cast_predicate`, which few models have)."""
    source = model_source(config["model_type"])
    if source is not None and "cast_predicate" not in source.read_text(encoding="utf-8"):
        return frozenset()
    predicate = getattr(_skeleton(config), "cast_predicate", None)
    return frozenset(name for name in names if predicate is not None and not predicate(name))


def plan_quantization(
    config: dict[str, Any], stored: Mapping[str, TensorRef], *, bits: int, group_size: int
) -> QuantizationPlan:
    """Decide what is quantized.

    Raises:
        InputError: the architecture rearranges its weights on loading, so that it cannot be done tensor by tensor.
        MlxmathError: the checkpoint lacks a tensor of the model, or one has another shape.
    """
    import mlx.core as mx
    from mlx.nn.layers.base import Module
    from mlx.utils import tree_flatten

    model = _skeleton(config)
    placeholders = {name: mx.zeros(tensor.shape, _mlx_dtype(tensor.dtype)) for name, tensor in stored.items()}
    origin = {id(array): name for name, array in placeholders.items()}
    sanitized = model.sanitize(dict(placeholders)) if hasattr(model, "sanitize") else placeholders
    if any(id(array) not in origin for array in sanitized.values()):
        raise InputError(
            f"--quantize: models of type {config['model_type']!r} rearrange their weights on loading, which cannot be "
            "done while converting. Convert without --quantize, then run `mlx_lm.convert -q` on the result and give "
            "its folder as --model and --mlx-path."
        )
    tensors = {name: stored[origin[id(array)]] for name, array in sanitized.items()}
    _check_complete(dict(tree_flatten(model.parameters())), tensors)

    chosen: dict[str, tuple[int, int]] = {}
    skipped = []
    settings: dict[str, Any] = {"group_size": group_size, "bits": bits, "mode": MODE}
    predicate = getattr(model, "quant_predicate", None)
    leaves: Any = tree_flatten(model.leaf_modules(), is_leaf=Module.is_module)
    for path, module in leaves:
        if not hasattr(module, "to_quantized"):
            continue
        if module.weight.shape[-1] % group_size:
            skipped.append(path)
            continue
        answer = True if predicate is None else predicate(path, module)
        if isinstance(answer, dict):
            if answer.get("mode", MODE) != MODE:
                raise InputError(f"--quantize: {path} wants the quantization {answer['mode']!r}; only affine is done.")
            settings[path] = answer
            chosen[f"{path}.weight"] = (answer.get("bits", bits), answer.get("group_size", group_size))
        elif answer:
            chosen[f"{path}.weight"] = (bits, group_size)
    return QuantizationPlan(tensors, chosen, settings, tuple(skipped))


def _check_complete(expected: Mapping[str, Any], found: Mapping[str, TensorRef]) -> None:
    missing = [name for name in expected if name not in found]
    if missing:
        raise MlxmathError(
            f"the weights lack {len(missing)} tensors of the model that config.json describes: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}."
        )
    for name, array in expected.items():
        if tuple(array.shape) != found[name].shape:
            raise MlxmathError(
                f"{found[name].path}: tensor {name!r} has the shape {found[name].shape}; "
                f"config.json expects {tuple(array.shape)}."
            )


def quantized_tensors(tensor: TensorRef, name: str, dtype: str, bits: int, group_size: int) -> list[Any]:
    """(name, dtype, shape) of the three tensors that take a weight's place: packed (..., in * bits / 32), scales and
    biases (..., in / group size)."""
    path = name.removesuffix(".weight")
    rows, columns = tensor.shape[:-1], tensor.shape[-1]
    return [
        (name, "uint32", (*rows, columns * bits // 32)),
        (f"{path}.scales", dtype, (*rows, columns // group_size)),
        (f"{path}.biases", dtype, (*rows, columns // group_size)),
    ]


def quantized_blocks(tensor: TensorRef, dtype: str, bits: int, group_size: int) -> Iterator[Array]:
    """Quantize a weight of shape (..., in): all packed rows, then all scales, then all biases.

    Args:
        tensor: the weight.
        dtype: floating type in which it is quantized, and of its scales and biases.
        bits: bits an element.
        group_size: neighbours in a row that share a scale and a bias.
    """
    import mlx.core as mx

    scales, biases = [], []
    columns = tensor.shape[-1]
    for values in tensor.blocks_as(dtype, multiple=columns):
        rows = mx.array(values.reshape(-1, columns))
        if dtype == "bfloat16":
            rows = rows.view(mx.bfloat16)
        packed, scale, bias = mx.quantize(rows, group_size, bits, mode=MODE)
        scales.append(_bits(scale, dtype))
        biases.append(_bits(bias, dtype))
        yield np.array(packed)
    yield from scales
    yield from biases


def _bits(array: Any, dtype: str) -> Array:
    import mlx.core as mx

    return np.array(array.view(mx.uint16) if dtype == "bfloat16" else array)


def _mlx_dtype(dtype: str) -> Any:
    import mlx.core as mx

    return getattr(mx, "bool_" if dtype == "bool" else dtype if dtype in DTYPES else "float32")
