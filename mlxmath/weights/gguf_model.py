"""A GGUF file as a model in Hugging Face form: its config.json, and its tensors under Hugging Face's names."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlxmath.errors import MlxmathError
from mlxmath.weights.dtypes import Array
from mlxmath.weights.gguf_config import config_of
from mlxmath.weights.gguf_file import GgufFile, GgufTensor
from mlxmath.weights.gguf_names import FAMILIES, Family, family_of_architecture, rows_to_hf
from mlxmath.weights.gguf_tensors import (
    BITS,
    COMPUTED,
    FLOATS,
    GROUP_SIZE,
    GgufRef,
    can_dequantize,
    packed_of,
    values_of,
)
from mlxmath.weights.tensors import TensorRef

_READ_WITH_THE_CONFIG = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that say what stands in config.json elsewhere."""
_SWITCH = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
"""Mixtral's names of the parts of an expert, and mlx_lm's."""


@dataclass(frozen=True)
class GgufModel:
    """
    Attributes:
        config: content of config.json.
        tensors: name -> where it lies.
        notes: sentences for the user.
    """

    config: dict[str, Any]
    tensors: Mapping[str, TensorRef]
    notes: tuple[str, ...]


def family_of(file: GgufFile) -> Family:
    """The family of models to which a GGUF file belongs.

    Raises:
        MlxmathError: to none that is known here.
    """
    architecture = file.metadata.get("general.architecture")
    family = family_of_architecture(str(architecture), num_experts=expert_count(file))
    if family is None:
        known = ", ".join(dict.fromkeys(family.architecture for family in FAMILIES))
        raise MlxmathError(
            f"{file.paths[0]} holds a model of the architecture {str(architecture)[:40]!r}; expected one of {known}. "
            "Choose the model in Hugging Face form, if mlx_lm supports it."
        )
    return family


def expert_count(file: GgufFile) -> int:
    """How many experts a block has; 0: it is dense."""
    value = file.metadata.get(f"{file.metadata.get('general.architecture')}.expert_count", 0)
    return value if type(value) is int else 0


def read_gguf(file: GgufFile, *, packed: bool = True) -> GgufModel:
    """Config and tensors of a GGUF file.

    Args:
        file: the opened file.
        packed: keep the packed form of weights that MLX can hold; else they are read as numbers.

    Raises:
        MlxmathError: an architecture or type that is not known here; a tensor that its family does not have; metadata
            that is missing or wrong.
    """
    family = family_of(file)
    config = config_of(file, family)
    kinds = Counter(tensor.kind for tensor in file.tensors.values())
    for kind in kinds:
        if kind not in FLOATS and not can_dequantize(kind):
            raise MlxmathError(
                f"{file.paths[0]} holds tensors of the type {kind}, which gguf cannot dequantize; choose another file "
                "of the model."
            )
    tensors: dict[str, TensorRef] = {}
    packed_layers: dict[str, int] = {}
    computed: Counter[str] = Counter()
    for name, tensor in file.tensors.items():
        if name in _READ_WITH_THE_CONFIG:
            continue
        found = family.to_hf(name)
        if found is None:
            raise MlxmathError(
                f"{tensor.path} holds the tensor {name[:80]!r}, which models of the architecture "
                f"{family.architecture!r} do not have here; choose the model in Hugging Face form."
            )
        path, _, end = _stacked(found).rpartition(".")
        order = _order(family, tensor, config)
        if packed and tensor.kind in BITS and end == "weight" and len(tensor.shape) > 1:
            tensors |= {ref.name: ref for ref in packed_of(tensor, path, order=order)}
            packed_layers[path] = BITS[tensor.kind]
            continue
        if tensor.kind not in FLOATS:
            computed[tensor.kind] += 1
        ref = values_of(tensor, f"{path}.{end}", order=order, added=family.added(name))
        tensors[ref.name] = ref
    if all(len(ref.shape) < 2 or ref.dtype in (COMPUTED, "uint32") for ref in tensors.values()):
        tensors |= _narrowed(tensors)
    notes = []
    if packed_layers:
        config["quantization"] = _settings(packed_layers)
        counts = Counter(packed_layers.values())
        parts = " and ".join(f"{count} of {bits} bits" for bits, count in sorted(counts.items()))
        notes.append(f"packed weights are taken over bit for bit, in groups of {GROUP_SIZE}: {parts}")
    if computed:
        parts = ", ".join(f"{count} {kind}" for kind, count in computed.most_common())
        notes.append(f"weights become numbers, by gguf's own functions: {parts}")
    return GgufModel(config, tensors, tuple(notes))


def _settings(bits: Mapping[str, int]) -> dict[str, Any]:
    """ "quantization" of config.json: the bits of most layers, and those of the others by name."""
    usual = Counter(bits.values()).most_common(1)[0][0]
    others = {
        path: {"group_size": GROUP_SIZE, "bits": each, "mode": "affine"} for path, each in bits.items() if each != usual
    }
    return {"group_size": GROUP_SIZE, "bits": usual, "mode": "affine", **others}


def _stacked(name: str) -> str:
    """All experts of a block are one tensor, as mlx_lm has them."""
    start, found, rest = name.partition(".experts.{e}.")
    part, _, end = rest.partition(".")
    return f"{start}.switch_mlp.{_SWITCH.get(part, part)}.{end}" if found else name


def _order(family: Family, tensor: GgufTensor, config: Mapping[str, Any]) -> tuple[int, ...]:
    """The order of the rows of a head; empty where it is Hugging Face's."""
    if not family.is_permuted(tensor.name):
        return ()
    heads = config["num_attention_heads" if ".attn_q." in tensor.name else "num_key_value_heads"]
    rows = tensor.shape[0]
    if rows % heads or rows // heads % 2:
        raise MlxmathError(
            f"{tensor.path}: tensor {tensor.name!r} has {rows} rows, which are not those of {heads} heads; the file is "
            "damaged. Download it again."
        )
    return tuple(int(row) for row in rows_to_hf(rows // heads, 1))


def _narrowed(tensors: Mapping[str, TensorRef]) -> dict[str, TensorRef]:
    """Norms and biases in float32 as `COMPUTED`, the type of the weights, if that changes no number of any: MLX
    computes in the wider type, so that one of them in float32 makes all computation float32."""
    wide = {name: ref for name, ref in tensors.items() if ref.dtype == "float32"}
    narrow: dict[str, TensorRef] = {}
    for name, ref in wide.items():
        if len(ref.shape) > 1 or not all(_is_exact(block) for block in ref.blocks()):
            return {}
        stored = ref if isinstance(ref, GgufRef) else None
        tensor = stored.source if stored else GgufTensor(ref.path, name, "F32", ref.shape, ref.offset, ref.num_bytes)
        order, added = (stored.order, stored.added) if stored else ((), 0)
        narrow[name] = values_of(tensor, name, order=order, added=added, dtype=COMPUTED)
    return narrow


def _is_exact(values: Array) -> bool:
    """Whether all numbers are float16's."""
    with np.errstate(over="ignore"):
        return bool(np.array_equal(values.astype(np.float16).astype(np.float32), values))
