#!/usr/bin/env bash
# mlx 0.32.4 on a CPU: the product that picks an expert's matrix exists in float32 only, so that every unquantized
# mixture in bfloat16, as all of them are published, ends in an error that names no model.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'mlx[cpu]==0.32.4' mlx-lm==0.32.2
cat > "$folder/show.py" <<'PYTHON'
import mlx.core as mx
from mlx_lm.models.switch_layers import SwitchGLU

mx.set_default_device(mx.cpu)
chosen = mx.array([[[0, 1], [1, 2], [3, 0]]])
experts = SwitchGLU(64, 32, 4)
mx.eval(experts(mx.ones((1, 3, 64)), chosen))
print("float32: runs")
experts.set_dtype(mx.bfloat16)
try:
    mx.eval(experts(mx.ones((1, 3, 64), mx.bfloat16), chosen))
except RuntimeError as error:
    print("bfloat16:", error)
    assert "float32" in str(error)
else:
    raise SystemExit("bfloat16 runs now")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
