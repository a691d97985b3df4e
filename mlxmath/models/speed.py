"""How fast training will be: what this device's matrix products reach, and how many of them a token takes."""

import os
import tempfile
import time
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlxmath.config.schema import RunConfig
from mlxmath.models.memory import ModelShape
from mlxmath.runtime.blas import num_usable_cores
from mlxmath.runtime.console import duration, size
from mlxmath.runtime.device import DeviceInfo
from mlxmath.runtime.files import real
from mlxmath.weights.tensors import uncached

SHARE = {"cpu": 0.6, "metal": 0.4, "cuda": 0.4}
"""Of the matrix products' rate, what a training step reaches (measured on a CPU; taken to be so on the others)."""
_ROWS = 512
_WIDEST = 8192
"""Wider products are no faster, and a matrix of the largest models' would take gigabytes."""
_MEASURE_S = 0.3
_DISK_BYTES = 64 << 20


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
    hidden, inner = min(shape.hidden, _WIDEST), min(shape.feed_forward, _WIDEST)
    x = mx.random.normal((_ROWS, hidden), key=mx.random.key(0)).astype(dtype)
    weight = mx.random.normal((hidden, inner), key=mx.random.key(1)).astype(dtype)
    mx.eval(x @ weight)
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < _MEASURE_S:
        mx.eval(x @ weight)
        count += 1
    return 2 * _ROWS * hidden * inner * count / spent


def tokens_per_s(shape: ModelShape, config: RunConfig, device: DeviceInfo) -> float:
    """An estimate, from a measurement of a fraction of a second."""
    return SHARE[device.backend] * matmul_flops_per_s(shape, device) / flops_per_token(shape, config)


def time_lines(
    shape: ModelShape, config: RunConfig, device: DeviceInfo, prepared: tuple[int, int] | None
) -> list[str]:  # fmt: skip
    """How fast a run will be, and how long it takes, by a short measurement of this device.

    Args:
        shape: the model's sizes.
        config: the run's.
        device: where it runs.
        prepared: its rows and their tokens, if they are known. Else every row may be as long as it is allowed to be.
    """
    busy = _busy()
    rate = tokens_per_s(shape, config, device)
    training, longest, hours = config.training, config.data.max_seq_len, config.training.max_training_time_hours
    rows_a_step = training.batch_size * training.grad_accumulation_steps
    num_rows, per_row, about = config.data.num_examples, float(longest), "at most"
    if prepared:
        num_rows, per_row, about = prepared[0], prepared[1] / prepared[0], "about"
    limits = [num_rows * training.num_epochs] if num_rows else []
    limits += [training.max_steps * rows_a_step] if training.max_steps else []
    lines = [f"about {rate:,.0f} tokens/s on this {device.backend} (if the model is in memory)"]
    if busy:
        lines.append(f"  measured while other programs were running ({busy}); it is faster when nothing else runs")
    if limits:
        seconds = min(limits) * per_row / rate
        lines.append(
            f"{min(limits):,} rows of {about} {per_row:,.0f} tokens take {about} {duration(seconds)}"
            + (f"; --max-training-time-hours {hours:g} ends the run before" if seconds > hours * 3600 else "")
        )
    else:
        lines.append(
            f"an optimizer step of {rows_a_step} rows takes at most {duration(rows_a_step * longest / rate)}; in "
            f"{hours:g} hours (--max-training-time-hours) {rate * hours * 3600 / 1e6:,.1f} million tokens are trained"
        )
    if not prepared:
        lines.append("  an upper bound: with these settings `mlxmath prepare` would count the tokens")
    return lines


def disk_line(num_bytes: int, folder: Path, compute_s: float) -> str:
    """How long a step takes that reads the base from the disk, by a short measurement of the disk.

    Args:
        num_bytes: of the base.
        folder: on the disk.
        compute_s: that a step takes without reading, which goes on meanwhile.
    """
    rate = disk_bytes_per_s(folder)
    return (
        f"a step reads the base twice, {size(2 * num_bytes)} at {rate / 1e9:.2g} GB/s, in "
        f"{duration(2 * num_bytes / rate)}, and computes for {duration(compute_s)} meanwhile"
    )


def answering_line(num_bytes: int, folder: Path) -> str:
    """What reading takes of each token of answers that are drawn together; `num_bytes` of the base, in `folder`."""
    rate = disk_bytes_per_s(folder)
    return (
        f"the blocks of {folder} stay on the disk (--offload): a token of all answers that are drawn together reads "
        f"{size(num_bytes)}, which takes {duration(num_bytes / rate)} at {rate / 1e9:.2g} GB/s"
    )


def disk_bytes_per_s(folder: Path) -> float:
    """Measured for a moment past the system's cache: on a file of weights in the folder, or on one made beside it."""
    files = sorted(folder.glob("*.safetensors"), key=lambda path: -path.stat().st_size)
    if files and files[0].stat().st_size >= _DISK_BYTES:
        return _read_rate(files[0])
    place = next(parent for parent in (folder, *real(folder).parents) if parent.is_dir())
    with tempfile.NamedTemporaryFile(dir=place, prefix=".mlxmath-") as file:
        file.write(os.urandom(_DISK_BYTES))
        file.flush()
        os.fsync(file.fileno())
        with uncached(Path(file.name)):
            pass
        return _read_rate(Path(file.name))


def _read_rate(path: Path) -> float:
    part, count, start = np.empty(_DISK_BYTES >> 3, np.uint8), 0, time.perf_counter()
    with uncached(path) as file:
        while count < 4 * _DISK_BYTES and time.perf_counter() - start < _MEASURE_S and (read := file.readinto(part)):
            count += read
    return count / (time.perf_counter() - start)


def _busy() -> str | None:
    """How busy this machine is already, if it is; for people."""
    load, cores = os.getloadavg()[0], num_usable_cores()
    return f"a load of {load:.1f} on {cores} cores" if load > cores / 2 else None
