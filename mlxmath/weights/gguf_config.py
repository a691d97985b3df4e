"""config.json out of the metadata of a GGUF file.

Keys are those of llama.cpp (`gguf-py/gguf/constants.py`), settings those of transformers. What llama.cpp knows of an
architecture without its file saying so is written down here, with the place where it does.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mlxmath.errors import MlxmathError
from mlxmath.weights.dtypes import Array, convert
from mlxmath.weights.gguf_file import GgufFile
from mlxmath.weights.gguf_names import Family
from mlxmath.weights.gguf_tensors import values_of

_CLASSES = {
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM", "qwen2_moe": "Qwen2MoeForCausalLM", "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM", "gemma": "GemmaForCausalLM", "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM", "phi3": "Phi3ForCausalLM", "granite": "GraniteForCausalLM",
    "smollm3": "SmolLM3ForCausalLM", "olmo2": "Olmo2ForCausalLM", "starcoder2": "Starcoder2ForCausalLM",
}  # fmt: skip
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Of all Llama 3.1 to 3.3 models; a file has the resulting factors, of which `factor` is the largest."""


class Metadata:
    """The metadata of a GGUF file, by keys without the architecture, checked."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self._architecture = str(file.metadata.get("general.architecture"))

    def get(self, key: str) -> Any:
        """An entry; None where it is absent."""
        return self.file.metadata.get(f"{self._architecture}.{key}")

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number above 0; a list of one such for each block counts where all are equal."""
        value = self.get(key)
        if isinstance(value, list) and value and len(set(map(str, value))) == 1:
            value = value[0]
        if value is None and default is not None:
            return default
        if type(value) is not int or not 0 < value < 1 << 32:
            raise self.wrong(key, value, "a whole number above 0, the same for all blocks")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number, in the fewest digits that mean it: files hold float32, config.json the decimal."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(key, value, "a number")
        return float(str(np.float32(value)))

    def vector(self, name: str) -> Array | None:
        """A small tensor of numbers, as float32; None where it is absent."""
        tensor = self.file.tensors.get(name)
        if tensor is None:
            return None
        if len(tensor.shape) != 1 or tensor.shape[0] > 1 << 16:
            raise self.wrong(name, tensor.shape, "a tensor with one dimension")
        ref = values_of(tensor, name)
        return convert(ref.read(), ref.dtype, "float32")[0]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor that must be there."""
        tensor = self.file.tensors.get(name)
        if tensor is None:
            raise MlxmathError(f"{self.file.paths[0]} lacks the tensor {name!r}; choose another file of the model.")
        return tensor.shape

    def has(self, name: str) -> bool:
        """Whether there is a tensor of that name."""
        return name in self.file.tensors

    def wrong(self, key: str, value: Any, expected: str) -> MlxmathError:
        """The error for an entry that is not what it must be."""
        found = "nothing" if value is None else repr(value)[:60]
        return MlxmathError(
            f"{self.file.paths[0]}: the metadata {self._architecture}.{key} is {found}, expected {expected}. The file "
            "is damaged, or of a model that is not read; choose another."
        )


def config_of(file: GgufFile, family: Family) -> dict[str, Any]:
    """The config.json of a GGUF file.

    Raises:
        MlxmathError: an entry is missing or is not what it must be.
    """
    meta = Metadata(file)
    hidden_size, num_heads = meta.count("embedding_length"), meta.count("attention.head_count")
    num_key_heads = meta.count("attention.head_count_kv", num_heads)
    head_dim = meta.count("attention.key_length", max(hidden_size // num_heads, 1))
    if meta.count("attention.value_length", head_dim) != head_dim:
        raise meta.wrong("attention.value_length", meta.get("attention.value_length"), f"{head_dim}, as of the keys")
    if meta.count("block_count") > len(file.tensors):
        raise meta.wrong("block_count", meta.get("block_count"), f"no more than its {len(file.tensors)} tensors")
    config = {
        "architectures": [_CLASSES[family.model_type]],
        "model_type": family.model_type,
        "vocab_size": meta.shape("token_embd.weight")[0],
        "hidden_size": hidden_size,
        "num_hidden_layers": meta.count("block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_key_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": meta.count("context_length"),
        "rope_theta": meta.number("rope.freq_base", 10000.0),
        "attention_bias": meta.has("blk.0.attn_q.bias"),
        "mlp_bias": meta.has("blk.0.ffn_up.bias"),
        "tie_word_embeddings": not meta.has("output.weight"),
    }
    if meta.get("feed_forward_length") is not None:
        config["intermediate_size"] = meta.count("feed_forward_length")
    if meta.get("attention.layer_norm_rms_epsilon") is not None:
        config["rms_norm_eps"] = meta.number("attention.layer_norm_rms_epsilon")
    rotated = meta.count("rope.dimension_count", head_dim)
    if rotated != head_dim:
        config["partial_rotary_factor"] = rotated / head_dim
    if scaling := _rope_scaling(meta, config):
        config["rope_scaling"] = scaling
    for name in ("bos", "eos"):
        token = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if type(token) is int:
            config[f"{name}_token_id"] = token
    _OF_FAMILY.get(family.model_type, _nothing)(meta, config)
    return config


def _rope_scaling(meta: Metadata, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """ "rope_scaling" of config.json."""
    kind = meta.get("rope.scaling.type")
    factors = meta.vector("rope_freqs.weight")
    if factors is not None:
        return _llama3(meta, factors, config)
    long, short = meta.vector("rope_factors_long.weight"), meta.vector("rope_factors_short.weight")
    if long is not None and short is not None:
        return {"type": "longrope", "rope_type": "longrope", "long_factor": _plain(long), "short_factor": _plain(short)}
    if kind in (None, "none"):
        return None
    if kind not in ("linear", "yarn"):
        raise meta.wrong("rope.scaling.type", kind, "none, linear or yarn")
    scaling: dict[str, Any] = {"type": kind, "rope_type": kind, "factor": meta.number("rope.scaling.factor")}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = meta.count("rope.scaling.original_context_length")
        for key, name in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
            if meta.get(f"rope.scaling.{key}") is not None:
                scaling[name] = meta.number(f"rope.scaling.{key}")
    return scaling


def _plain(values: Array) -> list[float]:
    return [float(str(value)) for value in values]


def _llama3(meta: Metadata, factors: Array, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The scaling of Llama 3.1 that has these factors: 1 for short waves, `factor` for long, in between in between."""
    factor = float(str(factors.max())) if factors.size else 0.0
    if not np.all(np.isfinite(factors)) or not 1 <= factor < 1 << 16:
        raise meta.wrong("rope_freqs.weight", factors[:4], "factors of at least 1")
    if factor == 1:
        return None
    scaling = {"type": "llama3", "rope_type": "llama3", "factor": factor, **_LLAMA3}
    dims = 2 * factors.size
    wave = 2 * math.pi * config["rope_theta"] ** (np.arange(0, dims, 2) / dims)
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    turns = _LLAMA3["original_max_position_embeddings"] / wave
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    if not np.allclose(factors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-3):
        raise meta.wrong("rope_freqs.weight", factors[-4:], "factors of Llama 3.1's kind, which is the one known here")
    return scaling


