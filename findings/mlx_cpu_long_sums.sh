#!/usr/bin/env bash
# mlx 0.32.4 on a CPU: sums over a row in float32 add one term after the other, so that of a vocabulary's tail of small probabilities
# much is rounded away. mx.logsumexp, and with it nn.losses.cross_entropy, of 151,936 logits with a standard deviation of 3 comes out
# too low by 2e-4 nats, always to the same side, and mx.softmax's rows sum to 1.0002, with precise=True too. A good float32 sum
# (NumPy's, by pairs) is right to 1e-6. On real weights of SmolLM2-135M the gradients of a LoRA differ by 6e-4 for that alone; the ratio
# of probabilities drawn with one and scored with the other is never 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'mlx[cpu]==0.32.4' numpy==2.4.6
cat > "$folder/show.py" <<'PYTHON'
import mlx.core as mx
import mlx.nn as nn
import numpy as np

mx.set_default_device(mx.cpu)
for size in (32_000, 151_936, 262_144):
    logits = (np.random.default_rng(0).normal(size=(64, size)) * 3).astype(np.float32)
    top = logits.max(1).astype(np.float64)
    right = np.log(np.exp(logits.astype(np.float64) - top[:, None]).sum(1)) + top
    numpy = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + top
    found = np.array(mx.logsumexp(mx.array(logits), axis=-1)) - right
    losses = np.array(nn.losses.cross_entropy(mx.array(logits), mx.zeros(64, mx.int32))) - (right - logits[:, 0])
    sums = np.array(mx.softmax(mx.array(logits), axis=-1, precise=True)).sum(1, dtype=np.float64)
    print(f"{size} logits: logsumexp {found.min():+.1e} to {found.max():+.1e} nats, cross_entropy {losses.mean():+.1e},")
    print(f"  softmax's rows sum to {sums.mean():.6f}; NumPy in float32: {abs(numpy - right).max():.0e}")
    assert abs(numpy - right).max() < 2e-6
    if size > 100_000:
        assert found.max() < -1e-4 and losses.max() < -1e-4 and sums.min() > 1.0001, "mlx has changed"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
