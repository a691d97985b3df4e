#!/usr/bin/env bash
# mlx 0.32.4, mlx-lm 0.32.2: packed in one of the float forms (mxfp4, nvfp4, mxfp8), an embedding gives bfloat16 whatever the model's
# type is; in the affine form it gives the model's. With float16 beside it MLX promotes both to float32, so that a model of float16
# computes all its blocks, and keeps its keys and values, in float32: twice the memory, in silence.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'mlx[cpu]==0.32.4' mlx-lm==0.32.2
cat > "$folder/show.py" <<'PYTHON'
import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import llama
from mlx_lm.models.cache import make_prompt_cache

mx.set_default_device(mx.cpu)
arguments = llama.ModelArgs(
    model_type="llama", hidden_size=64, num_hidden_layers=1, intermediate_size=128, num_attention_heads=2, rms_norm_eps=1e-6,
    vocab_size=128, num_key_value_heads=2,
)
for mode, group_size, bits in (("affine", 64, 4), ("mxfp4", 32, 4), ("nvfp4", 16, 4), ("mxfp8", 32, 8)):
    model = llama.Model(arguments)
    model.set_dtype(mx.float16)
    nn.quantize(model, group_size=group_size, bits=bits, mode=mode)
    cache = make_prompt_cache(model)
    model(mx.array([[1, 2, 3]]), cache=cache)
    embedded, keys = model.model.embed_tokens(mx.array([1])).dtype, cache[0].keys.dtype
    print(f"{mode}: norms are {model.model.norm.weight.dtype}, the embedding gives {embedded}, keys are kept in {keys}")
    expected = (mx.float16, mx.float16) if mode == "affine" else (mx.bfloat16, mx.float32)
    assert (embedded, keys) == expected, "mlx has changed"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
