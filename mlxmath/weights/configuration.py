"""Says what a config.json means in the words that mlx_lm's model of that type reads.

transformers 5 keeps all of the rotary embedding in `rope_parameters`, has renamed other settings, and writes no value
that its own class computes. mlx_lm reads the older names, takes a default for most that are absent, and ignores some
settings at all. So what can be said is said under the names that it reads; what it would ignore is noted where that
matters for long texts only, and refused where the model would be another one.
"""

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxmath.errors import MlxmathError, library_errors
from mlxmath.runtime.files import read_json
from mlxmath.weights.architecture import Architecture, Built, another_model, architecture, module_name, text_part
from mlxmath.weights.rotary import Limit, built_otherwise, say_rope
from mlxmath.weights.tensors import TensorRef

_SYNONYMS = (
    ("hidden_size", "d_model", "n_embd", "block_dim"),
    ("num_hidden_layers", "n_layers", "n_layer", "num_layers"),
    ("num_attention_heads", "n_heads", "n_head"),
    ("num_key_value_heads", "num_attention_groups"),
    ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "model_max_length"),
    ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k"),
    ("n_shared_experts", "num_shared_experts"),
    ("n_group", "num_expert_group"),
    ("norm_topk_prob", "moe_renormalize"),
    ("rope_theta", "rotary_emb_base", "rope_base"),
    ("partial_rotary_factor", "rotary_pct"),
    ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_eps", "layernorm_epsilon"),
    ("hidden_act", "hidden_activation", "activation_function"),
)
"""Names of one and the same setting."""

MODELOPT = "hf_quant_config.json"
"""Where NVIDIA's exports say how they are quantized, if not in config.json."""

_FIXED = {
    "rope_scaling": None, "attention_bias": False, "mlp_bias": False, "qk_norm": True, "post_norm": False,
    "moe_layer_freq": 1, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "partial_rotary_factor": 1.0,
    "first_k_dense_replace": 0,
}  # fmt: skip
"""What transformers does not write, since there it is part of the architecture; only for what mlx_lm must be told."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attn_logit_softcapping": (None,), "final_logit_softcapping": (None,), "clip_qkv": (None,),
    "embedding_multiplier": (None, 1), "residual_multiplier": (None, 1), "logits_scaling": (None, 1),
    "logit_scale": (None, 1), "scale_attn_weights": (None, True), "scale_attn_by_inverse_layer_idx": (None, False),
    "swiglu_limit": (None, 7.0),
}  # fmt: skip
"""Settings that transformers obeys wherever they are, and the values with which a model does as if it had none.

mlx_lm's gpt-oss limits SwiGLU to 7 in any case.
"""

_KINDS = {"granitemoehybrid": {"linear_attention": "mamba", "full_attention": "attention"}}
"""Kinds of layers as transformers 5 writes them, and as a model of mlx_lm reads them."""

_ACTIVATIONS = {
    "silu": r"silu|swiglu|swish|Switch(GLU|MLP)\(",
    "gelu": r"gelu|geglu",
    "relu2": r"relu2|relu_squared|relusquared|square",
    "relu": r"relu",
    "xielu": r"xielu",
}
"""Kinds of activation, and how a model's source names them."""
_EXACT_GELU = ("gelu", "gelu_python")


GEMMA3_TEXT: Mapping[str, Any] = {
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    "rope_local_base_freq": 1e4, "query_pre_attn_scalar": 256, "sliding_window": 4096,
    "max_position_embeddings": 131_072,
}  # fmt: skip
"""What transformers' class takes where the `text_config` of a Gemma 3 that sees does not say it, as Google's do not.
mlx_lm takes the same, but for the window and the longest text."""


