#!/usr/bin/env bash
# mlx-lm 0.32.2: batched generation pads the shorter prompts on the left, and the state of a Mamba model reads the padding.
# The same prompt, greedy, gets another answer beside a longer one. No error, no warning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'mlx[cpu]==0.32.4' mlx-lm==0.32.2
cat > "$folder/show.py" <<'PYTHON'
import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models import mamba

mx.set_default_device(mx.cpu)
mx.random.seed(0)
model = mamba.Model(
    mamba.ModelArgs(
        model_type="mamba", vocab_size=128, hidden_size=64, intermediate_size=128, state_size=8, num_hidden_layers=2,
        conv_kernel=4, use_bias=False, use_conv_bias=True, time_step_rank=4,
    )
)
model.update(tree_map(lambda a: a * 1.5 + 0.2 * mx.random.normal(a.shape), model.parameters()))
model.eval()
short, long = [5, 6, 7], [90, 17, 33, 41, 8, 64, 120, 77, 50, 23, 11, 19]

def batch(*prompts):
    generator = BatchGenerator(model, max_tokens=6, stop_tokens=[[0]])
    ids = generator.insert(list(prompts))
    answers = {i: [] for i in ids}
    while True:
        read, drawn = generator.next()
        if not read and not drawn:
            return [answers[i] for i in ids]
        for response in drawn:
            answers[response.uid].append(response.token)

alone = [token for token, _ in generate_step(mx.array(short), model, max_tokens=6)]
itself, beside = batch(short)[0], batch(short, long)[0]
print("alone:", alone, "\nas a batch of its own:", itself, "\nbeside a longer prompt:", beside)
assert alone == itself != beside, "mlx_lm has changed"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