def _nothing(_: Metadata, __: dict[str, Any]) -> None:
    """Nothing besides."""


def _qwen2(_: Metadata, config: dict[str, Any]) -> None:
    config["use_sliding_window"] = False
    config.pop("mlp_bias")


def _experts(meta: Metadata, config: dict[str, Any], *, normalized: bool) -> None:
    """Of Qwen's mixtures. Whether the chosen experts' weights sum to 1 is in llama.cpp's graph, not in the file."""
    config |= {
        "num_experts": meta.count("expert_count"),
        "num_experts_per_tok": meta.count("expert_used_count"),
        "moe_intermediate_size": meta.shape("blk.0.ffn_gate_exps.weight")[1],
        "norm_topk_prob": normalized,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    config.setdefault("intermediate_size", config["moe_intermediate_size"])
    config.pop("mlp_bias")


def _qwen2_moe(meta: Metadata, config: dict[str, Any]) -> None:
    _experts(meta, config, normalized=False)
    config["shared_expert_intermediate_size"] = meta.shape("blk.0.ffn_gate_shexp.weight")[0]


def _qwen3_moe(meta: Metadata, config: dict[str, Any]) -> None:
    _experts(meta, config, normalized=True)


def _mixtral(meta: Metadata, config: dict[str, Any]) -> None:
    config["num_local_experts"] = meta.count("expert_count")
    config["num_experts_per_tok"] = meta.count("expert_used_count")
    config.pop("mlp_bias")


def _gemma(_: Metadata, config: dict[str, Any]) -> None:
    config["hidden_act"] = config["hidden_activation"] = "gelu_pytorch_tanh"
    config.pop("mlp_bias")


def _gemma2(meta: Metadata, config: dict[str, Any]) -> None:
    _gemma(meta, config)
    config |= {
        "attn_logit_softcapping": meta.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": meta.number("final_logit_softcapping", 30.0),
        "sliding_window": meta.count("attention.sliding_window", 4096),
        "query_pre_attn_scalar": _query_scalar(config, 46),
    }


def _gemma3(meta: Metadata, config: dict[str, Any]) -> None:
    _gemma(meta, config)
    pattern = meta.count("attention.sliding_window_pattern", 6)
    config |= {
        "rope_theta": meta.number("rope.freq_base", 1e6),
        "rope_local_base_freq": meta.number("rope.freq_base_swa", 10000.0),
        "sliding_window": meta.count("attention.sliding_window"),
        "sliding_window_pattern": pattern,
        "layer_types": [
            "sliding_attention" if (number + 1) % pattern else "full_attention"
            for number in range(config["num_hidden_layers"])
        ],
        "query_pre_attn_scalar": _query_scalar(config, 62),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    }


def _query_scalar(config: Mapping[str, Any], blocks_of_27b: int) -> int:
    """By what scores are divided, squared: the size of a head, but in the models of 27B, known by their blocks, the
    width of the model shared out over the heads (`f_attention_scale` in llama.cpp's src/llama-model.cpp)."""
    if config["num_hidden_layers"] == blocks_of_27b:
        return int(config["hidden_size"] // config["num_attention_heads"])
    return int(config["head_dim"])


def _phi3(meta: Metadata, config: dict[str, Any]) -> None:
    config["original_max_position_embeddings"] = meta.count(
        "rope.scaling.original_context_length", config["max_position_embeddings"]
    )
    if meta.get("attention.sliding_window"):
        config["sliding_window"] = meta.count("attention.sliding_window")
    config.pop("mlp_bias")


def _granite(meta: Metadata, config: dict[str, Any]) -> None:
    config |= {
        "attention_multiplier": meta.number("attention.scale", config["head_dim"] ** -0.5),
        "embedding_multiplier": meta.number("embedding_scale", 1.0),
        "residual_multiplier": meta.number("residual_scale", 1.0),
        "logits_scaling": meta.number("logit_scale", 1.0),
    }


def _smollm3(_: Metadata, config: dict[str, Any]) -> None:
    """Each fourth block has no rotary embedding (`n_no_rope_layer_step` in llama.cpp)."""
    config["no_rope_layer_interval"] = 4
    config["no_rope_layers"] = [int((number + 1) % 4 != 0) for number in range(config["num_hidden_layers"])]


def _starcoder2(meta: Metadata, config: dict[str, Any]) -> None:
    config["norm_epsilon"] = meta.number("attention.layer_norm_epsilon")
    config["hidden_act"] = "gelu_pytorch_tanh"
    config["use_bias"] = config.pop("attention_bias")
    config.pop("mlp_bias")


_OF_FAMILY: dict[str, Callable[[Metadata, dict[str, Any]], None]] = {
    "qwen2": _qwen2, "qwen2_moe": _qwen2_moe, "qwen3": _qwen2, "qwen3_moe": _qwen3_moe, "mixtral": _mixtral,
    "gemma": _gemma, "gemma2": _gemma2, "gemma3_text": _gemma3, "phi3": _phi3, "granite": _granite,
    "smollm3": _smollm3, "starcoder2": _starcoder2,
}  # fmt: skip
