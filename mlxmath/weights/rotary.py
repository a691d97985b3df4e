"""The rotary embedding that config.json means, and the one that mlx_lm builds.

mlx_lm's models read different settings of it, some declare one and never look at it, and some fall back on none. So the
embeddings that a model has built are asked for their angles, which are held against the formulas.

Su et al. 2021, arXiv:2104.09864; YaRN: Peng et al. 2023, arXiv:2309.00071; the others as in transformers.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mlxmath.weights.architecture import Architecture, another_model
from mlxmath.weights.dtypes import Array

Angles = npt.NDArray[np.float64]
"""Of each pair of dimensions: radians a token."""

_KINDS = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
_BASES = ("rope_theta", "rotary_emb_base", "rope_base")
"""Names of the base of all layers, or of those of the first kind."""
LONG_FACTORS = "mlxmath_long_factor"
"""Where a converted config.json keeps the `long_factor` of its source."""
_TOLERANCE = 1e-3
"""Of angles, relative."""
MAX_PHASE = 2.0
"""Radians, at `PHASE_AT` tokens, that a rotary embedding may be off."""
PHASE_AT = 1024


class Limit(NamedTuple):
    """Up to how many tokens the model is the original one."""

    tokens: int
    reason: str


def kind_of(rope: Mapping[str, Any]) -> str:
    """Which scaling a rotary embedding has; "default" for none."""
    kind = rope.get("rope_type") or rope.get("type") or "default"
    return "longrope" if kind == "su" else str(kind)


def angles(rope: Mapping[str, Any], base: float, dims: int, *, truncate: bool = True) -> Angles:
    """(dims / 2,) radians a token, for texts that are no longer than the model was first trained on.

    Args:
        rope: `rope_type` and what goes with it.
        base: `rope_theta`.
        dims: of a head that are turned.
        truncate: round the range of YaRN, as mlx_lm always does.
    """
    kind = kind_of(rope)
    if kind == "dynamic" and rope.get("alpha"):  # Hunyuan's
        base *= float(rope["alpha"]) ** (dims / (dims - 2))
    plain: Angles = base ** (-np.arange(0, dims, 2) / dims)
    if kind == "linear":
        return plain / float(rope["factor"])
    if kind == "yarn":
        return _yarn(rope, base, plain, truncate=truncate)
    if kind == "llama3":
        return _llama3(rope, plain)
    if kind == "longrope":
        return plain / np.asarray(rope["short_factor"], np.float64)
    return plain


def _yarn(rope: Mapping[str, Any], base: float, plain: Angles, *, truncate: bool) -> Angles:
    dims = 2 * len(plain)

    def dimension(rotations: float) -> float:
        turns = rope["original_max_position_embeddings"] / (rotations * 2 * math.pi)
        return dims * math.log(turns) / (2 * math.log(base))

    low, high = dimension(float(rope.get("beta_fast") or 32)), dimension(float(rope.get("beta_slow") or 1))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    ramp = np.clip((np.arange(dims // 2) - low) / max(high - low, 1e-3), 0, 1)
    result: Angles = plain * (1 - ramp) + plain / rope["factor"] * ramp
    return result


def _llama3(rope: Mapping[str, Any], plain: Angles) -> Angles:
    factor, low, high = (float(rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = float(rope["original_max_position_embeddings"]) * plain / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0, 1)
    result: Angles = plain * share + plain / factor * (1 - share)
    return result


def built_otherwise(model: Any, config: Mapping[str, Any]) -> str | None:
    """How a model's rotary embedding differs from what config.json means; None if it does not, or cannot be told.

    Each of its embeddings must turn by what one kind of layer is meant to, and each kind with a scaling must be there.

    Args:
        model: built by mlx_lm; its weights are not looked at.
        config: config.json, or the part of it that describes the text model, with the scaling that is meant.
    """
    meant = list(rope_kinds(config))
    if not meant or any(kind_of(rope) not in _KINDS for rope, _ in meant):
        return None
    scaled = {i for i, (rope, _) in enumerate(meant) if kind_of(rope) not in ("default", "dynamic")}
    plain: list[tuple[Mapping[str, Any], float]] = [({}, base) for base in _other_bases(model, config)]
    seen: set[int] = set()
    found = False
    for _, module in model.named_modules():
        is_one = re.search(r"rope$|rotary|^rope", type(module).__name__, re.IGNORECASE)
        if not is_one or (answer := _angles_of(module)) is None:
            continue
        found, (turned, is_interleaved) = True, answer
        if len(turned) > 1 and config.get("rope_interleave") not in (None, is_interleaved):
            return f"turns {'neighbours' if is_interleaved else 'halves'} of a head, whatever rope_interleave says"
        kinds = [*meant, *plain]
        matching = {
            i for i, (rope, base) in enumerate(kinds) if _same(turned, angles(rope, base, 2 * len(turned)))
        }  # fmt: skip
        if not matching:
            return f"turns queries and keys by angles other than those of config.json ({_named(meant)})"
        seen |= matching
    if found and scaled - seen:
        return f"does not scale the rotary embedding as config.json says ({_named(meant)})"
    return None


def rope_kinds(config: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], float]]:
    """Scaling and base of each kind of layer."""
    parameters = config.get("rope_parameters")
    parameters = parameters if isinstance(parameters, dict) else {}
    if nested := [value for value in parameters.values() if isinstance(value, dict)]:
        for rope in nested:
            if _is_number(rope.get("rope_theta")):
                yield rope, float(rope["rope_theta"])
        return
    scaling = config.get("rope_scaling")
    rope = {**parameters, **(scaling if isinstance(scaling, dict) else {})}
    bases = [table[name] for table in (rope, config) for name in _BASES if table.get(name) is not None]
    if bases and _is_number(bases[0]):
        yield rope, float(bases[0])


def _other_bases(model: Any, config: Mapping[str, Any]) -> list[float]:
    """Bases of a second kind of layer, which has no scaling: as config.json names them, or a model by default."""
    arguments = [getattr(module, name, None) for module in model.modules() for name in ("args", "config")]
    defaults = {id(each): vars(each) for each in arguments if hasattr(each, "__dict__")}
    tables = [config, *(value for value in config.values() if isinstance(value, dict)), *defaults.values()]
    return [
        float(value)
        for table in tables
        for name, value in table.items()
        if re.search(r"(rope|rotary).*(theta|base)", name) and name not in _BASES and _is_number(value)
    ]


def _angles_of(module: Any) -> tuple[Angles, bool] | None:
    """What an embedding turns the second token by, and whether neighbours are a pair; None if it cannot be asked.

    On the CPU: Metal's sine is right to 2^-13, and most angles are smaller.
    """
    import mlx.core as mx

    dims = getattr(module, "dims", None) or getattr(module, "dim", None)
    if dims is None and hasattr(module, "_freqs"):
        dims = 2 * module._freqs.size
    if not isinstance(dims, int) or dims <= 0 or dims % 2:
        return None

    def turned(values: Array) -> Array:
        with mx.stream(mx.cpu):
            return np.array(module(mx.array(values).reshape(1, 1, 1, dims), offset=1), np.float64).reshape(-1)

    numbers = np.arange(dims)
    try:
        is_interleaved = bool(turned((numbers == 0).astype(np.float32))[1] != 0)
        first = numbers % 2 == 0 if is_interleaved else numbers < dims // 2
        values = turned(first.astype(np.float32))
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return None
    result: Angles = np.arctan2(values[~first], values[first])
    return result, is_interleaved


def _same(found: Angles, wanted: Angles) -> bool:
    """Whether angles are the same, modulo a turn."""
    return bool(np.allclose(found, np.arctan2(np.sin(wanted), np.cos(wanted)), rtol=_TOLERANCE, atol=1e-7))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _named(meant: list[tuple[Mapping[str, Any], float]]) -> str:
    return ", ".join(dict.fromkeys(f"{kind_of(rope)} at a base of {base:g}" for rope, base in meant))


def say_rope(config: dict[str, Any], arch: Architecture, notes: list[str], limits: list[Limit]) -> None:
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
    for names in (_BASES, ("partial_rotary_factor", "rotary_pct")):
        for name in names:
            setting = names[0]
            if rope.get(setting) is not None and (name == setting or arch.reads(name)):
                config[name] = rope[setting]  # over what stands outside, as in transformers
    if isinstance(local, dict) and local is not whole:
        _say_local(config, arch, whole, local)
    factor = config.get("partial_rotary_factor")
    if arch.fields.get("rotary_dim") and config.get("rotary_dim") is None and config.get("head_dim"):
        config["rotary_dim"] = int(config["head_dim"] * (1 if factor is None else factor))
    turning = ("partial_rotary_factor", "rotary_pct", "rotary_dim", "rope_parameters")
    is_half = factor == 0.5 and re.search(r"RoPE\(\s*self\.head_dim // 2", arch.source)  # RecurrentGemma, always
    if factor not in (None, 1, 1.0) and not is_half and not arch.reads(*turning):
        raise another_model(arch, f"turns all of a head's dimensions, whatever partial_rotary_factor says ({factor})")
    if kind == "default":
        return
    if kind in ("yarn", "llama3", "longrope") and not rope.get("original_max_position_embeddings"):
        original = config.get("original_max_position_embeddings") or config.get("max_position_embeddings")
        rope["original_max_position_embeddings"] = original
    if not arch.reads("rope_scaling", "rope_parameters"):
        if kind != "dynamic":
            raise another_model(arch, f"has no {kind!r} scaling of the rotary embedding")
        limits.append(Limit(int(config["max_position_embeddings"]), "mlx_lm's model has no dynamic rotary scaling"))
    if kind == "yarn":
        _say_yarn(config, arch, rope, notes)
    if kind == "longrope":
        _say_longrope(config, arch, rope, limits)
    if whole is parameters and arch.reads("rope_parameters"):
        config["rope_parameters"] = dict(rope)
    config["rope_scaling"] = {**rope, "type": kind, "rope_type": kind}


def _say_local(config: dict[str, Any], arch: Architecture, whole: Mapping[str, Any], local: Mapping[str, Any]) -> None:
    """The rotary embedding of the layers with a window."""
    theta = local.get("rope_theta")
    if arch.reads("rope_local_base_freq"):
        if config.get("rope_local_base_freq") is None:
            config["rope_local_base_freq"] = theta
    elif theta != whole.get("rope_theta"):
        raise another_model(arch, "has one rotary base for layers with and without a window")
    scales_all = not arch.reads("rope_local_base_freq") and "layer_types" not in arch.source
    if kind_of(local) != "default" and not (kind_of(local) == kind_of(whole) and scales_all):
        raise another_model(arch, f"does not scale the rotary embedding of layers with a window ({kind_of(local)!r})")


def _say_yarn(config: Mapping[str, Any], arch: Architecture, rope: dict[str, Any], notes: list[str]) -> None:
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
        raise another_model(
            arch, f"rounds the range of YaRN, which `truncate: false` forbids ({off * PHASE_AT:.0f} radians)"
        )
    if off:
        notes.append(
            f"mlx_lm rounds the range of YaRN where config.json says `truncate: false`: rotary angles are off by up to "
            f"{off * PHASE_AT:.2f} radians at {PHASE_AT:,} tokens"
        )


def longrope_attention(original: int, whole: int) -> float:
    """The attention_factor of LongRoPE where it is not said: for texts of `original`, then of `whole` tokens."""
    return math.sqrt(1 + math.log(max(whole / original, 1)) / math.log(original))


def _say_longrope(config: dict[str, Any], arch: Architecture, rope: dict[str, Any], limits: list[Limit]) -> None:
    """LongRoPE has factors for short and for long texts; mlx_lm takes the long ones always. So the short ones are given
    for both: texts for training are short. The long ones are kept for exports."""
    original = int(rope["original_max_position_embeddings"])
    whole = int(config.get("max_position_embeddings") or original)
    wanted = rope.get("attention_factor")
    usual = longrope_attention(original, whole)
    if wanted is not None and not math.isclose(wanted, usual, rel_tol=1e-3):
        raise another_model(
            arch, f"computes LongRoPE's attention_factor as {usual:.4f} where config.json says {wanted}"
        )
    config.setdefault(LONG_FACTORS, rope.get("long_factor"))  # it is there in a model that is converted again
    if rope.get("short_factor") != config[LONG_FACTORS]:
        rope["long_factor"] = rope["short_factor"]
        limits.append(Limit(original, "LongRoPE with its factors for short texts only (mlx_lm has one set of them)"))
