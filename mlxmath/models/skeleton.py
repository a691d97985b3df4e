"""The model that a config.json describes, built by mlx_lm's classes without any weights.

Its arrays have the shapes and types of the real ones and take no memory: each is one number, broadcast. So layers can
be found, parameters counted, and a pass over it measured (`mlxmath.training.footprint`), whatever the model's size.

`embody` gives it the few weights with which it can be tried: of each kind of block one gets weights, which all of that
kind share; of a vocabulary a few rows are left; one of a stack of experts stands for all.
"""

import re
from collections.abc import Hashable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map_with_path

from mlxmath.errors import MlxmathError, foreign
from mlxmath.models.blocks import kinds_of, path_of_blocks
from mlxmath.models.lora.layers import EXPERTS, AdapterLayer
from mlxmath.runtime.console import size
from mlxmath.runtime.device import machine_memory_bytes
from mlxmath.weights.architecture import explained
from mlxmath.weights.configuration import known_type, translate
from mlxmath.weights.packing import AFFINE, FLOATS, Packing
from mlxmath.weights.quantized import check_tables

_LIMITS = {
    r"layers?$|blocks$|^depth$|^n_layer": 2_000,
    r"experts|heads|^n_head": 20_000,
    r"vocab_size": 1 << 23,
    r"intermediate_size$|ffn|^d_ff$": 1 << 20,
    r"^(hidden_size|d_model|n_embd|dim|model_dim|head_dim)$": 1 << 17,
    r"size$|dim$|rank$": 1 << 24,
}
"""Names of whole numbers in config.json, and the most that one can be: some ten times what any model has. A pass is
tried, so that what is absurd would take memory; the first that fits counts."""


