"""Where a training step's time goes, by timing its pieces one after the other with `mx.eval` between them.

A job holds `model`, `backend`, `rank`, `alpha`, `targets`, `rows` and `width` of a micro-batch, and `seconds` for each
piece. Pieces overlap less here than in a compiled step, so their sum is more than the step's own time.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.peers.worker import Job, Result, main


def run(job: Job) -> Result:
    """Milliseconds of each piece, the least of several."""
    import mlx.core as mx
    from mlx.utils import tree_map

    from mlxmath.config.schema import LoraConfig
    from mlxmath.config.training import TrainingConfig
    from mlxmath.models.kernels import kernels_for
    from mlxmath.models.kernels.portable import Kernels
    from mlxmath.models.linear_ce import FusedHead
    from mlxmath.models.lm_head import split
    from mlxmath.models.load import load_model
    from mlxmath.models.lora.inject import inject
    from mlxmath.models.tuning import tune, use
    from mlxmath.runtime.device import BACKENDS
    from mlxmath.training.accumulate import StepSums
    from mlxmath.training.gradients import choose_gradients
    from mlxmath.training.optimizers import apply_gradients, make_optimizer
    from mlxmath.training.sft import sft_loss

    backend = BACKENDS[job["backend"]]()
    device = backend.open(seed=0)
    loaded = load_model(Path(job["model"]), device.compute_dtype)
    model = loaded.model
    inject(model, LoraConfig(rank=job["rank"], alpha=job["alpha"], targets=tuple(job["targets"])))
    model.train()
    choices = tune(model, device, job["rows"] * job["width"])
    use(model, choices)
    kernels = kernels_for(device, choices=choices)
    batch = _batch(job["rows"], job["width"], loaded.config["vocab_size"])
    optimizer = make_optimizer(TrainingConfig(), model, 1.0)
    parts = split(model)
    assert not isinstance(parts, str), parts
    hidden_BLD = parts.hidden(batch.inputs_BL)
    hidden_ND = hidden_BLD.reshape(-1, hidden_BLD.shape[-1])[batch.positions_N]
    mx.eval(hidden_ND)
    count, vocabulary = min(hidden_ND.shape[0], 1024), parts.head.vocab_size
    logits = mx.random.normal((count, vocabulary)).astype(hidden_ND.dtype)
    mx.eval(logits)

    compiled = backend.compiles
    step = choose_gradients(model, sft_loss, kernels, compiled=compiled)
    plain = choose_gradients(model, sft_loss, kernels, compiled=False)
    _, gradients = step.loss_and_gradients(batch)
    gradients = tree_map(lambda g: g.astype(mx.float32), gradients)
    mx.eval(gradients)
    sums = StepSums(1.0, gradients, batch.num_targets, 0, ())

    def with_gradients(way: Any) -> None:
        mx.eval(way.loss_and_gradients(batch))

    def softmax(which: Any) -> None:
        mx.eval(which.softmax_gradient(logits, batch.targets_N[:count], batch.weights_N[:count], None))

    pieces: dict[str, Callable[[], Any]] = {
        "step, compiled" if compiled else "step": lambda: with_gradients(step),
        "step, not compiled": lambda: with_gradients(plain),
        "forward, blocks": lambda: mx.eval(parts.hidden(batch.inputs_BL)),
        "head and loss, with the hidden states' gradient": lambda: mx.eval(
            sft_loss(hidden_ND, batch, FusedHead(parts.head, kernels))
        ),
        f"softmax and gradient of {count} x {vocabulary} logits, device's kernel": lambda: softmax(kernels),
        f"softmax and gradient of {count} x {vocabulary} logits, MLX's operations": lambda: softmax(Kernels()),
        "optimizer": lambda: apply_gradients(model, optimizer, sums, 1e-6, 1.0),
    }
    pieces |= _inner(model, loaded.config, batch.inputs_BL.shape, hidden_BLD.dtype)
    found = {name: round(1e3 * _least(piece, job["seconds"]), 3) for name, piece in pieces.items()}
    first = next(iter(found.values()))
    found["backward, blocks (the step not compiled less forward and head)"] = round(
        found["step, not compiled"]
        - found["forward, blocks"]
        - found["head and loss, with the hidden states' gradient"],
        3,
    )
    tokens = batch.inputs_BL.size
    return {
        "rows": job["rows"], "width": job["width"], "targets": batch.num_targets, "how": step.how,
        "milliseconds": found, "padded_tokens_per_s": tokens / (first / 1e3),
        "layers": len(model.layers), "peak_device_bytes": mx.get_peak_memory(),
    }  # fmt: skip


def _batch(rows: int, width: int, vocabulary: int) -> Any:
    """Rows of full width, whose last two thirds are targets."""
    import mlx.core as mx
    import numpy as np

    from mlxmath.data.batch import Batch

    rng = np.random.default_rng(0)
    is_target = np.tile(np.arange(width) >= width // 3, rows)
    count = int(is_target.sum())
    return Batch(
        mx.array(rng.integers(0, vocabulary, (rows, width)).astype(np.int32)),
        mx.array(np.flatnonzero(is_target).astype(np.int32)),
        mx.array(rng.integers(0, vocabulary, count).astype(np.int32)),
        mx.ones(count), tuple(range(rows)), num_tokens=rows * width, num_targets=count,
    )  # fmt: skip


def _inner(model: Any, config: dict[str, Any], shape: tuple[int, ...], dtype: Any) -> dict[str, Callable[[], Any]]:
    """Single kinds of operation, of all blocks together: attention, the feed-forward products, what is element-wise."""
    import mlx.core as mx
    import mlx.nn as nn

    rows, width = shape
    heads, layers, hidden = config["num_attention_heads"], len(model.layers), config["hidden_size"]
    kv, feed = config["num_key_value_heads"], config["intermediate_size"]
    each = hidden // heads
    q, o = (mx.random.normal((rows, heads, width, each)).astype(dtype) for _ in range(2))
    k, v = (mx.random.normal((rows, kv, width, each)).astype(dtype) for _ in range(2))
    gate, up, wide = (mx.random.normal((rows, width, feed)).astype(dtype) for _ in range(3))
    x = mx.random.normal((rows, width, hidden)).astype(dtype)
    mx.eval(q, k, v, o, gate, up, wide, x)
    block = model.layers[0]

    def attention(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=each**-0.5, mask="causal")

    def times(function: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: mx.eval([function() for _ in range(layers)])

    return {
        f"attention forward x {layers}": times(lambda: attention(q, k, v)),
        f"attention forward and backward x {layers}": times(lambda: mx.vjp(attention, [q, k, v], [o])),
        f"feed-forward up product x {layers}": times(lambda: block.mlp.up_proj(x)),
        f"feed-forward up product backward x {layers}": times(
            lambda: mx.vjp(lambda y: block.mlp.up_proj(y), [x], [wide])[1]
        ),
        f"SwiGLU x {layers}": times(lambda: nn.silu(gate) * up),
        f"norm x {layers}": times(lambda: block.input_layernorm(x)),
        f"rotary x {layers}": times(lambda: block.self_attn.rope(q)),
    }


def _least(piece: Callable[[], Any], seconds: float) -> float:
    """The least of at least three, after one that compiles."""
    import mlx.core as mx

    piece()
    mx.synchronize()
    best, count, began = float("inf"), 0, time.perf_counter()
    while count < 3 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        piece()
        mx.synchronize()
        best = min(best, time.perf_counter() - start)
        count += 1
    return best


if __name__ == "__main__":
    main(run, ("mlx", "mlx-lm"))
