#!/usr/bin/env bash
# mlx-lm 0.32.2 reads rope_scaling of a published config.json for Qwen3 and leaves it out, in silence, for Qwen3-MoE, Mixtral
# and GLM-4 MoE: with YaRN asked for, as Qwen's model cards say for long texts, their logits are not those of transformers 5.24.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0
"$folder/venv/bin/python" -m pip install --quiet 'mlx[cpu]==0.32.4' mlx-lm==0.32.2 transformers==5.24.0
cat > "$folder/show.py" <<'PYTHON'
import json, os, tempfile
from pathlib import Path

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
import mlx.core as mx
import numpy as np
import torch
import transformers
from mlx_lm.utils import load_model

transformers.utils.logging.disable_progress_bar()
mx.set_default_device(mx.cpu)
shape = dict(
    vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, max_position_embeddings=32768, tie_word_embeddings=False,
)
experts = dict(num_experts_per_tok=2, moe_intermediate_size=32)
families = {
    "qwen3": (transformers.Qwen3ForCausalLM, shape),
    "qwen3_moe": (
        transformers.Qwen3MoeForCausalLM,
        shape | experts | dict(num_experts=4, decoder_sparse_step=1, mlp_only_layers=[], norm_topk_prob=True),
    ),
    "mixtral": (transformers.MixtralForCausalLM, shape | dict(num_local_experts=4, num_experts_per_tok=2)),
    "glm4_moe": (
        transformers.Glm4MoeForCausalLM,
        shape | experts | dict(
            n_routed_experts=4, n_shared_experts=1, n_group=1, topk_group=1, first_k_dense_replace=1,
            routed_scaling_factor=1.0, norm_topk_prob=True, use_qk_norm=True, attention_bias=False, partial_rotary_factor=0.5,
        ),
    ),
}
yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
tokens = np.random.default_rng(0).integers(0, 128, (1, 48))

def difference(name, scaling):
    """Largest difference of the logits in mlx_lm and transformers, as a part of the largest logit."""
    kind, settings = families[name]
    rope = {"rope_theta": 10000.0, "rope_scaling": scaling}  # as the published models have it
    torch.manual_seed(0)
    model = kind(kind.config_class(**settings, **rope)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
        expected = model(torch.tensor(tokens)).logits.numpy()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        published = settings | rope | {"model_type": name, "rms_norm_eps": model.config.rms_norm_eps}
        Path(folder, "config.json").write_text(json.dumps(published))
        found = np.array(load_model(Path(folder))[0](mx.array(tokens)))
    return np.abs(found - expected).max() / np.abs(expected).max()

for name in families:
    plain, scaled = difference(name, None), difference(name, yarn)
    print(f"{name}: difference without scaling {plain:.1e}, with YaRN {scaled:.1e}")
    assert plain < 1e-3 and (scaled < 1e-3) == (name == "qwen3"), "mlx_lm has changed"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
