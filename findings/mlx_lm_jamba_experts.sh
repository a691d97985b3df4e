#!/usr/bin/env bash
# mlx-lm 0.32.2 computes another function than transformers 5.24.0 of a Jamba with a mixture of experts. In Jamba the chosen experts keep the
# shares that they have among all experts, so that their weights sum to less than 1; mlx_lm takes the softmax over the chosen ones alone.
# The logits agree where there is one expert, or all are chosen, and differ by whole units as soon as some are left out.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0
"$folder/venv/bin/python" -m pip install --quiet 'mlx[cpu]==0.32.4' mlx-lm==0.32.2 transformers==5.24.0
cat > "$folder/show.py" <<'PYTHON'
import os, tempfile
from pathlib import Path

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
import mlx.core as mx
import numpy as np
import torch
import transformers
from mlx_lm.utils import load_model

transformers.utils.logging.disable_progress_bar()
mx.set_default_device(mx.cpu)
TOKENS = [[3, 17, 99, 4, 56, 21, 8, 77, 30, 5]]


def difference(num_experts, chosen):
    """The largest difference of a logit, and the share of positions whose likeliest token is another."""
    torch.manual_seed(0)
    config = transformers.JambaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1, num_experts=num_experts,
        num_experts_per_tok=chosen, mamba_d_state=8, mamba_dt_rank=8, use_mamba_kernels=False, initializer_range=0.3,
        tie_word_embeddings=False, pad_token_id=0,
    )
    model = transformers.JambaForCausalLM(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        ours = np.array(load_model(Path(folder))[0](mx.array(TOKENS)).astype(mx.float32))
    with torch.no_grad():
        theirs = model(torch.tensor(TOKENS)).logits.numpy()
    return float(np.abs(ours - theirs).max()), float((ours.argmax(-1) != theirs.argmax(-1)).mean())


for num_experts, chosen in ((1, 1), (4, 4), (4, 2), (16, 2)):
    logits, top = difference(num_experts, chosen)
    print(f"{chosen} of {num_experts} experts: logits differ by {logits:.1e} at most, the likeliest token at {top:.0%} of positions")
    assert (logits < 1e-3) == (chosen == num_experts), "mlx_lm has changed"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
