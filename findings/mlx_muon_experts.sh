#!/usr/bin/env bash
# mlx 0.32.4: Muon makes the update of a matrix orthogonal. Of a stack of experts' matrices (experts, out, in) it makes one
# matrix with a row an expert, so that no expert's update is orthogonal. No error, no warning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'mlx[cpu]==0.32.4'
cat > "$folder/show.py" <<'PYTHON'
import mlx.core as mx
import mlx.optimizers as optim

mx.set_default_device(mx.cpu)
mx.random.seed(0)
gradient = mx.random.normal((4, 8, 64))

def spread(gradient, pick):
    """Largest over smallest singular value of one matrix's update."""
    updated = optim.Muon(1.0, weight_decay=0.0).apply_gradients({"a": gradient}, {"a": mx.zeros_like(gradient)})["a"]
    values = mx.linalg.svd(pick(updated), compute_uv=False, stream=mx.cpu)
    return (values.max() / values.min()).item(), values.max().item()

alone, stacked = spread(gradient[0], lambda u: u), spread(gradient, lambda u: u[0])
print(f"expert 0 alone: singular values up to {alone[1]:.2f}, spread {alone[0]:.2f}")
print(f"expert 0 in a stack of 4: up to {stacked[1]:.2f}, spread {stacked[0]:.2f}")
assert stacked[1] < 0.7 * alone[1], "Muon has changed"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