@dataclass(frozen=True)
class Translation:
    """
    Attributes:
        config: what mlx_lm is to read.
        notes: what it does not do, for the user.
        limits: where texts are longer than this, it is not the original model.
    """

    config: dict[str, Any]
    notes: tuple[str, ...]
    limits: tuple[Limit, ...]


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json, of a model type that mlx_lm can build.

    Raises:
        MlxmathError: it is missing, is not JSON, or is of a model type without an implementation.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise MlxmathError(
            f"{path} does not exist; expected a folder with a Hugging Face model (config.json with .safetensors or "
            ".bin files) or with a .gguf file."
        )
    config = read_json(path)
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(model_type, str):
        raise MlxmathError(f"{path} has no model_type; expected the configuration of a Hugging Face model.")
    if "model_file" in config:
        raise MlxmathError(
            f"{path} builds the model with Python code of its own ({str(config['model_file'])[:80]}), which is not "
            "run; choose a model that mlx_lm builds itself."
        )
    name = known_type(model_type)
    if name is None:
        raise MlxmathError(f"{path}: mlx_lm has no model of type {model_type!r}; choose a model that it supports.")
    config["model_type"] = name
    if not any(key in config for key in ("quantization", "quantization_config")) and (folder / MODELOPT).is_file():
        config["quantization_config"] = {"quant_method": "modelopt", **read_json(folder / MODELOPT)}
    return dict(config)


def translate(config: Mapping[str, Any]) -> Translation:
    """The configuration as mlx_lm reads it.

    Args:
        config: a model's, of a type that mlx_lm has.

    Raises:
        MlxmathError: mlx_lm would build another model than the one that was trained, or a setting is not of its type.
    """
    found = copy.deepcopy(dict(config))
    model_type = str(found["model_type"])
    notes: list[str] = []
    limits: list[Limit] = []
    inner = found.get("text_config")
    whole = architecture(model_type)
    if whole is not None and whole.reads("text_config") and inner is None:  # all of it is the text's
        whole = architecture(f"{model_type}_text", model_type)
    parts = [(found, whole)]
    if isinstance(inner, dict):
        if inner.get("model_type") == "gemma3_text":
            inner.setdefault("sliding_window", GEMMA3_TEXT["sliding_window"])
        size = inner.get("vocab_size")
        if (
            whole is not None
            and "vocab_size" not in found
            and size not in (None, whole.defaults.get("vocab_size", size))
        ):
            found["vocab_size"] = size  # Gemma's: what stands outside, or a default of that, counts for the part too
        parts.append((inner, architecture(str(inner.get("model_type") or model_type), model_type)))
    for part, arch in parts:
        if arch is None:
            continue
        try:
            _name(part, arch)
            say_rope(part, arch, notes, limits)
            _fill(part, arch)
            _layers(part, arch)
            _window(part, arch, limits)
            _activation(part, arch, notes)
            _unread(part, arch)
            _routing(part, arch, notes)
        except KeyError as error:
            raise MlxmathError(f"config.json lacks the setting {error}, which others of it need.") from error
        except (TypeError, ValueError, ZeroDivisionError, OverflowError, AttributeError) as error:
            raise MlxmathError(f"config.json holds a setting of the wrong type or size: {error}.") from error
    for limit in limits:
        notes.append(f"{limit.reason}: the same up to {limit.tokens:,} tokens, longer texts differ")
    return Translation(found, tuple(dict.fromkeys(notes)), tuple(dict.fromkeys(limits)))


def _name(config: dict[str, Any], arch: Architecture) -> None:
    """Give settings the names under which they are read."""
    for names in _SYNONYMS:
        values = [config[name] for name in names if config.get(name) is not None]
        for name in names:
            if values and config.get(name) is None and name in arch.fields:
                config[name] = values[0]
    if arch.fields.get("head_dim") and config.get("head_dim") is None and config.get("num_attention_heads"):
        config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]


