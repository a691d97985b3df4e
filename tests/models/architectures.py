"""A tiny random model of every model type that the installed mlx_lm has.

A configuration is `SIZES`, as far as the type's own `ModelArgs` knows these names, and what `OWN` says of the type.
Every distinct kind of block occurs, a window is shorter than the texts of the tests, a mixture takes two of four
experts or more, widths are multiples of 64 so that a model can be quantized in groups of 32 or 64.

    model, config = make("qwen3_moe")
    folder = write("qwen3_moe", tmp_path)      # config.json, model.safetensors, a tokenizer
"""

import copy
import dataclasses
import importlib
import inspect
import json
import pkgutil
import sys
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import MODEL_REMAPPING, quantize_model

sys.modules.setdefault("hf_olmo", ModuleType("hf_olmo"))  # mlx_lm.models.olmo ends the process where it is missing

VOCAB_SIZE = 128
"""Of every model; the tokenizer of `write` has as many words."""
WINDOW = 8
"""Of every sliding window: tokens."""
FIRST_PIECE = 4
"""Ids below are the tokenizer's own: padding, unknown, begin, end."""

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": WINDOW,
    # mixtures of experts
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "moe_shared_expert_intermediate_size": 64,
    "shared_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_layer_freq": 1,
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.5,
    # latent attention
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    # linear attention
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
}

