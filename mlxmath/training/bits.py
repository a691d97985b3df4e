"""`--quantize auto`: the bits of each layer, by what packing it costs on problems like the user's own.

The model is loaded as it is; what each form of each layer would change is measured (`mlxmath.models.sensitivity`), and
the forms are taken that change least within the bytes asked for (`mlxmath.weights.allocation`). The choice is the same
on every call with the same model, problems and device.

Shapes: B rows, L positions.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxmath.config.schema import RunConfig
from mlxmath.data.batch import Rows
from mlxmath.errors import InputError
from mlxmath.models.load import load_model, num_embeddings, refuse_untrainable
from mlxmath.models.sensitivity import sensitivities
from mlxmath.runtime.console import Progress, say, size
from mlxmath.runtime.device import DeviceInfo
from mlxmath.weights.allocation import allocate
from mlxmath.weights.configuration import read_config
from mlxmath.weights.convert import Chooser
from mlxmath.weights.manifest import read_manifest
from mlxmath.weights.packing import CANDIDATES, Chosen, Packing
from mlxmath.weights.quantize import packable

_MOST_PROBLEMS, _MOST_TOKENS = 128, 8_192
"""Rows that are measured on, and their tokens."""
_TOKENS_AT_ONCE, _LOGITS_BYTES = 1024, 256 << 20
"""Of a micro-batch, and of one array of its logits."""


def chooser(config: RunConfig, device: DeviceInfo, load: Callable[[RunConfig, Path], Any]) -> Chooser:
    """Chooses a form for each layer, measured on rows that a run would train on; held-out problems are not looked at.

    Args:
        config: which rows.
        device: where it is measured; the backend is open.
        load: gives data whose `train` holds rows.
    """

    def choose(folder: Path, bits: float) -> Chosen:
        rows = getattr(load(config, folder), "train", None)
        if rows is None:
            raise InputError(
                f"--quantize {config.model.quantize} measures on problems with solutions, of which this run has none; "
                f"make the model first, with `mlxmath convert --quantize {config.model.quantize} --dataset ...`."
            )
        refuse_untrainable(
            read_config(folder), "--quantize auto measures with the gradients of training;",
            "Give the same bits to all: --quantize 4.",
        )  # fmt: skip
        manifest = read_manifest(folder)
        _check_room(manifest.num_parameters, device)
        model = load_model(folder, device.compute_dtype).model
        ids = drawn(rows, config.data.mixture_seed)
        what = f"{len(ids):,} problems, {int(rows.lengths[ids].sum()):,} tokens of {_names(config)}"
        say(f"measuring what each layer's bits change, on {what}")
        return Chosen(choose_forms(model, rows, ids, bits, manifest.dtype), what)

    return choose


def choose_forms(model: nn.Module, rows: Rows, ids: Sequence[int], bits: float, dtype: str) -> dict[str, Packing]:
    """A form for each layer that MLX can pack, by its path, so that the weights take `bits` each at most.

    Args:
        model: not quantized.
        rows: the problems.
        ids: which of them are measured on.
        bits: a weight, in stored bytes, scales and biases included.
        dtype: in which the weights are stored.

    Raises:
        InputError: no layer can be packed, or the smallest forms take more.
    """
    forms, fixed = _open_and_fixed(model)
    if not forms:
        raise InputError("--quantize auto: the model has no layer whose form can be chosen.")
    layers = dict(packable(model))
    with Progress("measuring", int(sum(rows.lengths[i] for i in ids)), unit="token") as progress:
        batches = _watched(_batches(rows, ids, _at_once(model)), progress)
        costs = sensitivities(model, batches, forms, getattr(mx, dtype))
    sizes = {path: [form.num_bytes(dtype, layers[path].weight.shape) for form in own] for path, own in forms.items()}
    taken = sum(form.num_bytes(dtype, layers[path].weight.shape) for path, form in fixed.items())
    num_weights = sum(layers[path].weight.size for path in (*forms, *fixed))
    numbers = allocate(sizes, costs, int(bits * num_weights / 8) - taken)
    chosen = {path: forms[path][number] for path, number in numbers.items()}
    found = sum(sizes[path][number] for path, number in numbers.items()) + taken
    counts = Counter(f"{form.bits}/{form.group_size}" for form in chosen.values())
    say(
        f"  {8 * found / num_weights:.3f} bits a weight; bits/group size of layers: "
        f"{', '.join(f'{name} of {count}' for name, count in sorted(counts.items()))}; expected divergence "
        f"{sum(costs[path][number] for path, number in numbers.items()):.5f} nats a token"
    )
    return chosen | fixed


def _open_and_fixed(model: nn.Module) -> tuple[dict[str, list[Packing]], dict[str, Packing]]:
    """Layers with the forms that they can have, and those whose form the architecture decides; others stay."""
    predicate = getattr(model, "quant_predicate", None)
    forms, fixed = {}, {}
    for path, layer in packable(model):
        own = [form for form in CANDIDATES if layer.weight.shape[-1] % form.group_size == 0]
        answer = True if predicate is None else predicate(path, layer)
        if isinstance(answer, dict):
            packing = Packing.of(answer)
            if layer.weight.shape[-1] % packing.group_size == 0:
                fixed[path] = packing
        elif answer and own:
            forms[path] = own
    return forms, fixed


def drawn(rows: Rows, seed: int) -> list[int]:
    """The rows that are measured on, drawn at random; at least one."""
    order = np.random.default_rng(seed).permutation(len(rows))[:_MOST_PROBLEMS]
    fits = np.cumsum(rows.lengths[order]) <= _MOST_TOKENS
    return [int(i) for i in order[: max(1, int(fits.sum()))]]


def _at_once(model: nn.Module) -> int:
    vocabulary = num_embeddings(model) or 1
    return max(1, min(_TOKENS_AT_ONCE, _LOGITS_BYTES // (4 * vocabulary)))


def _batches(rows: Rows, ids: Sequence[int], most: int) -> Iterator[tuple[mx.array, mx.array]]:
    """Tokens and loss masks (B, L), rows of like length together, up to so many padded tokens or one row."""
    waiting: list[int] = []
    for number in sorted(ids, key=lambda i: (int(rows.lengths[i]), i)):
        if waiting and (len(waiting) + 1) * int(rows.lengths[number]) > most:
            yield _padded(rows, waiting)
            waiting = []
        waiting.append(number)
    yield _padded(rows, waiting)


def _padded(rows: Rows, ids: Sequence[int]) -> tuple[mx.array, mx.array]:
    length = max(int(rows.lengths[i]) for i in ids)
    tokens_BL, mask_BL = np.zeros((len(ids), length), np.int32), np.zeros((len(ids), length), np.bool_)
    for row, i in enumerate(ids):
        tokens, mask = rows.row(i)
        tokens_BL[row, : len(tokens)], mask_BL[row, : len(mask)] = tokens, mask
    return mx.array(tokens_BL), mx.array(mask_BL)


def _watched(batches: Iterator[tuple[mx.array, mx.array]], progress: Progress) -> Iterator[tuple[mx.array, mx.array]]:
    for tokens_BL, mask_BL in batches:
        yield tokens_BL, mask_BL
        progress.update(tokens_BL.size)


def _check_room(num_parameters: int, device: DeviceInfo) -> None:
    """
    Raises:
        InputError: the model as it is would not fit into the memory.
    """
    needed = num_parameters * (4 if device.compute_dtype == "float32" else 2)
    if math.ceil(1.25 * needed) > device.memory_bytes:
        raise InputError(
            f"--quantize auto: the model is measured as it is, which takes more than {size(needed)}; this device has "
            f"{size(device.memory_bytes)}. Convert it on a larger machine, or give the same bits to all: --quantize 4."
        )


def _names(config: RunConfig) -> str:
    return ", ".join(source.dataset for source in config.data.mixture)