def _fill(config: dict[str, Any], arch: Architecture) -> None:
    """Say what mlx_lm must be told and transformers does not write."""
    for name, is_needed in arch.fields.items():
        if is_needed and name not in config and (name in _FIXED or not arch.reads(name)):
            config[name] = _FIXED.get(name)  # nothing, for what is asked for and never looked at
    if arch.fields.get("intermediate_size") and "intermediate_size" not in config:  # all blocks are mixtures
        config["intermediate_size"] = config.get("moe_intermediate_size")
    if 'position_embedding_type != "nope"' in arch.source and config.get("position_embedding_type") != "rope":
        config["position_embedding_type"] = "nope"  # transformers: null, or nothing
    kinds = config.get("mlp_layer_types")
    if "is_moe_layer" in arch.fields and "is_moe_layer" not in config and isinstance(kinds, list):
        config["is_moe_layer"] = [kind == "sparse" for kind in kinds]


def _layers(config: dict[str, Any], arch: Architecture) -> None:
    """Which layers are of which kind, where mlx_lm reads other names, or a period instead of a list."""
    types = config.get("layer_types")
    if isinstance(types, list) and (names := _KINDS.get(arch.name)):
        config["layer_types"] = [names.get(str(kind), kind) for kind in types]
    if not isinstance(types, list) or not types or arch.reads("layer_types"):
        return
    is_full = [kind == "full_attention" for kind in types]
    if "sliding_window_pattern" in arch.fields and "pattern[i %" in arch.source:  # a word: L for local, G for global
        pattern = "".join("G" if full else "L" for full in is_full)
        config["sliding_window_pattern"] = pattern if "L" in pattern and "G" in pattern else None
        return
    for name in ("sliding_window_pattern", "full_attention_interval"):
        if not arch.reads(name):
            continue
        period = is_full.index(True) + 1 if True in is_full else len(is_full) + 1
        if is_full != [(i + 1) % period == 0 for i in range(len(is_full))]:
            raise another_model(
                arch, f"has a layer with full attention every {name} layers; `layer_types` says otherwise"
            )
        config[name] = period


def _window(config: Mapping[str, Any], arch: Architecture, limits: list[Limit]) -> None:
    """A sliding window that mlx_lm's model does not have."""
    window = config.get("sliding_window")
    types = config.get("layer_types")
    if not isinstance(window, int) or window <= 0 or config.get("use_sliding_window") is False:
        return
    if isinstance(types, list) and "sliding_attention" not in types:
        return
    if re.search(r"window_size\s*=|sliding_window\s*=\s*(True|args)|max_size\s*=", arch.source) and (
        not arch.reads("layer_types") or isinstance(types, list)
    ):
        return
    if window < int(config.get("max_position_embeddings") or window + 1):
        limits.append(Limit(window, f"mlx_lm's model has no sliding window, where config.json has one of {window:,}"))


def _activation(config: Mapping[str, Any], arch: Architecture, notes: list[str]) -> None:
    """The activation of the feed-forward layers, which most of mlx_lm's models do not read."""
    names = ("hidden_activation", "hidden_act", "activation_function", "mlp_hidden_act")
    name = next((name for name in names if isinstance(config.get(name), str)), None)
    if name is None or arch.reads(name):
        return
    wanted = config[name]
    has = [kind for kind, spelt in _ACTIVATIONS.items() if re.search(spelt, arch.source, re.IGNORECASE)]
    kind = next((kind for kind in ("silu", "gelu", "relu2", "xielu", "relu") if kind in wanted), wanted)
    kind = "silu" if wanted in ("swish", "swiglu") else kind
    if has and kind not in has:
        raise another_model(arch, f"computes {' or '.join(has)}, whatever {name} says ({wanted!r})")
    is_exact = re.search(r"gelu_(approx|new|fast|pytorch)|approx=", arch.source) is None
    if kind == "gelu" and wanted != "quick_gelu" and is_exact != (wanted in _EXACT_GELU):
        notes.append(
            f"mlx_lm computes {'the exact' if is_exact else 'an approximate'} GELU for {wanted!r} (off by 0.0005)"
        )


