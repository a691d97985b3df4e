#!/usr/bin/env bash
# mlx 0.32.4, mlx-lm 0.32.2: mx.checkpoint differentiates with respect to the arrays among a function's arguments. Blocks that
# hand arrays on through an object (AFM 7 its keys and values, Kimi K3 its residuals) lose these gradients under
# --grad-checkpoint; the loss is the same to the last digit.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'mlx[cpu]==0.32.4' mlx-lm==0.32.2
cat > "$folder/show.py" <<'PYTHON'
import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models import afm7
from mlx_lm.tuner.trainer import grad_checkpoint

mx.set_default_device(mx.cpu)
arguments = afm7.ModelArgs(
    model_type="afm7", vocab_size=128, hidden_dim=64, num_layers=4, num_kv_reuse_layers=2, num_heads=4, num_kv_heads=2,
    hidden_dim_scale_factor=2.0,
)
tokens = mx.array([[5, 90, 17, 33, 41, 8, 64, 120]])

def gradients(checkpointed):
    mx.random.seed(0)
    model = afm7.Model(arguments)
    model.train()
    if checkpointed:
        grad_checkpoint(model.layers[0])
    loss = lambda m: nn.losses.cross_entropy(m(tokens[:, :-1]), tokens[:, 1:]).sum()
    value, found = nn.value_and_grad(model, loss)(model)
    return value.item(), dict(tree_flatten(found))

(loss, plain), (same_loss, checkpointed) = gradients(False), gradients(True)
worst = max((mx.abs(plain[n] - checkpointed[n]).max() / mx.abs(plain[n]).max()).item() for n in plain)
print(f"losses {loss:.6f} and {same_loss:.6f}; largest error of a gradient, as a part of its largest element: {worst:.2f}")
assert abs(loss - same_loss) < 1e-4 and worst > 0.1, "mlx or mlx_lm has changed"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