_LATENT_HEADS = {"num_key_value_heads": 4}
_MOE = {"num_hidden_layers": 3}
_DEEPSEEK = {
    **_MOE,
    **_LATENT_HEADS,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "n_group": 2,
    "n_routed_experts": 8,
}
_QWEN3 = {"num_hidden_layers": 3, "attention_bias": True}
_QWEN3_5 = {
    "num_hidden_layers": 3,
    "full_attention_interval": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
}
_QWEN3_5_MOE = {**_QWEN3_5, "num_experts": 4}
_QWEN3_5_DENSE = {**_QWEN3_5, "num_experts": 0, "num_experts_per_tok": 0}
_GRANITE = {
    "logits_scaling": 4.0,
    "attention_multiplier": 0.2,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
}
_INDEXER = {"index_head_dim": 16, "index_n_heads": 2, "index_topk": WINDOW}
_SLIDING_3 = ["sliding_attention", "full_attention", "sliding_attention"]
_BAILING = {
    **_MOE,
    "norm_softmax": False,
    "score_function": "sigmoid",
    "n_group": 2,
    "num_experts": 8,
    "moe_router_enable_expert_bias": True,
    "use_qk_norm": True,
    "partial_rotary_factor": 0.5,
}
_KDA = {"num_heads": 4, "head_dim": 16, "short_conv_kernel_size": 4, "kda_layers": [1, 3], "full_attn_layers": [2]}
_LLAMA4 = {
    "num_hidden_layers": 4,
    "attention_chunk_size": WINDOW,
    "interleave_moe_layer_step": 2,
    "intermediate_size_mlp": 128,
    "intermediate_size": 64,
    "rope_scaling": None,
    "use_qk_norm": True,
    "num_experts_per_tok": 1,
    "floor_scale": 8,
}
_GEMMA4 = {
    "model_type": "gemma4_text",
    "num_hidden_layers": 4,
    "global_head_dim": 32,
    "vocab_size_per_layer_input": VOCAB_SIZE,
    "hidden_size_per_layer_input": 16,
    "num_kv_shared_layers": 0,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window_pattern": 2,
    "num_experts": 4,
    "top_k_experts": 2,
    "enable_moe_block": True,
    "final_logit_softcapping": 5.0,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"},
        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
    },
}
_LFM2 = {
    "num_hidden_layers": 3,
    "conv_bias": True,
    "conv_L_cache": 3,
    "layer_types": ["conv", "full_attention", "conv"],
    "block_dim": 64,
    "block_ff_dim": 128,
    "block_multiple_of": 32,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": False,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
_MINISTRAL3 = {"model_type": "ministral3", "num_hidden_layers": 3, "layer_types": _SLIDING_3, "rope_parameters": _YARN}
_MISTRAL4 = {
    "model_type": "mistral4",
    **_MOE,
    **_LATENT_HEADS,
    "n_group": 2,
    "n_routed_experts": 8,
    "rope_parameters": _YARN,
    "rope_interleave": True,
}

OWN: dict[str, dict[str, Any]] = {
    "Klear": {**_MOE, "mlp_only_layers": [0], "attention_bias": True},
    "afm7": {
        "hidden_dim": 64,
        "num_layers": 4,
        "num_kv_reuse_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "hidden_dim_scale_factor": 2.0,
    },
    "afmoe": {**_MOE, "num_dense_layers": 1, "layer_types": _SLIDING_3},
    "apertus": {"post_norm": False, "qk_norm": True},
    "baichuan_m1": {"num_hidden_layers": 3, "sliding_window_layers": [0, 2], "conv_window": 2},
    "bailing_hybrid": {**_BAILING, **_LATENT_HEADS, "layer_group_size": 2, "group_norm_size": 2},
    "bailing_moe": _BAILING,
    "bailing_moe_linear": {**_BAILING, "layer_group_size": 2, "group_norm_size": 2, "num_key_value_heads": 4},
    "bailing_moe_v3": {
        **_MOE,
        "model_type": "bailing_hybrid",
        "architectures": ["BailingMoeV3ForCausalLM"],
        "layer_group_size": 2,
        "n_group": 2,
        "num_experts": 8,
    },
    "bitnet": {},
    "cohere": {"logit_scale": 0.25, "use_qk_norm": True, "layer_norm_bias": True, "attention_bias": True},
    "cohere2": {"num_hidden_layers": 3, "logit_scale": 0.25, "sliding_window_pattern": 2},
    "dbrx": {
        "d_model": 64,
        "n_layers": 3,
        "n_heads": 4,
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
    },
    "deepseek": _MOE,
    "deepseek_v2": {
        **_MOE,
        **_LATENT_HEADS,
        "topk_method": "group_limited_greedy",
        "n_group": 2,
        "n_routed_experts": 8,
        "rope_scaling": {key: value for key, value in _YARN.items() if key != "rope_type"} | {"type": "yarn"},
    },
    "deepseek_v3": _DEEPSEEK,
    "deepseek_v32": {**_DEEPSEEK, **_INDEXER},
    "deepseek_v41": {
        **_MOE,
        **_INDEXER,
        "head_dim": 32,
        "o_groups": 2,
        "o_lora_rank": 16,
        "compress_ratios": [0, 4, 128],
        "candidate_topk_blocks": 4,
        "hc_mult": 2,
        "hc_sinkhorn_iters": 4,
    },
    "dots1": {**_MOE, "scoring_func": "noaux_tc"},
    "ernie4_5": {"use_bias": True, "tie_word_embeddings": True},
    "ernie4_5_moe": {
        **_MOE,
        "use_bias": False,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1,
    },
    "exaone": {"num_layers": 2},
    "exaone4": {
        "num_hidden_layers": 3,
        "sliding_window_pattern": "LLG",
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "rope_scaling": None,
    },
    "exaone_moe": {**_MOE, "layer_types": _SLIDING_3, "is_moe_layer": [False, True, True]},
    "falcon_h1": {
        "mamba_d_head": 16,
        "mamba_d_ssm": 64,
        "mamba_d_state": 16,
        "mamba_n_heads": 4,
        "mamba_n_groups": 2,
        "lm_head_multiplier": 0.5,
        "embedding_multiplier": 2.0,
        "key_multiplier": 0.6,
        "ssm_out_multiplier": 0.8,
        "tie_word_embeddings": False,
    },
    "gear": {
        "num_hidden_layers": 3,
        "layer_types": ["conv_mixer", "sliding_attention", "full_attention"],
        "final_logit_softcapping": 5.0,
        "attn_logit_softcapping": 10.0,
    },
    "gemma": {},
    "gemma2": {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 10.0, "query_pre_attn_scalar": 16},
    "gemma3": {
        "text_config": {
            "tie_word_embeddings": False,
            "model_type": "gemma3_text",
            "num_hidden_layers": 3,
            "sliding_window_pattern": 2,
            "query_pre_attn_scalar": 16,
        }
    },
    "gemma3_text": {
        "tie_word_embeddings": False,
        "num_hidden_layers": 3,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 16,
    },
    "gemma3n": {
        "text_config": {
            "model_type": "gemma3n_text",
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "vocab_size_per_layer_input": VOCAB_SIZE,
            "hidden_size_per_layer_input": 16,
            "rope_local_base_freq": 1e4,
            "final_logit_softcapping": 5.0,
            "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0],
            "altup_num_inputs": 3,
            "altup_coef_clip": 120.0,
            "altup_correct_scale": True,
            "altup_active_idx": 0,
            "laurel_rank": 16,
        }
    },
    "gemma4": {"text_config": _GEMMA4},
    "gemma4_text": {
        **_GEMMA4,
        "num_kv_shared_layers": 2,
        "enable_moe_block": False,
        "use_double_wide_mlp": True,
    },
    "glm": {"attention_bias": True},
    "glm4": {"attention_bias": True, "partial_rotary_factor": 0.5},
    "glm4_moe": {
        **_MOE,
        "rope_scaling": None,
        "use_qk_norm": True,
        "attention_bias": True,
        "partial_rotary_factor": 0.5,
        "n_group": 2,
        "n_routed_experts": 8,
    },
    "glm4_moe_lite": _DEEPSEEK,
    "glm_moe_dsa": {**_DEEPSEEK, **_INDEXER, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
    "gpt2": {"n_ctx": 512, "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 512},
    "gpt_bigcode": {"n_embd": 64, "n_layer": 2, "n_inner": 128, "n_head": 4, "n_positions": 512},
    "gpt_neox": {"num_key_value_heads": 4, "rotary_emb_base": 10000, "rotary_pct": 0.5},
    "gpt_oss": {
        **_MOE,
        "layer_types": _SLIDING_3,
        "intermediate_size": 64,
        "rope_theta": 10000,
        "rope_scaling": {
            key: value
            for key, value in _YARN.items()
            if key in ("rope_type", "factor", "original_max_position_embeddings", "beta_fast", "beta_slow")
        },
    },
    "gptj": {"n_embd": 64, "n_positions": 512, "n_head": 4, "rotary_dim": 8, "n_layer": 2},
    "granite": _GRANITE,
    "granitemoe": {**_GRANITE, **_MOE},
    "granitemoehybrid": {
        **_GRANITE,
        **_MOE,
        "layer_types": ["mamba", "attention", "mamba"],
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_expand": 2,
        "mamba_proj_bias": False,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_n_groups": 2,
        "mamba_conv_bias": True,
    },
    "helium": {},
    "hunyuan": {
        "num_hidden_layers": 4,
        "moe_topk": 2,
        "num_shared_expert": 1,
        "use_mixed_mlp_moe": True,
        "use_qk_norm": True,
        "use_cla": True,
        "cla_share_factor": 2,
        "rope_scaling": {"alpha": 10.0, "factor": 1.0, "type": "dynamic"},
    },
    "hunyuan_v1_dense": {"rope_scaling": {"alpha": 10.0, "factor": 1.0, "type": "dynamic"}},
    "internlm2": {"bias": False},
    "internlm3": {"bias": True, "qkv_bias": True},
    "iquestloopcoder": {"loop_num": 2, "loop_window_size": WINDOW},
    "jamba": {
        "num_hidden_layers": 4,
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_d_conv": 4,
        "mamba_d_state": 8,
        "mamba_expand": 2,
    },
    "kimi_k25": {"text_config": {"model_type": "deepseek_v3", **_DEEPSEEK}},
    "kimi_k3": {
        "text_config": {
            "model_type": "kimi_linear",
            **_MOE,
            **_LATENT_HEADS,
            "linear_attn_config": {**_KDA, "gate_lower_bound": -5.0},
            "activation_situ_beta": 4.0,
            "activation_situ_linear_beta": 25.0,
            "attn_res_block_size": 2,
            "mla_use_output_gate": True,
            "routed_expert_hidden_size": 32,
            "latent_moe_use_norm": True,
        }
    },
    "kimi_linear": {**_MOE, **_LATENT_HEADS, "linear_attn_config": _KDA, "model_max_length": 512, "q_lora_rank": None},
    "kimi_vl": {"text_config": {"model_type": "deepseek_v3", **_DEEPSEEK}},
    "laguna": {**_MOE, "layer_types": _SLIDING_3, "num_attention_heads_per_layer": [4, 4, 4]},
    "lfm2": _LFM2,
    "lfm2-vl": {"text_config": {"model_type": "lfm2", **_LFM2}},
    "lfm2_moe": {
        **_LFM2,
        "num_hidden_layers": 4,
        "layer_types": ["conv", "full_attention"] * 2,
        "num_dense_layers": 1,
        "use_expert_bias": True,
    },
    "lille-130m": {
        "block_size": 512,
        "n_embd": 64,
        "n_head": 4,
        "n_kv_heads": 2,
        "n_layer": 2,
        "tie_word_embeddings": True,
    },
    "llama": {"num_hidden_layers": 3},
    "llama4": {"text_config": {"model_type": "llama4_text", **_LLAMA4}},
    "llama4_text": {"intermediate_size_mlp": 128, "no_rope_layers": [1, 0], "use_qk_norm": True},
    "longcat_flash": {
        **_MOE,
        **_LATENT_HEADS,
        "attention_method": "MLA",
        "zero_expert_type": "identity",
        "ffn_hidden_size": 128,
        "moe_topk": 2,
        "expert_ffn_hidden_size": 64,
        "zero_expert_num": 2,
        "num_layers": 2,
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
    },
    "longcat_flash_ngram": {
        "ffn_hidden_size": 128,
        "moe_topk": 2,
        "expert_ffn_hidden_size": 64,
        "zero_expert_num": 2,
        "num_layers": 2,
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
        "ngram_vocab_size_ratio": 3,
        "emb_neighbor_num": 3,
        "emb_split_num": 2,
    },
    "mamba": {
        "intermediate_size": 128,
        "state_size": 8,
        "conv_kernel": 4,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_rank": 4,
    },
    "mamba2": {
        "num_heads": 8,
        "state_size": 16,
        "conv_kernel": 4,
        "n_groups": 2,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_limit": [0.0, 100.0],
        "time_step_rank": "auto",
    },
    "mellum": {
        **_MOE,
        "layer_types": _SLIDING_3,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
        },
    },
    "mimo": {"num_nextn_predict_layers": 0},
    "mimo_v2_flash": {
        **_MOE,
        "hybrid_layer_pattern": [1, 0, 1],
        "moe_layer_freq": [0, 1, 1],
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "sliding_window_size": WINDOW,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "layernorm_epsilon": 1e-5,
        "swa_rope_theta": 1000.0,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 16,
        "swa_v_head_dim": 16,
        "partial_rotary_factor": 0.5,
    },
    "minicpm": {"dim_model_base": 16, "scale_depth": 1.4, "scale_emb": 3.0},
    "minicpm3": {
        "dim_model_base": 16,
        "scale_depth": 1.4,
        "scale_emb": 3.0,
        "num_key_value_heads": 4,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
            "original_max_position_embeddings": 128,
        },
    },
    "minimax": {**_MOE, "rotary_dim": 8, "intermediate_size": 64},
    "minimax_m3_vl": {
        "text_config": {
            "model_type": "minimax_m3",
            **_MOE,
            "intermediate_size": 64,
            "dense_intermediate_size": 128,
            "rotary_dim": 8,
            "moe_layer_freq": [0, 1, 1],
            "sparse_attention_config": {
                "sparse_num_index_heads": 2,
                "sparse_index_dim": 16,
                "sparse_block_size": 4,
                "sparse_topk_blocks": 2,
                "sparse_local_block": 1,
                "sparse_attention_freq": [0, 1, 1],
            },
        }
    },
    "ministral3": _MINISTRAL3,
    "mistral3": {"text_config": _MINISTRAL3},
    "mistral4": _MISTRAL4,
    "mixtral": _MOE,
    "muse_glimmer": {"num_hidden_layers": 4, "output_multiplier": 0.5, "final_logit_softcapping": 5.0},
    "muse_spark": {
        "text_config": {
            **_MOE,
            "post_norm_eps": 1e-6,
            "rope_parameters": {"rope_theta": 10000.0},
            "layer_rope_theta": [10000.0, 0.0, 10000.0],
            "layer_types": _SLIDING_3,
            "final_logit_softcapping": 5.0,
            "output_multiplier": 0.5,
            "moe_hidden_size": 32,
            "num_shared_experts": 0,
        }
    },
    "nanbeige": {"num_hidden_layers": 2, "num_loops": 2},
    "nanochat": {"num_hidden_layers": 2},
    "nemotron": {"hidden_act": "relu2", "attention_bias": True},
    "nemotron-nas": {
        "num_hidden_layers": 4,
        "block_configs": [
            {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.0}},
            {"attention": {"no_op": True}, "ffn": {"replace_with_linear": True}},
            {"attention": {"replace_with_linear": True}, "ffn": {"no_op": True}},
            {"attention": {"n_heads_in_group": 4}, "ffn": {"ffn_mult": 2.0}},
        ],
    },
    "nemotron_h": {
        "num_hidden_layers": 4,
        "hybrid_override_pattern": ["M", "*", "E", "-"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "mamba_proj_bias": False,
        "ssm_state_size": 16,
        "conv_kernel": 4,
        "n_groups": 2,
        "use_bias": False,
        "use_conv_bias": True,
        "moe_latent_size": 32,
    },
    "olmo": {"d_model": 64, "n_layers": 2, "mlp_hidden_size": 256, "n_heads": 4, "embedding_size": VOCAB_SIZE},
    "olmo2": {},
    "olmo3": {"num_hidden_layers": 3, "layer_types": _SLIDING_3},
    "olmo_hybrid": {
        "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_num_key_heads": 4,
        "linear_allow_neg_eigval": True,
    },
    "olmoe": {**_MOE, "intermediate_size": 64},
    "openelm": {
        "num_transformer_layers": 2,
        "model_dim": 64,
        "ffn_dim_divisor": 32,
        "num_query_heads": [4, 8],
        "num_kv_heads": [2, 4],
        "ffn_multipliers": [1.0, 2.0],
    },
    "phi": {"num_key_value_heads": 4, "partial_rotary_factor": 0.5},
    "phi3": {
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8},
        "original_max_position_embeddings": 128,
    },
    "phi3small": {
        "vocab_size": 100352,  # mlx_lm writes to the columns of its reserved tokens, wherever they are
        "dense_attention_every_n_layers": 2,
        "ff_intermediate_size": 128,
        "gegelu_limit": 20.0,
        "blocksparse_block_size": 32,
        "blocksparse_num_local_blocks": 1,
        "blocksparse_vert_stride": 2,
    },
    "phimoe": {
        **_MOE,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0] * 8,
            "long_factor": [4.0] * 8,
            "long_mscale": 1.2,
            "short_mscale": 1.2,
        },
        "original_max_position_embeddings": 128,
    },
    "phixtral": {"num_vocab": VOCAB_SIZE, "model_dim": 64, "num_heads": 4, "num_layers": 3, "rotary_dim": 8},
    "pixtral": {"text_config": {"model_type": "mistral"}},
    "plamo": {"n_shared_head": 2},
    "plamo2": {
        "hidden_size_per_head": 16,
        "attention_window_size": 512,
        "mamba_d_state": 16,
        "mamba_num_heads": 4,
        "tie_word_embeddings": True,
        "num_hidden_layers": 3,
    },
    "plamo3": {"num_hidden_layers": 3, "window_size": WINDOW, "sliding_window_pattern": 2, "tie_word_embeddings": True},
    "prism_hadamard_qwen35": {
        "schema_version": 1,
        "tensor_namespace": "mlx-lm-text",
        "quantization": {"bits": 2, "group_size": 128, "mode": "affine"},
        "text_config": {"model_type": "qwen3_5_text", **_QWEN3_5_DENSE},
        "modules": [
            {"path": f"model.layers.{number}.mlp.down_proj", "embedding": False, "dtype": "float16", "block": block}
            for number, block in enumerate((0, 0, 0))
        ],
    },
    "qwen": {"kv_channels": 16, "intermediate_size": 256},
    "qwen2": {},
    "qwen2_moe": _MOE,
    "qwen2_vl": {"text_config": {"model_type": "qwen2"}},
    "qwen3": _QWEN3,
    "qwen3_5": {"text_config": {"model_type": "qwen3_5_text", **_QWEN3_5_DENSE}},
    "qwen3_5_moe": {"text_config": {"model_type": "qwen3_5_moe_text", **_QWEN3_5_MOE}},
    "qwen3_moe": {**_MOE, "mlp_only_layers": [0]},
    "qwen3_next": {**_QWEN3_5_MOE, "partial_rotary_factor": 0.25},
    "qwen3_vl": {"text_config": {"model_type": "qwen3", **_QWEN3}},
    "qwen3_vl_moe": {"text_config": {"model_type": "qwen3_moe", **_MOE}},
    "recurrent_gemma": {
        "tie_word_embeddings": False,
        "num_hidden_layers": 3,
        "conv1d_width": 4,
        "logits_soft_cap": 5.0,
        "num_key_value_heads": 1,
        "attention_window_size": WINDOW,
        "block_types": ["recurrent", "recurrent", "attention"],
    },
    "rwkv7": {
        "num_hidden_layers": 3,
        "a_low_rank_dim": 16,
        "v_low_rank_dim": 16,
        "gate_low_rank_dim": 16,
        "decay_low_rank_dim": 16,
    },
    "seed_oss": {"attention_bias": True},
    "smollm3": {"num_hidden_layers": 3, "no_rope_layers": [1, 0, 1]},
    "solar_open": {**_MOE, "rope_scaling": None, "use_qk_norm": True, "partial_rotary_factor": 1.0},
    "spark2_5": {
        "num_hidden_layers": 3,
        "layer_types": _SLIDING_3,
        "rope_parameters": {
            "full_attention": {"rope_theta": 10000.0, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 1000.0, "rope_type": "default"},
        },
    },
    "stablelm": {"use_qkv_bias": True, "partial_rotary_factor": 0.5, "qk_layernorm": True},
    "starcoder2": {"norm_epsilon": 1e-5},
    "step3p5": {
        **_MOE,
        "num_attention_groups": 2,
        "layer_types": _SLIDING_3,
        "attention_other_setting": {"num_attention_heads": 4, "num_attention_groups": 2},
        "moe_num_experts": 4,
        "moe_top_k": 2,
        "share_expert_dim": 64,
        "moe_layers_enum": "1,2",
        "swiglu_limits": [0.0, 0.0, 7.0],
        "swiglu_limits_shared": [0.0, 0.0, 7.0],
        "yarn_only_types": ["full_attention"],
        "partial_rotary_factors": [1.0, 0.5, 1.0],
    },
    "talkie": {"num_hidden_layers": 2},
    "telechat3": {},
    "youtu_llm": {"num_key_value_heads": 4},
}
"""What a type has beyond `SIZES`, or otherwise. Lists of layers are as long as the model is deep."""