def _unread(config: Mapping[str, Any], arch: Architecture) -> None:
    """Settings that change what a model computes, and that mlx_lm's does not look at."""
    for name, neutral in _NEUTRAL.items():
        if name in config and config[name] not in neutral and name not in arch.source:
            raise another_model(arch, f"does not look at {name}, which config.json says is {config[name]}")


def _routing(config: Mapping[str, Any], arch: Architecture, notes: list[str]) -> None:
    """How the chosen experts are weighed. Jamba's have their shares among all experts, mlx_lm's sum to 1."""
    experts = config.get("num_experts")
    is_sum = re.search(r"take_along_axis\(gates.*\n\s*scores = mx\.softmax\(scores", arch.source)
    if arch.name == "jamba" and isinstance(experts, int) and experts > 1 and is_sum:
        notes.append(
            "mlx_lm makes the weights of Jamba's chosen experts sum to 1, the original not: it answers otherwise"
        )


def check_angles(config: Mapping[str, Any], built: Built) -> None:
    """Make sure that the built model turns queries and keys as config.json, translated, says.

    Raises:
        MlxmathError: it does not.
    """
    part = text_part(config) or config
    model_type = str(config["model_type"])
    arch = architecture(str(part.get("model_type") or model_type), model_type)
    if arch is None:
        return
    with library_errors("config.json: its rope_scaling gives no angles", "Take it from the source again."):
        how = built_otherwise(built.model, part)
    if how:
        raise another_model(arch, how)


def differing(config: Mapping[str, Any], translated: Mapping[str, Any]) -> tuple[str, ...]:
    """Settings that mlx_lm reads from the translated configuration and not, or otherwise, from the original."""
    found: list[str] = []
    pairs: Iterable[tuple[Any, Any, str]] = [
        (config, translated, ""), (config.get("text_config"), translated.get("text_config"), "text_config.")
    ]  # fmt: skip
    for before, after, prefix in pairs:
        if isinstance(before, dict) and isinstance(after, dict):
            model_type = str(after.get("model_type") or translated["model_type"])
            arch = architecture(model_type, str(translated["model_type"]))
            keys = [key for key in after if key != "text_config" and after[key] != before.get(key)]
            found += [prefix + key for key in keys if arch is None or arch.reads(key)]
    return tuple(found)


def known_type(model_type: str) -> str | None:
    """The name under which mlx_lm has a model type; transformers saves the text part of some models under its own."""
    return next((name for name in (model_type, model_type.removesuffix("_text")) if module_name(name)), None)


def check_claims(config: Mapping[str, Any], tensors: Mapping[str, TensorRef], where: Path) -> None:
    """Refuse sizes in config.json that no tensor bears out, before a model of these sizes is made.

    Raises:
        MlxmathError: a size is none, or larger than all of the weights.
    """
    largest = max((max(tensor.shape, default=1) for tensor in tensors.values()), default=1)
    total = sum(tensor.num_elements for tensor in tensors.values()) * 8  # eight elements in a packed one, at most
    for table in (config, text_part(config)):
        for names, limit in ((_COUNTS, len(tensors)), (_SIZES, max(total, largest))):
            for name in names:
                value = table.get(name)
                if value is None or (
                    isinstance(value, list) and all(type(n) is int and 0 <= n <= limit for n in value)
                ):
                    continue
                if isinstance(value, bool | str | dict | list) or not 0 <= value <= limit:
                    raise MlxmathError(
                        f"{where}: config.json says {name} {str(value)[:40]}, but the weights are {len(tensors):,} "
                        f"tensors of up to {largest:,} rows or columns; config.json is damaged or of another model."
                    )


_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_nextn_predict_layers")
_SIZES = (
    "vocab_size", "hidden_size", "n_embd", "d_model", "intermediate_size", "num_attention_heads", "num_key_value_heads",
    "n_head", "n_heads", "head_dim", "moe_intermediate_size", "num_experts", "num_local_experts", "n_routed_experts",
    "num_experts_per_tok",
)  # fmt: skip
