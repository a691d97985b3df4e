#!/usr/bin/env bash
# mlx 0.32.4, mlx-lm 0.32.2: a quantized layer's parameters are documented as frozen. nn.quantize() of a frozen model leaves the
# biases of its layers trainable (Qwen2's queries, keys and values, gpt-oss's experts), so that they train beside the adapters;
# unfreeze() opens the packed integers too, and the gradient then ends in an error that names no layer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'mlx[cpu]==0.32.4' mlx-lm==0.32.2
cat > "$folder/show.py" <<'PYTHON'
import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models import gpt_oss, qwen2

mx.set_default_device(mx.cpu)
dense = qwen2.Model(
    qwen2.ModelArgs(
        model_type="qwen2", hidden_size=64, num_hidden_layers=1, intermediate_size=64, num_attention_heads=2, rms_norm_eps=1e-6,
        vocab_size=128, num_key_value_heads=2,
    )
)
mixture = gpt_oss.Model(
    gpt_oss.ModelArgs(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=32,
        vocab_size=128, num_local_experts=4, num_experts_per_tok=2, layer_types=["sliding_attention", "full_attention"],
    )
)
for model in (dense, mixture):
    model.freeze()
    before = tree_flatten(model.trainable_parameters())
    nn.quantize(model)
    trainable = [name for name, _ in tree_flatten(model.trainable_parameters())]
    first = [name.removeprefix("model.layers.0.") for name in trainable if ".0." in name]
    print(f"{model.model_type}: {len(before)} trainable parameters after freeze(); after nn.quantize() in block 0:", *first)
    assert not before and trainable and all(name.endswith(".bias") for name in trainable), "mlx or mlx_lm has changed"

model = nn.Sequential(nn.Linear(64, 64), nn.RMSNorm(64))
nn.quantize(model)
model.unfreeze()
print("after unfreeze():", *(f"{name} ({a.dtype})" for name, a in tree_flatten(model.trainable_parameters())))
try:
    nn.value_and_grad(model, lambda m, x: m(x).sum())(model, mx.ones((2, 64)))
except Exception as error:
    print("its gradient:", error)
else:
    raise SystemExit("mlx has changed")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