VARIANTS: dict[str, dict[str, Any]] = {
    "bailing_moe:softmax": {"score_function": "softmax", "norm_head": True, "n_group": 1, "use_qkv_bias": True},
    "deepseek_v2:greedy": {"topk_method": "greedy", "n_group": 1, "q_lora_rank": None},
    "deepseek_v3:no_query_rank": {"q_lora_rank": None, "rope_scaling": OWN["deepseek_v2"]["rope_scaling"]},
    "ernie4_5_moe:aux_free": {"moe_use_aux_free": True, "moe_gate_act": "sigmoid", "tie_word_embeddings": True},
    "exaone4:global": {"sliding_window": None, "sliding_window_pattern": None, "layer_types": ["full_attention"] * 3},
    "falcon_h1:norm": {"mamba_rms_norm": True, "tie_word_embeddings": True},
    "gemma4:dense": {
        "text_config": {"enable_moe_block": False, "num_kv_shared_layers": 2, "use_double_wide_mlp": True}
    },
    "gemma4:keys_are_values": {"text_config": {"attention_k_eq_v": True, "num_global_key_value_heads": 1}},
    "gpt_bigcode:multi_head": {"multi_query": False, "num_key_value_heads": 4, "tie_word_embeddings": False},
    "gpt_neox:sequential": {"use_parallel_residual": False},
    "granitemoehybrid:dense": {
        "num_local_experts": None,
        "position_embedding_type": "nope",
        "tie_word_embeddings": True,
    },
    "hunyuan:plain": {"use_cla": False, "use_mixed_mlp_moe": False, "tie_word_embeddings": True},
    "jamba:dense": {"num_experts": 1, "num_experts_per_tok": 1, "tie_word_embeddings": True},
    "kimi_k3:plain": {
        "text_config": {
            "attn_res_block_size": None,
            "mla_use_output_gate": False,
            "routed_expert_hidden_size": None,
            "latent_moe_use_norm": False,
            "q_lora_rank": None,
        }
    },
    "laguna:heads": {"num_attention_heads_per_layer": [4, 8, 4]},
    "lfm2:indices": {"layer_types": None, "full_attn_idxs": [1], "block_auto_adjust_ff_dim": True},
    "llama:biased": {
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "llama:scaled": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "mamba:normed": {"use_bcdt_rms": True, "tie_word_embeddings": True},
    "minimax_m3_vl:dense": {"text_config": {"sparse_attention_config": None}},
    "mistral3:llama": {"text_config": {"model_type": "mistral", "rope_parameters": None}},
    "mistral3:mistral4": {"text_config": _MISTRAL4},
    "nanbeige:tied": {"skip_loop_final_norm": True, "tie_word_embeddings": True},
    "nemotron_h:plain": {"moe_latent_size": None, "hybrid_override_pattern": ["M", "-", "*", "E"]},
    "openelm:plain": {
        "ffn_with_glu": False,
        "normalize_qk_projections": False,
        "share_input_output_layers": False,
    },
    "phi3:plain": {"rope_scaling": None, "tie_word_embeddings": True},
    "qwen2:tied": {"tie_word_embeddings": True},
    "qwen2_moe:tied": {"tie_word_embeddings": True},
    "qwen3_5:tied": {"text_config": {"tie_word_embeddings": True}},
    "qwen3_5_moe:rotary": {
        "text_config": {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
        }
    },
    "qwen3_moe:tied": {"tie_word_embeddings": True, "norm_topk_prob": False, "mlp_only_layers": []},
    "rwkv7:tied": {"tie_word_embeddings": True},
    "stablelm:parallel": {"use_parallel_residual": True, "qk_layernorm": False, "use_qkv_bias": False},
}
"""Other forms of types, named after a colon: what they have otherwise than `OWN`."""


def installed() -> list[str]:
    """The model types of the installed mlx_lm: the modules that have a model and its arguments."""
    names = (module.name for module in pkgutil.iter_modules(mlx_lm.models.__path__))
    return sorted(name for name in names if {"Model", "ModelArgs"} <= vars(_module(name)).keys())


def aliases() -> dict[str, str]:
    """Names that mlx_lm takes for one of its model types."""
    return {name: own for name, own in MODEL_REMAPPING.items() if name not in installed()}


def config_of(model_type: str) -> dict[str, Any]:
    """config.json of the tiny model of a type, a variant (`VARIANTS`), or an alias, which has that of its type."""
    variant = copy.deepcopy(VARIANTS.get(model_type, {}))
    model_type = model_type.partition(":")[0]
    name = MODEL_REMAPPING.get(model_type, model_type)
    module, own = _module(name), copy.deepcopy(OWN[name])
    own |= {key: own[key] | value if key == "text_config" else value for key, value in variant.items()}
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    config = _sizes(module.ModelArgs) | {"model_type": model_type} | ids | own
    if "text_config" in own:
        text = own["text_config"]
        text_args = getattr(module, "TextArgs", None) or getattr(module, "TextConfig", None) or _text_args(text)
        config["text_config"] = _sizes(text_args) | text
        config["vocab_size"] = VOCAB_SIZE
    return config


def make(model_type: str, seed: int = 0) -> tuple[nn.Module, dict[str, Any]]:
    """A model in float32 with random weights, also where mlx_lm starts from ones or zeros; and its config.json."""
    config = config_of(model_type)
    name = model_type.partition(":")[0]
    module = _module(MODEL_REMAPPING.get(name, name))
    mx.random.seed(seed)
    model = module.Model(module.ModelArgs.from_dict(copy.deepcopy(config)))
    weights = {name: _random(array) for name, array in tree_flatten(model.parameters())}
    if hasattr(model, "sanitize"):
        weights = model.sanitize(weights)  # some normalize the head
    model.update(tree_unflatten(list(weights.items())))
    model.eval()
    mx.eval(model.parameters())
    return model, config


def write(model_type: str, folder: Path, seed: int = 0, bits: int | None = None) -> Path:
    """The model of `make`, on request quantized in groups of 32, as a folder that mlx_lm and mlxmath load."""
    model, config = make(model_type, seed)
    if bits is not None:
        model, config = quantize_model(model, config, group_size=32, bits=bits)
    folder = folder / (model_type.replace(":", "-") + (f"-{bits}bit" if bits else ""))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(
        str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), metadata={"format": "mlx"}
    )
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of `VOCAB_SIZE` pieces: printable ASCII characters, and pairs of digits.

    In the bytes' alphabet of GPT-2, as some classes of transformers read every vocabulary.
    """
    special = ["<pad>", "<unk>", "<s>", "</s>"]
    characters = ["Ċ", "Ġ", *map(chr, range(ord("!"), ord("~") + 1))]
    pairs = [divmod(number, 10) for number in range(VOCAB_SIZE - len(special) - len(characters))]
    pieces = [*special, *characters, *(f"{first}{second}" for first, second in pairs)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": word, "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            for number, word in enumerate(special)
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {piece: number for number, piece in enumerate(pieces)},
            "merges": [[str(first), str(second)] for first, second in pairs],
        },
    }
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **names})
    )


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"mlx_lm.models.{name}")


def _text_args(text: dict[str, Any]) -> Any:
    """The arguments of the text model in a vision-language shell."""
    inner = text["model_type"]
    inner = {"mistral": "llama", "qwen3_5_text": "qwen3_5", "qwen3_5_moe_text": "qwen3_5"}.get(inner, inner)
    module = _module(inner)
    return getattr(module, "TextModelArgs", module.ModelArgs)


def _sizes(arguments: Any) -> dict[str, Any]:
    known = {field.name for field in dataclasses.fields(arguments)}
    parent = {name for base in inspect.getmro(arguments) for name in typing.get_type_hints(base)} if known else set()
    return {name: copy.deepcopy(value) for name, value in SIZES.items() if name in known | parent}


def _random(array: mx.array) -> mx.array:
    """Weights half as large again as mlx_lm's, so that blocks matter beside the residual; vectors moved by a fifth."""
    if not mx.issubdtype(array.dtype, mx.floating):
        return mx.random.randint(0, 2**31 - 1, array.shape).astype(array.dtype) if array.size else array
    noise = mx.random.normal(array.shape).astype(array.dtype)
    return array * 1.5 + 0.02 * noise if array.ndim > 1 else array + 0.2 * noise
