"""Says what a config.json means in the words that mlx_lm's model of that type reads.

transformers 5 keeps all of the rotary embedding in `rope_parameters`, has renamed other settings, and writes no value
that its own class computes. mlx_lm reads the older names, takes a default for most that are absent, and ignores some
settings at all. So what can be said is said under the names that it reads; what it would ignore is noted where that
matters for long texts only, and refused where the model would be another one.
"""

import copy
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlxmath.errors import MlxmathError
from mlxmath.weights.architecture import Architecture, Built, architecture, module_name
from mlxmath.weights.rotary import angles, built_otherwise, kind_of

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

_ACTIVATIONS = {
    "silu": r"silu|swiglu|swish|Switch(GLU|MLP)\(",
    "gelu": r"gelu|geglu",
    "relu2": r"relu2|relu_squared|relusquared|square",
    "relu": r"relu",
    "xielu": r"xielu",
}
"""Kinds of activation, and how a model's source names them."""
_EXACT_GELU = ("gelu", "gelu_python")

MAX_PHASE = 2.0
"""Radians, at `PHASE_AT` tokens, that a rotary embedding may be off."""
PHASE_AT = 1024


@dataclass(frozen=True)
class Limit:
    """Up to how many tokens the model is the original one."""

    tokens: int
    reason: str


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
        parts.append((inner, architecture(str(inner.get("model_type") or model_type), model_type)))
    for part, arch in parts:
        if arch is None:
            continue
        try:
            _name(part, arch)
            _rope(part, arch, notes, limits)
            _fill(part, arch)
            _layers(part, arch)
            _window(part, arch, limits)
            _activation(part, arch, notes)
            _unread(part, arch)
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
    kinds = config.get("mlp_layer_types")
    if "is_moe_layer" in arch.fields and "is_moe_layer" not in config and isinstance(kinds, list):
        config["is_moe_layer"] = [kind == "sparse" for kind in kinds]


def _rope(config: dict[str, Any], arch: Architecture, notes: list[str], limits: list[Limit]) -> None:
    """Say `rope_parameters` in the older names, and hold what mlx_lm makes of it against what it means."""
    parameters = config.get("rope_parameters")
    local: dict[str, Any] | None = None
    if isinstance(parameters, dict) and any(isinstance(value, dict) for value in parameters.values()):
        if arch.reads("rope_parameters"):
            return
        whole, local = parameters.get("full_attention"), parameters.get("sliding_attention")
        whole = whole if isinstance(whole, dict) else local if isinstance(local, dict) else {}
    else:
        whole = parameters if isinstance(parameters, dict) else {}
    rope = dict(whole)
    scaling = config.get("rope_scaling")
    if isinstance(scaling, dict):
        rope = {**scaling, **rope, "rope_type": kind_of(scaling) if "rope_type" not in rope else kind_of(rope)}
    kind = kind_of(rope)
    for setting in ("rope_theta", "partial_rotary_factor"):
        for name in next(names for names in _SYNONYMS if setting in names):
            if rope.get(setting) is not None and (name == setting or arch.reads(name)):
                config[name] = rope[setting]  # over what stands outside, as in transformers
    if isinstance(local, dict) and local is not whole:
        _local_rope(config, arch, whole, local)
    factor = config.get("partial_rotary_factor")
    if arch.fields.get("rotary_dim") and config.get("rotary_dim") is None and config.get("head_dim"):
        config["rotary_dim"] = int(config["head_dim"] * (1 if factor is None else factor))
    turning = ("partial_rotary_factor", "rotary_pct", "rotary_dim", "rope_parameters")
    if factor not in (None, 1, 1.0) and not arch.reads(*turning):
        raise _another(arch, f"turns all of a head's dimensions, whatever partial_rotary_factor says ({factor})")
    if kind == "default":
        return
    if kind in ("yarn", "llama3", "longrope") and not rope.get("original_max_position_embeddings"):
        original = config.get("original_max_position_embeddings") or config.get("max_position_embeddings")
        rope["original_max_position_embeddings"] = original
    if not arch.reads("rope_scaling", "rope_parameters"):
        if kind != "dynamic":
            raise _another(arch, f"has no {kind!r} scaling of the rotary embedding")
        limits.append(Limit(int(config["max_position_embeddings"]), "mlx_lm's model has no dynamic rotary scaling"))
    if kind == "yarn":
        _yarn(config, arch, rope, notes)
    if kind == "longrope":
        _longrope(config, arch, rope, limits)
    if whole is parameters and arch.reads("rope_parameters"):
        config["rope_parameters"] = dict(rope)
    config["rope_scaling"] = {**rope, "type": kind, "rope_type": kind}


def _local_rope(config: dict[str, Any], arch: Architecture, whole: Mapping[str, Any], local: Mapping[str, Any]) -> None:
    """The rotary embedding of the layers with a window."""
    theta = local.get("rope_theta")
    if arch.reads("rope_local_base_freq"):
        if config.get("rope_local_base_freq") is None:
            config["rope_local_base_freq"] = theta
    elif theta != whole.get("rope_theta"):
        raise _another(arch, "has one rotary base for layers with and without a window")
    if kind_of(local) != "default" and not (kind_of(local) == kind_of(whole) and _scales_all(arch)):
        raise _another(arch, f"does not scale the rotary embedding of layers with a window ({kind_of(local)!r})")


