"""The model that a config.json describes, built by mlx_lm's classes without any weights.

Its arrays have the shapes and types of the real ones and take no memory: each is one number, broadcast. So layers can
be found, parameters counted, and a pass over it traced (`mlxmath.models.trace`), whatever the model's size.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path

from mlxmath.errors import InputError, MlxmathError
from mlxmath.weights.configuration import known_type, translate

_LIMITS = {
    r"layers?$|blocks$|^depth$|^n_layer": 10_000,
    r"experts|heads|^n_head": 100_000,
    r"size$|dim$|rank$": 1 << 30,
}
"""Names of whole numbers in config.json, and the most that one can be: a hundred times what any model has."""
_BUILD_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, IndexError, KeyError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip
"""What mlx_lm's classes raise for a configuration that is not theirs."""
_MXFP4 = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
_MXFP8 = {"group_size": 32, "bits": 8, "mode": "mxfp8"}


def skeleton(config: Mapping[str, Any], dtype: str, quantize: int | None = None, group_size: int = 64) -> nn.Module:
    """A model without weights, quantized as its config.json says or, where that says nothing, as a conversion would.

    Args:
        config: its config.json.
        dtype: of the unquantized parameters, as `mlxmath.models.load.load_model` has it.
        quantize: bits to which plain weights are to be quantized.
        group_size: neighbours in a row that share a scale then.

    Raises:
        MlxmathError: config.json describes no model that mlx_lm can build.
    """
    check_sizes(config)
    if name := known_type(
        str(config.get("model_type"))
    ):  # in the words that mlx_lm reads, as a conversion will have it
        config = translate({**config, "model_type": name}).config
    model = _built(config)
    _tie(model, config)
    if (settings := stored_settings(config)) is not None:
        _quantize(model, settings)
    elif quantize is not None:
        _quantize(model, {"group_size": group_size, "bits": quantize, "mode": "affine"})
    may_cast = getattr(model, "cast_predicate", lambda _: True)

    def hollow(name: str, array: mx.array) -> mx.array:
        is_cast = mx.issubdtype(array.dtype, mx.floating) and may_cast(name)
        return hollowed(array, getattr(mx, dtype) if is_cast else array.dtype)

    model.update(tree_map_with_path(hollow, model.parameters()))
    return model


def _tie(model: nn.Module, config: Mapping[str, Any]) -> None:
    """Leave out a head that config.json does not speak of, where the model drops one that no weights are there for.

    Some of mlx_lm's classes (Gemma 3) learn from the weights alone that the head is the embedding.
    """
    names = [name for name, _ in tree_flatten(model.parameters()) if name.endswith("lm_head.weight")]
    if not names or not hasattr(model, "sanitize") or _said(config, "tie_word_embeddings"):
        return
    with suppress(*_BUILD_ERRORS):
        model.sanitize({name: array for name, array in tree_flatten(model.parameters()) if name not in names})


def _said(config: Mapping[str, Any], name: str) -> bool:
    return name in config or any(isinstance(inner, dict) and name in inner for inner in config.values())


def hollowed(array: mx.array, dtype: mx.Dtype | None = None) -> mx.array:
    """Zeros of that shape, in the memory of one."""
    return mx.broadcast_to(mx.zeros((), dtype or array.dtype), array.shape)


def check_sizes(config: Mapping[str, Any]) -> None:
    """Refuse numbers that would take for ever to build a model of.

    Raises:
        MlxmathError: a size is none.
    """
    for name, value in _numbers(config):
        most = next((most for pattern, most in _LIMITS.items() if re.search(pattern, name.rpartition(".")[2])), None)
        if most is not None and not -1 <= value <= most:
            raise MlxmathError(
                f"config.json: expected {name} to be at most {most:,}, found {str(value)[:40]}; it is damaged, or of "
                "no language model."
            )


def _numbers(table: Mapping[str, Any], path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, int | float):
            yield f"{path}{name}", value
        elif isinstance(value, dict) and depth < 4:
            yield from _numbers(value, f"{path}{name}.", depth + 1)


def _built(config: Mapping[str, Any]) -> Any:
    from mlx_lm.utils import _get_classes

    model_type = str(config.get("model_type"))[:80]
    if "model_file" in config:
        raise MlxmathError("config.json builds the model with Python code of its own (model_file), which is not run.")
    try:
        model_class, arguments = _get_classes(dict(config))
        model = model_class(arguments.from_dict(dict(config)))
        if not hasattr(model, "_no_grad"):  # RecurrentGemma's class in mlx_lm leaves out what every module has
            nn.Module.__init__(model)
        len(model.layers)
    except _BUILD_ERRORS as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, KeyError):
            reason = f"{reason} is missing"
        elif absent := re.search(r"missing \d+ required positional arguments?: (.*)", reason):
            reason = f"it lacks {absent[1]}"
        raise MlxmathError(f"config.json describes no model of type {model_type!r}: {reason}") from error
    except SystemExit:  # after a line of mlx_lm's that names it (olmo)
        raise MlxmathError(f"mlx_lm needs another package for models of type {model_type!r}, named above.") from None
    return model


def stored_settings(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """How the weights are quantized as they are stored, or once they are converted; None if they are plain then."""
    inner = config.get("text_config")
    found = config.get("quantization") or config.get("quantization_config")
    found = found or (inner.get("quantization_config") if isinstance(inner, dict) else None)
    if not isinstance(found, dict):
        return None
    method = found.get("quant_method")
    kept = {"kept": found.get("modules_to_not_convert") or found.get("ignore") or []}
    if method == "mxfp4":
        return _MXFP4 | kept
    if method == "mxfp8" or (method == "fp8" and found.get("scale_fmt") == "ue8m0"):
        return _MXFP8 | kept
    if method == "awq":
        return {"group_size": found.get("group_size", 128), "bits": 4, "mode": "affine"} | kept
    return dict(found) if "bits" in found and "group_size" in found and method is None else None


def _quantize(model: nn.Module, settings: dict[str, Any]) -> None:
    """Pack the layers that `settings`, or else the model, wants packed."""
    predicate, kept = getattr(model, "quant_predicate", None), settings.pop("kept", [])
    patterns = [re.compile(re.escape(name).replace(r"\*", r"[^.]*") + r"(\.|$)") for name in kept]

    def wanted(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if not hasattr(module, "to_quantized"):
            return False
        if path in settings:
            own: bool | dict[str, Any] = settings[path]
            return own
        if module.weight.shape[-1] % settings["group_size"] or any(p.match(path) for p in patterns):
            return False
        answer: bool | dict[str, Any] = True if predicate is None or kept else predicate(path, module)
        return answer

    mode = settings.get("mode", "affine")
    try:
        nn.quantize(model, settings["group_size"], settings["bits"], mode=mode, class_predicate=wanted)
    except _BUILD_ERRORS as error:
        raise InputError(
            f"config.json: its quantization is none of MLX's: {' '.join(str(error).split())[:200]}"
        ) from error


def weight_bytes(model: nn.Module) -> int:
    """Of all its parameters."""
    return sum(array.nbytes for _, array in tree_flatten(model.parameters()))
