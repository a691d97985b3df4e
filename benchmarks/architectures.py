"""Models of random weights of other architectures than `benchmarks.shapes` has, as folders that mlxmath reads."""

import copy
import importlib
import json
import shutil
from pathlib import Path
from typing import Any

_SIZES: dict[str, Any] = {
    "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64,
    "vocab_size": 8000, "intermediate_size": 1408, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
_EXPERTS: dict[str, Any] = {
    "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 256, "decoder_sparse_step": 1,
    "mlp_only_layers": [], "norm_topk_prob": True,
}  # fmt: skip
_LINEAR: dict[str, Any] = {
    "full_attention_interval": 4, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 32,
    "linear_value_head_dim": 32, "linear_conv_kernel_dim": 4, "partial_rotary_factor": 0.5,
}  # fmt: skip
_HYBRID = _SIZES | _LINEAR | {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 768}

CONFIGS: dict[str, dict[str, Any]] = {
    "dense": _SIZES | {"model_type": "qwen3"},
    "mixture": _SIZES | _EXPERTS | {"model_type": "qwen3_moe"},
    "hybrid": {name: value for name, value in _HYBRID.items() if name != "partial_rotary_factor"}
    | {
        "model_type": "qwen3_5", "num_experts": 0, "num_experts_per_tok": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
    },
    "hybrid mixture": _HYBRID
    | _EXPERTS
    | {"model_type": "qwen3_next", "moe_intermediate_size": 128, "shared_expert_intermediate_size": 128},
    "state space": _SIZES
    | {
        "model_type": "falcon_h1", "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 768,
        "mamba_d_head": 32, "mamba_d_ssm": 256, "mamba_d_state": 32, "mamba_n_heads": 8, "mamba_n_groups": 1,
        "mamba_d_conv": 4, "mamba_chunk_size": 128,
    },
    "windows": _SIZES | {"model_type": "gemma3_text", "sliding_window": 128, "sliding_window_pattern": 2},
}  # fmt: skip
MIXED_BITS = {"embed_tokens": 8, "lm_head": 8, "down_proj": 8}
"""Of a model that is otherwise in 4 bits."""


def write_model(name: str, tokenizer: Path, folder: Path, *, mixed_bits: bool = False) -> Path:
    """The model `CONFIGS[name]` with the tokenizer of another folder, unless it is there already."""
    if (folder / "config.json").exists():
        return folder
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.utils import quantize_model

    config = copy.deepcopy(CONFIGS[name])
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    mx.random.seed(0)
    if "TextModelArgs" in vars(module):  # a shell around the language model
        kind, inner = config["model_type"], {**config, "model_type": f"{config['model_type']}_text"}
        config = {"model_type": kind, "text_config": inner, "vocab_size": config["vocab_size"]}
    model = module.Model(module.ModelArgs.from_dict(copy.deepcopy(config)))
    if mixed_bits:

        def bits(path: str, layer: Any) -> bool | dict[str, int]:
            own = next((bits for end, bits in MIXED_BITS.items() if path.endswith(end)), 4)
            return hasattr(layer, "to_quantized") and {"group_size": 64, "bits": own}

        model, config = quantize_model(model, config, group_size=64, bits=4, quant_predicate=bits)
    shutil.copytree(tokenizer, folder, ignore=shutil.ignore_patterns("config.json", "*.safetensors", "*.index.json"))
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder
