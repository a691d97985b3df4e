#!/usr/bin/env bash
# mlx-lm 0.32.2: the blocks of Gemma 3n that share keys and values use their own projections where no cache is given, as in
# training and in measuring a loss, and the shared ones where one is, as in generation: two different functions.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'mlx[cpu]==0.32.4' mlx-lm==0.32.2
cat > "$folder/show.py" <<'PYTHON'
import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.models import gemma3n
from mlx_lm.models.cache import make_prompt_cache

mx.set_default_device(mx.cpu)
mx.random.seed(0)
text = dict(
    model_type="gemma3n_text", hidden_size=64, num_hidden_layers=4, intermediate_size=128, num_attention_heads=4, head_dim=16,
    rms_norm_eps=1e-6, vocab_size=128, num_key_value_heads=2, num_kv_shared_layers=2, vocab_size_per_layer_input=128,
    sliding_window=64, max_position_embeddings=512, rope_local_base_freq=1e4, rope_theta=1e6, final_logit_softcapping=30.0,
    layer_types=["sliding_attention", "full_attention"] * 2, activation_sparsity_pattern=[0.0] * 4,
    hidden_size_per_layer_input=16, altup_num_inputs=2, altup_coef_clip=120.0, altup_correct_scale=True, altup_active_idx=0,
    laurel_rank=16,
)
model = gemma3n.Model(gemma3n.ModelArgs.from_dict({"model_type": "gemma3n", "text_config": text}))
model.update(tree_map(lambda a: a * 1.5 + 0.1 * mx.random.normal(a.shape), model.parameters()))
tokens = mx.array([[5, 90, 17, 33, 41, 8, 64, 120]])
without, with_cache = model(tokens), model(tokens, cache=make_prompt_cache(model))
difference = (mx.abs(without - with_cache).max() / mx.abs(without).max()).item()
print(f"largest difference of the logits, as a part of the largest: {difference:.2f}")
assert difference > 0.05, "mlx_lm has changed"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