def skeleton(config: Mapping[str, Any], dtype: str, packing: Packing | None = None) -> nn.Module:
    """A model without weights, quantized as its config.json says or, where that says nothing, as a conversion would.

    Args:
        config: its config.json.
        dtype: of the unquantized parameters, as `mlxmath.models.load.load_model` has it.
        packing: the form in which plain weights are to be quantized.

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
    elif packing is not None:
        _quantize(model, packing.settings)
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
    with suppress(MlxmathError), foreign(explained):
        model.sanitize({name: array for name, array in tree_flatten(model.parameters()) if name not in names})


def _said(config: Mapping[str, Any], name: str) -> bool:
    return name in config or any(isinstance(inner, dict) and name in inner for inner in config.values())


def hollowed(array: mx.array, dtype: mx.Dtype | None = None, value: float = 0.0) -> mx.array:
    """One number in that shape, in the memory of one: a value, or zero for a type of whole numbers."""
    dtype = dtype or array.dtype
    return mx.broadcast_to(mx.array(value if mx.issubdtype(dtype, mx.floating) else 0, dtype), array.shape)


def check_sizes(config: Mapping[str, Any]) -> None:
    """Refuse numbers that would take for ever to build a model of.

    Raises:
        MlxmathError: a size is none.
    """
    check_tables(config)
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
        with foreign(lambda error: f"config.json describes no model of type {model_type!r}: {explained(error)}"):
            model_class, arguments = _get_classes(dict(config))
            model = model_class(arguments.from_dict(dict(config)))
            if not hasattr(model, "_no_grad"):  # RecurrentGemma's class in mlx_lm leaves out what every module has
                nn.Module.__init__(model)
            len(model.layers)
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
        return FLOATS["mxfp4"].settings | kept
    if method == "mxfp8" or (method == "fp8" and found.get("scale_fmt") == "ue8m0"):
        return FLOATS["mxfp8"].settings | kept
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
    with foreign(lambda error: f"config.json: its quantization is none of MLX's: {explained(error)}"):
        nn.quantize(model, settings["group_size"], settings["bits"], mode=mode, class_predicate=wanted)


def weight_bytes(model: nn.Module) -> int:
    """Of all its parameters."""
    return sum(array.nbytes for _, array in tree_flatten(model.parameters()))


VOCABULARY = 64
"""Rows that are left of the embedding and of the head."""
_POOL = 1_000_003
"""Random numbers from which all weights are made. A prime: no two rows of a matrix are the same."""
_LARGE = 1 << 28
"""Bytes of an array outside the blocks that stays without memory of its own."""
_SHARE = 1 / 8
"""Of the machine's memory that a block's weights may take. Of larger ones, one row of each matrix stands for all."""

_LARGEST_TRIED = 1 << 30
"""Bytes of a matrix. A product with a larger one would take that much, whatever stands for its rows (a model of 405
billion parameters: 3.5 GB)."""
_DEVIATION = 0.02
"""Of weights."""
_SCALES = {"mxfp4": 120, "mxfp8": 122, "nvfp4": 4}
"""Bytes of scales: 2 to the power of this less 127; of NVFP4 an E4M3 number, 2 to the power of -7."""
_BELOW_2 = 0xBFBFBFBF
"""Of four E4M3 numbers, all bits but the highest of each exponent: none is NaN."""


def embody(model: nn.Module, vocab_size: int) -> None:
    """Give weights to one block of each kind, which the others of that kind share, and to what is not in blocks.

    Raises:
        MlxmathError: a block is too large to be tried.
    """
    blocks, path = model.layers, path_of_blocks(model) + "."
    first: dict[Hashable, nn.Module] = {}
    for kind, block in zip(kinds_of(blocks), blocks, strict=True):
        if kind not in first:
            first[kind] = block
            sizes = [
                array.nbytes // (len(array) if isinstance(module, EXPERTS) else 1)
                for module in block.modules()
                for array in own_arrays(module).values()
            ]
            if (largest := max([*sizes, *map(unpacked_bytes, block.modules())])) > _LARGEST_TRIED:
                raise MlxmathError(f"one of its matrices alone takes {size(largest)}")
            for module in block.modules():
                _fill(module, in_full=sum(sizes) <= _SHARE * machine_memory_bytes())
        block.update(first[kind].parameters())
    for name, module in model.named_modules():
        if not name.startswith(path):
            if "weight" in module and module.weight.ndim > 1 and len(module.weight) == vocab_size:
                for key, array in own_arrays(module).items():
                    module[key] = array[:VOCABULARY] if len(array) == vocab_size else array
            _fill(module, in_full=True)
    mx.eval(model.parameters())


def _fill(module: nn.Module, *, in_full: bool) -> None:
    """Random numbers for a module's own arrays: the first expert stands for all; not `in_full`, the first row."""
    if isinstance(module, AdapterLayer):
        return
    for name, array in own_arrays(module).items():
        if not array.ndim or array.nbytes > _LARGE * (len(array) if isinstance(module, EXPERTS) else 1):
            continue
        shape = array.shape
        if isinstance(module, EXPERTS):
            shape = (1, *shape[1:])
        if not in_full and len(shape) > 1:
            shape = (*shape[:-2], 1, shape[-1])
        made = _random(shape, array.dtype)
        if hasattr(module, "bits") and name in ("scales", "biases"):
            made = mx.full(shape, _packing(name, module.bits, module.mode), array.dtype)
        elif getattr(module, "mode", "") == "mxfp8" and name == "weight":
            made = made & _BELOW_2
        module[name] = mx.broadcast_to(made, array.shape)


def _packing(name: str, bits: int, mode: str) -> float:
    """With which random words of so many bits are weights around zero, of the deviation of the others."""
    if mode in _SCALES:
        return _SCALES[mode]
    return _DEVIATION * 12**0.5 / 2**bits if name == "scales" else -_DEVIATION * 3**0.5


def _random(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """Of a deviation that weights have; vectors are ones, packed words any, other whole numbers zero."""
    if dtype == mx.uint32:
        return mx.array(np.resize(_pool().view(np.uint32), shape))
    if not mx.issubdtype(dtype, mx.floating):
        return mx.zeros(shape, dtype)
    return mx.ones(shape, dtype) if len(shape) == 1 else mx.array(np.resize(_pool(), shape)).astype(dtype)


@cache
def _pool() -> Any:
    return np.random.default_rng(0).standard_normal(_POOL, np.float32) * np.float32(_DEVIATION)


def own_arrays(module: nn.Module) -> dict[str, mx.array]:
    """A module's own parameters."""
    return {name: value for name, value in module.items() if isinstance(value, mx.array) and not name.startswith("_")}


def unpacked_bytes(module: nn.Module) -> int:
    """Of a quantized linear layer's weight, dequantized."""
    if not isinstance(module, nn.QuantizedLinear):
        return 0
    itemsize = module.scales.itemsize if module.mode == AFFINE else 2  # MLX unpacks the others as bfloat16
    return int(module.weight.size * 32 // module.bits * itemsize)
