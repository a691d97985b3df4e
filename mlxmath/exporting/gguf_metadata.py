"""What llama.cpp must know of a model, out of its config.json: the metadata of a GGUF file, and the tensors that say
how far positions turn.

Keys are those of `gguf-py/gguf/constants.py`; what an architecture of llama.cpp does without being told is refused
where the model does otherwise (`src/llama-model.cpp`, `src/models/` there).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlxmath.errors import InputError
from mlxmath.exporting.longrope import with_long_factors
from mlxmath.runtime.files import read_json
from mlxmath.weights.architecture import text_part
from mlxmath.weights.configuration import GEMMA3_TEXT
from mlxmath.weights.dtypes import Array
from mlxmath.weights.gguf_names import Family, family_of_model_type, rows_to_gguf
from mlxmath.weights.rotary import angles, kind_of, longrope_attention, rope_kinds

Value = int | float | str | bool
SUPPORTED = frozenset({
    "llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "phi3", "olmo2", "granite", "smollm3",
})  # fmt: skip
"""Types whose files have been compared with llama.cpp's answers."""
_FREE_SCALES = ("llama", "smollm3", "granite")
"""Architectures in which llama.cpp reads the factors of `rope_freqs`."""


@dataclass
class Described:
    """What a GGUF file says of its model."""

    family: Family
    config: Mapping[str, Any]
    metadata: dict[str, Value] = field(default_factory=dict)
    """Keys without the architecture."""
    tensors: dict[str, Array] = field(default_factory=dict)
    """Small ones that the model itself does not store."""
    notes: tuple[str, ...] = ()
    """What the file does otherwise, for the user."""

    @property
    def num_heads(self) -> int:
        """Of the queries."""
        return int(self.config["num_attention_heads"])

    @property
    def num_key_heads(self) -> int:
        """Of the keys and values."""
        return int(self.config.get("num_key_value_heads") or self.num_heads)

    @property
    def head_dim(self) -> int:
        """Values of a head."""
        return int(self.config.get("head_dim") or self.config["hidden_size"] // self.num_heads)

    def row_order(self, name: str, num_rows: int) -> Array | None:
        """The rows of a tensor, by its name in the file, in llama.cpp's order; None where that is their own."""
        if not self.family.is_permuted(name):
            return None
        return rows_to_gguf(num_rows, self.num_heads if ".attn_q." in name else self.num_key_heads)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model, its text part with what its class takes where that says nothing."""
    config: dict[str, Any] = read_json(folder / "config.json")
    inner = text_part(config)
    return {**GEMMA3_TEXT, **inner} if inner.get("model_type") == "gemma3_text" else inner or config


def describe(config: Mapping[str, Any]) -> Described:
    """The metadata of a model.

    Args:
        config: config.json of the converted model, its text part.

    Raises:
        InputError: llama.cpp knows no such model, or not with these settings.
    """
    model_type = str(config.get("model_type"))
    family = family_of_model_type(model_type) if model_type in SUPPORTED else None
    if family is None:
        raise InputError(
            f"--to: models of the type {model_type} are not written as GGUF (known: {', '.join(sorted(SUPPORTED))}). "
            "Export with --to hf, and let llama.cpp's own convert_hf_to_gguf.py try."
        )
    config, notes = with_long_factors(config)
    found = Described(family, config, notes=notes)
    hidden_size = int(config["hidden_size"])
    found.metadata |= {
        "context_length": int(config.get("max_position_embeddings") or 4096),
        "embedding_length": hidden_size,
        "block_count": int(config["num_hidden_layers"]),
        "feed_forward_length": int(config["intermediate_size"]),
        "attention.head_count": found.num_heads,
        "attention.head_count_kv": found.num_key_heads,
        "attention.key_length": found.head_dim,
        "attention.value_length": found.head_dim,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": int(found.head_dim * float(config.get("partial_rotary_factor") or 1)),
    }
    _rope(found)
    _OF_TYPE.get(model_type, lambda _: None)(found)
    return found


def _rope(found: Described) -> None:
    """How far positions turn: its base, and a scaling if there is one."""
    nested = found.config.get("rope_parameters") or {}
    if isinstance(nested.get("full_attention"), dict):  # of the blocks that attend to everything, of the others
        rope, base = nested["full_attention"], float(nested["full_attention"]["rope_theta"])
        found.metadata["rope.freq_base_swa"] = float(nested["sliding_attention"]["rope_theta"])
    elif scalings := list(rope_kinds(found.config)):
        rope, base = scalings[0]
    else:
        raise _otherwise(found, "config.json does not say how positions turn (rope_theta)")
    found.metadata["rope.freq_base"] = base
    kind = kind_of(rope)
    if kind in ("linear", "yarn"):
        found.metadata |= {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
    if kind == "yarn":
        if rope.get("attention_factor") or rope.get("mscale") or rope.get("truncate") is False:
            raise _otherwise(found, "its YaRN scaling has factors of its own")
        found.metadata["rope.scaling.original_context_length"] = int(rope["original_max_position_embeddings"])
        for name in ("beta_fast", "beta_slow"):
            if rope.get(name):
                found.metadata[f"rope.scaling.yarn_{name}"] = float(rope[name])
    elif kind == "llama3" and found.family.model_type in _FREE_SCALES:
        dims = int(found.metadata["rope.dimension_count"])
        factors = angles({}, base, dims) / angles(rope, base, dims)
        found.tensors["rope_freqs.weight"] = factors.astype(np.float32)
    elif kind == "longrope" and found.family.model_type == "phi3":
        for length in ("long", "short"):
            found.tensors[f"rope_factors_{length}.weight"] = np.asarray(rope[f"{length}_factor"], np.float32)
        longest = int(found.metadata["context_length"])
        original = int(rope.get("original_max_position_embeddings") or found.config["original_max_position_embeddings"])
        attention = rope.get("attention_factor") or longrope_attention(original, longest)
        found.metadata["rope.scaling.attn_factor"] = float(attention)
    elif kind not in ("default", "linear"):
        raise _otherwise(found, f"its positions are scaled by {kind}")


def _otherwise(found: Described, what: str) -> InputError:
    return InputError(
        f"--to: {what}, which llama.cpp's {found.family.architecture} cannot be told; export with --to hf instead."
    )


def _is(found: Described, name: str, expected: Any, default: Any = None) -> None:
    """Refuse a setting that llama.cpp takes for granted and the model has otherwise."""
    value = found.config.get(name, default)
    if value != expected:
        raise _otherwise(found, f"{name} is {str(value)[:60]} and not {str(expected)[:60]}")


def _gated(found: Described) -> None:
    _is(found, "hidden_act", "silu", "silu")


def _qwen(found: Described) -> None:
    _gated(found)
    if found.config.get("use_sliding_window"):
        raise _otherwise(found, "it attends in a sliding window")


def _qwen3_moe(found: Described) -> None:
    _qwen(found)
    _is(found, "norm_topk_prob", True)
    _is(found, "decoder_sparse_step", 1, 1)
    _is(found, "mlp_only_layers", [], [])
    found.metadata |= {
        "expert_count": int(found.config["num_experts"]),
        "expert_used_count": int(found.config["num_experts_per_tok"]),
        "expert_feed_forward_length": int(found.config["moe_intermediate_size"]),
    }


def _query_scalar(found: Described, blocks_of_27b: int) -> None:
    """llama.cpp divides scores by √ of a head's size; in 27B models, known by their blocks, of the width's share."""
    wanted = found.head_dim
    if found.metadata["block_count"] == blocks_of_27b:
        wanted = int(found.config["hidden_size"]) // found.num_heads
    _is(found, "query_pre_attn_scalar", wanted, 256)


def _gemma2(found: Described) -> None:
    _query_scalar(found, 46)
    found.metadata["attention.sliding_window"] = int(found.config.get("sliding_window") or 4096)
    for name, usual in (("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)):
        found.metadata[name] = float(found.config.get(name, usual))


def _gemma3(found: Described) -> None:
    _query_scalar(found, 62)
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        _is(found, name, None)
    _is(found, "sliding_window_pattern", 6, 6)
    found.metadata["attention.sliding_window"] = int(found.config["sliding_window"])
    found.metadata.setdefault("rope.freq_base_swa", float(found.config.get("rope_local_base_freq", 10000.0)))


def _phi3(found: Described) -> None:
    _gated(found)
    original = found.config.get("original_max_position_embeddings") or found.metadata["context_length"]
    found.metadata |= {
        "rope.scaling.original_context_length": int(original),
        "attention.sliding_window": int(found.config.get("sliding_window") or 0),
    }


def _granite(found: Described) -> None:
    _gated(found)
    names = {
        "attention.scale": "attention_multiplier", "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier", "logit_scale": "logits_scaling",
    }  # fmt: skip
    found.metadata |= {key: float(found.config[name]) for key, name in names.items()}


def _smollm3(found: Described) -> None:
    _gated(found)
    every_fourth = [int((number + 1) % 4 != 0) for number in range(int(found.metadata["block_count"]))]
    if found.config.get("no_rope_layers") is not None:
        _is(found, "no_rope_layers", every_fourth)
    else:
        _is(found, "no_rope_layer_interval", 4, 4)


_OF_TYPE: Mapping[str, Callable[[Described], None]] = {
    "llama": _gated, "mistral": _gated, "olmo2": _gated, "qwen2": _qwen, "qwen3": _qwen, "qwen3_moe": _qwen3_moe,
    "gemma2": _gemma2, "gemma3_text": _gemma3, "phi3": _phi3, "granite": _granite, "smollm3": _smollm3,
}  # fmt: skip
