"""What a model folder's config.json says about its weights, and which of the stored tensors the model uses."""

import copy
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlxmath.errors import MlxmathError
from mlxmath.files import read_json
from mlxmath.weights.tensors import TensorRef

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
ROTARY = "rotary_emb.inv_freq"


@dataclass(frozen=True)
class Layout:
    """The tensors that are kept under their names, the configuration that describes them, and what was decided.

    Attributes:
        config: content of config.json for the converted model.
        tensors: name in the output -> where it lies.
        notes: sentences for the user.
    """

    config: dict[str, Any]
    tensors: Mapping[str, TensorRef]
    notes: tuple[str, ...]


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json, of a model type that mlx_lm can build.

    Raises:
        MlxmathError: it is missing, is not JSON, or is of a model type without an implementation.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise MlxmathError(f"{path} does not exist; expected a Hugging Face model folder (config.json and weights).")
    config = read_json(path)
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(model_type, str):
        raise MlxmathError(f"{path} has no model_type; expected the configuration of a Hugging Face model.")
    if "model_file" not in config and not _implemented(config, model_type):
        raise MlxmathError(f"{path}: mlx_lm has no model of type {model_type!r}; choose a model that it supports.")
    return dict(config)


def model_source(model_type: str) -> Path | None:
    """mlx_lm's file with the model of that name, found without the seconds and the memory that importing it takes."""
    spec = importlib.util.find_spec("mlx_lm")
    for root in spec.submodule_search_locations or () if spec is not None else ():
        path = Path(root) / "models" / f"{model_type}.py"
        if model_type.isidentifier() and path.is_file():
            return path
    return None


def _implemented(config: dict[str, Any], model_type: str) -> bool:
    if model_source(model_type) is not None:
        return True
    from mlx_lm.utils import _get_classes  # an alias ("mistral" is built as "llama"); this import takes seconds

    try:
        _get_classes(config)
    except ValueError:
        return False
    return True


def plan_layout(config: dict[str, Any], stored: Mapping[str, TensorRef]) -> Layout:
    """Leave out what no model reads, and settle whether the head is the embedding.

    Names stay those of Hugging Face: mlx_lm renames on loading. mlx_lm drops `lm_head.weight` where config.json ties
    it, and takes a missing `tie_word_embeddings` for true, so that a head of its own would be lost in silence;
    transformers keeps such a head. The output's config.json therefore always says which it is.
    """
    config = copy.deepcopy(config)
    config.pop("_name_or_path", None)
    _flatten_rope(config)
    tensors = {name: tensor for name, tensor in stored.items() if not name.endswith(ROTARY)}
    notes = []
    if len(tensors) < len(stored):
        notes.append(f"left out {len(stored) - len(tensors)} rotary frequency tensors, which the model computes itself")
    tied = config.get("tie_word_embeddings")
    if EMBEDDING in tensors and HEAD in tensors and tied is not False:
        if same_values(tensors[EMBEDDING], tensors[HEAD]):
            del tensors[HEAD]
            config["tie_word_embeddings"] = True
        else:
            config["tie_word_embeddings"] = False
            if tied:
                notes.append(f"config.json ties the head to the embedding, but {HEAD} differs from it and is kept")
    elif EMBEDDING in tensors and HEAD not in tensors and tied is None:
        config["tie_word_embeddings"] = True
    return Layout(config, tensors, tuple(notes))


def _flatten_rope(config: dict[str, Any]) -> None:
    """Repeat transformers 5's `rope_parameters` in the older places.

    Most of mlx_lm's models read only those, and would take 10000 for a missing `rope_theta` in silence.
    """
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        return
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in rope and config.get(key) is None:
            config[key] = rope[key]
    kind = rope.get("rope_type", "default")
    if kind != "default" and config.get("rope_scaling") is None:
        config["rope_scaling"] = {"type": kind, **rope}


def same_values(first: TensorRef, second: TensorRef) -> bool:
    """Whether two tensors are equal bit for bit; without reading them where both are one region of one file."""
    if first.place == second.place:
        return True
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    pairs = zip(first.blocks(), second.blocks(), strict=True)
    return all(np.array_equal(a.view(np.uint8), b.view(np.uint8)) for a, b in pairs)


def stored_quantization(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """How the weights of a model folder are quantized already, if they are."""
    found = config.get("quantization") or config.get("quantization_config")
    return found if isinstance(found, dict) else None
