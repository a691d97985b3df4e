"""How fast training will be: what this device's matrix products reach, and how many of them a token takes."""

import time

import mlx.core as mx

from mlxmath.backends.base import DeviceInfo
from mlxmath.config.schema import RunConfig
from mlxmath.models.memory import ModelShape

SHARE = {"cpu": 0.6, "metal": 0.4, "cuda": 0.4}
"""Of the matrix products' rate, what a training step reaches (measured on a CPU; taken to be so on the others)."""
_ROWS = 512
_MEASURE_S = 0.3


def flops_per_token(shape: ModelShape, config: RunConfig) -> float:
    """Of training: 2 a weight forward, 2 for the gradient of its input, and where they apply 2 for its own gradient
    (full fine-tuning) and 2 for computing it again (checkpointing). The head counts as if every token were a target."""
    training = config.training
    layers = shape.layers if config.lora.num_layers in (-1, 0) else min(shape.layers, config.lora.num_layers)
    passes = 2 * shape.layers + 2 * layers * (2 if training.full else 1)
    if training.grad_checkpoint:
        passes += 2 * -(-layers // training.grad_checkpoint)
    return passes * shape.block_parameters + 4 * shape.vocab * shape.hidden


def matmul_flops_per_s(shape: ModelShape, device: DeviceInfo) -> float:
    """FLOP/s of products of the feed-forward layers' sizes, measured for a moment."""
    dtype = getattr(mx, device.compute_dtype)
    x = mx.random.normal((_ROWS, shape.hidden), key=mx.random.key(0)).astype(dtype)
    weight = mx.random.normal((shape.hidden, shape.feed_forward), key=mx.random.key(1)).astype(dtype)
    mx.eval(x @ weight)
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < _MEASURE_S:
        mx.eval(x @ weight)
        count += 1
    return 2 * _ROWS * shape.hidden * shape.feed_forward * count / spent


def tokens_per_s(shape: ModelShape, config: RunConfig, device: DeviceInfo) -> float:
    """An estimate, from a measurement of a fraction of a second."""
    return SHARE[device.backend] * matmul_flops_per_s(shape, device) / flops_per_token(shape, config)