def _scales_all(arch: Architecture) -> bool:
    return not arch.reads("rope_local_base_freq") and "layer_types" not in arch.source


def _yarn(config: Mapping[str, Any], arch: Architecture, rope: dict[str, Any], notes: list[str]) -> None:
    """YaRN (Peng et al. 2023, arXiv:2309.00071): mlx_lm knows neither `attention_factor` nor `truncate`."""
    scale = math.log(rope["factor"]) * 0.1
    wanted = rope.get("attention_factor")
    if wanted is not None and scale > 0:  # mlx_lm: (mscale s + 1) / (mscale_all_dim s + 1) with s = 0.1 ln factor
        over = float(rope.get("mscale_all_dim") or 0) * scale + 1
        if not math.isclose((float(rope.get("mscale") or 1) * scale + 1) / over, wanted, rel_tol=1e-6):
            rope["mscale"] = (wanted * over - 1) / scale
            rope.setdefault("mscale_all_dim", 0)
    if rope.get("truncate", True):
        return
    head = config.get("qk_rope_head_dim") or config.get("head_dim")
    head = int(head or config["hidden_size"] // config["num_attention_heads"])
    dims = int(head * float(config.get("partial_rotary_factor") or 1))
    base = float(config["rope_theta"])
    off = float(np.abs(angles(rope, base, dims) - angles(rope, base, dims, truncate=False)).max())
    if off * PHASE_AT > MAX_PHASE:
        raise _another(
            arch, f"rounds the range of YaRN, which `truncate: false` forbids ({off * PHASE_AT:.0f} radians)"
        )
    if off:
        notes.append(
            f"mlx_lm rounds the range of YaRN where config.json says `truncate: false`: rotary angles are off by up to "
            f"{off * PHASE_AT:.2f} radians at {PHASE_AT:,} tokens"
        )


def _longrope(config: Mapping[str, Any], arch: Architecture, rope: dict[str, Any], limits: list[Limit]) -> None:
    """LongRoPE has factors for short and for long texts; mlx_lm takes the long ones always. So the short ones are given
    for both: texts for training are short."""
    original = int(rope["original_max_position_embeddings"])
    whole = int(config.get("max_position_embeddings") or original)
    wanted = rope.get("attention_factor")
    usual = math.sqrt(1 + math.log(max(whole / original, 1)) / math.log(original))
    if wanted is not None and not math.isclose(wanted, usual, rel_tol=1e-3):
        raise _another(arch, f"computes LongRoPE's attention_factor as {usual:.4f} where config.json says {wanted}")
    if rope.get("short_factor") != rope.get("long_factor"):
        rope["long_factor"] = rope["short_factor"]
        limits.append(Limit(original, "LongRoPE with its factors for short texts only (mlx_lm has one set of them)"))


def _layers(config: dict[str, Any], arch: Architecture) -> None:
    """Which layers are of which kind, where mlx_lm reads a period instead of a list."""
    types = config.get("layer_types")
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
            raise _another(arch, f"has a layer with full attention every {name} layers; `layer_types` says otherwise")
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
        raise _another(arch, f"computes {' or '.join(has)}, whatever {name} says ({wanted!r})")
    is_exact = re.search(r"gelu_(approx|new|fast|pytorch)|approx=", arch.source) is None
    if kind == "gelu" and wanted != "quick_gelu" and is_exact != (wanted in _EXACT_GELU):
        notes.append(
            f"mlx_lm computes {'the exact' if is_exact else 'an approximate'} GELU for {wanted!r} (off by 0.0005)"
        )


def _unread(config: Mapping[str, Any], arch: Architecture) -> None:
    """Settings that change what a model computes, and that mlx_lm's does not look at."""
    for name, neutral in _NEUTRAL.items():
        if name in config and config[name] not in neutral and name not in arch.source:
            raise _another(arch, f"does not look at {name}, which config.json says is {config[name]}")


def check_angles(config: Mapping[str, Any], built: Built) -> None:
    """Make sure that the built model turns queries and keys as config.json, translated, says.

    Raises:
        MlxmathError: it does not.
    """
    inner = config.get("text_config")
    part = inner if isinstance(inner, dict) else config
    model_type = str(config["model_type"])
    arch = architecture(str(part.get("model_type") or model_type), model_type)
    if arch is not None and (how := built_otherwise(built.model, part)):
        raise _another(arch, how)


def _another(arch: Architecture, what: str) -> MlxmathError:
    return MlxmathError(
        f"mlx_lm's model {arch.name!r} {what}, so it would be another model than the one that was trained. "
        "Choose a model that mlx_lm can build."
    )


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
    for name in (model_type, model_type.removesuffix("_text")):
        if module_name(name):
            return name
    return None
