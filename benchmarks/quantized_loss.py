"""Loss and divergence on held-out problems with other weights in a model's layers; what `bench_quantize.py` compares.

What is measured is the loss, not the speed: weights are unpacked once, and each core takes batches of its own.
(MLX gives a BLAS attention's products one by one; shared out among its threads, each waits for the slowest one.)

Shapes: B rows, L positions, N targets, V vocabulary, P problems.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from common import save_json
from numpy.typing import NDArray

from mlxmath.data.batch import Rows
from mlxmath.models.sensitivity import error_of
from mlxmath.models.threads import thread_for_each_core
from mlxmath.runtime.blas import limit_threads
from mlxmath.training import bits as ours
from mlxmath.weights.packing import Packing
from mlxmath.weights.quantize import packable

Sums = list[list[float]]
"""Of each held-out problem: loss, divergence and targets."""


class Kept:
    """Figures that are computed once, and found in a file by a benchmark that is started again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    @property
    def names(self) -> set[str]:
        """Of what is kept."""
        return set(self._found)

    def __call__(self, name: str, compute: Callable[[], Any]) -> Any:
        """What is kept under a name, or is computed now."""
        if name not in self._found:
            self._found[name] = compute()
            save_json(self._path, self._found)
        return self._found[name]


@contextmanager
def having(layers: Mapping[str, Any], weights: Mapping[str, mx.array]) -> Iterator[None]:
    """Meanwhile these layers have other weights."""
    before = {path: layers[path].weight for path in weights}
    for path, weight in weights.items():
        layers[path].weight = weight
    try:
        yield
    finally:
        for path, weight in before.items():
            layers[path].weight = weight


def of_forms(layers: Mapping[str, Any], forms: Mapping[str, Packing], dtype: str) -> dict[str, mx.array]:
    """What the layers' weights become in their forms."""
    found = {}
    for path, form in forms.items():
        found[path] = layers[path].weight + error_of(layers[path].weight, form, getattr(mx, dtype))
        mx.eval(found[path])
    return found


def of_folder(layers: Mapping[str, Any], folder: Path) -> dict[str, mx.array]:
    """What the packed weights of a folder stand for."""
    arrays = mx.load(str(folder / "model.safetensors"))
    settings = json.loads((folder / "config.json").read_text())["quantization"]
    found = {}
    for path in layers:
        form = Packing.of(settings.get(path) or settings)
        scales, biases = (arrays[f"{path}.{name}"].astype(mx.float32) for name in ("scales", "biases"))
        found[path] = mx.dequantize(arrays[f"{path}.weight"], scales, biases, form.group_size, form.bits)
        mx.eval(found[path])
    return found


def target_log_p(model: nn.Module, tokens_BL: mx.array, mask_BL: mx.array) -> NDArray[np.float32]:
    """(N, V) at the N targets, in NumPy, whose sums lose nothing over a large vocabulary."""
    logits_BLV = model(tokens_BL[:, :-1]).astype(mx.float32)
    logits_NV = np.asarray(logits_BLV)[np.asarray(mask_BL[:, 1:])]
    logits_NV -= logits_NV.max(axis=-1, keepdims=True)
    logits_NV -= np.log(np.exp(logits_NV).sum(axis=-1, keepdims=True))
    return logits_NV


def divergences(before_NV: NDArray[np.float32], after_NV: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N,): KL of each target's distribution."""
    found_N: NDArray[np.float32] = (np.exp(before_NV) * (before_NV - after_NV)).sum(axis=-1)
    return found_N


def compared(
    model: nn.Module, folders: Mapping[str, Path], choices: Mapping[str, Mapping[str, Packing]], rows: Rows,
    ids: list[int], dtype: str, kept: Kept,
) -> dict[str, Sums]:  # fmt: skip
    """What the model says of held-out problems as it is, with the folders' weights, and with forms by layer."""
    layers = dict(packable(model))
    batches = list(ours._batches(rows, ids, 1024))

    def mapped(function: Callable[..., Any], *given: Any) -> list[Any]:
        with limit_threads(1):
            return list(thread_for_each_core().map(function, *given))

    def of_batch(batch: tuple[mx.array, mx.array], before_NV: NDArray[Any]) -> Sums:
        return sums(batch, before_NV.astype(np.float32), target_log_p(model, *batch))

    def of_plain(batch: tuple[mx.array, mx.array]) -> tuple[Sums, NDArray[np.float16]]:
        plain_NV = target_log_p(model, *batch)
        return sums(batch, plain_NV, plain_NV), plain_NV.astype(np.float16)

    def of(weights: dict[str, mx.array]) -> Sums:
        with having(layers, weights):
            return [problem for found in mapped(of_batch, batches, before) for problem in found]

    before: Sequence[NDArray[np.float16]] = ()
    if {"plain", *folders, *choices} - kept.names:
        plain, before = zip(*mapped(of_plain, batches), strict=True)
        kept("plain", lambda: [problem for found in plain for problem in found])
    found = {"plain": kept("plain", list)}
    for name, folder in folders.items():
        found[name] = kept(name, lambda: of(of_folder(layers, folder)))  # noqa: B023
    for name, forms in choices.items():
        found[name] = kept(name, lambda: of(of_forms(layers, forms, dtype)))  # noqa: B023
    return found


def sums(batch: tuple[mx.array, mx.array], before_NV: NDArray[np.float32], after_NV: NDArray[np.float32]) -> Sums:
    """Of the problems of a batch."""
    tokens_BL, mask_BL = (np.asarray(each)[:, 1:] for each in batch)
    loss_N = -np.take_along_axis(after_NV, tokens_BL[mask_BL][:, None], axis=-1)[:, 0]
    apart_N = divergences(before_NV, after_NV)
    ends = np.cumsum(mask_BL.sum(axis=1))[:-1]
    parts = zip(np.split(loss_N, ends), np.split(apart_N, ends), strict=True)
    return [[float(loss.sum()), float(apart.sum()), len(loss)] for loss, apart in parts]


def a_target(found: Sums, kind: int) -> float:
    """Nats a target: of the loss (0) or of the divergence (1)."""
    sums = np.sum(found, axis=0)
    return float(sums[kind] / sums[2])


def against(found: Sums, uniform: Sums, kind: int) -> dict[str, float]:
    """The difference from the uniform form in nats a target, paired by problem; the interval is a bootstrap's."""
    apart_P, targets_P = np.array(found)[:, kind] - np.array(uniform)[:, kind], np.array(found)[:, 2]
    picks = np.random.default_rng(0).integers(len(found), size=(10_000, len(found)))
    low, high = np.quantile(apart_P[picks].sum(axis=1) / targets_P[picks].sum(axis=1), (0.025, 0.975))
    return {"value": float(apart_P.sum() / targets_P.sum()), "low": float(low), "high": float(high)}
