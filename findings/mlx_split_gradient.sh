#!/usr/bin/env bash
# mlx 0.32.4, CPU: a long row is computed part by part, each part again in the backward pass so that only its inputs are kept. Whether the
# parts come from mx.split or from slices makes no difference to the numbers, but to memory: with mx.split into more than ten parts the
# gradient holds nearly all parts' intermediate arrays at once; with ten parts, or split in two stages, it does not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'mlx[cpu]==0.32.4'
cat > "$folder/show.py" <<'PYTHON'
import mlx.core as mx

mx.set_default_device(mx.cpu)
SIZE, OPERATIONS = 100_000, 40


def part(x, state):
    y = x
    for _ in range(OPERATIONS):
        y = mx.sin(y) + state
    return y, state + 1e-3 * y.mean()


@mx.custom_function
def recomputed(x, state):
    return part(x, state)


@recomputed.vjp
def recomputed_vjp(primals, cotangents, _):
    inputs = mx.depends(list(primals), list(cotangents))
    _, (d_x, d_state) = mx.vjp(part, inputs, list(cotangents))
    return d_x, mx.depends([d_state], [d_x])[0]


def arrays_held(count, split):
    """Peak memory of the gradient, in arrays of one part's size."""
    x = mx.random.normal((count, SIZE), key=mx.random.key(0))
    mx.eval(x)

    def total(x):
        state, outputs = mx.zeros(()), []
        for piece in split(x):
            output, state = recomputed(piece, state)
            outputs.append(output)
        return mx.concatenate(outputs).sum() + state

    before = mx.get_active_memory()
    mx.reset_peak_memory()
    gradient = mx.grad(total)(x)
    mx.eval(gradient)
    return (mx.get_peak_memory() - before) / (4 * SIZE), gradient


def in_one(x):
    return mx.split(x, len(x))


def in_two(x):
    return [piece for several in mx.split(x, len(x) // 8) for piece in mx.split(several, 8)]


few, _ = arrays_held(8, in_one)
one, gradient = arrays_held(64, in_one)
two, same = arrays_held(64, in_two)
print(f"peak of the gradient, in arrays of one part: 8 parts {few:.0f}; 64 parts by one mx.split {one:.0f}, in two stages {two:.0f}")
print("gradients equal:", mx.allclose(gradient, same).item())
assert mx.allclose(gradient, same) and one > 3 * two, "mlx has changed"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
