"""`--quantize auto:4.5` against the same number of bytes with 4 bits in groups of 64 for all layers.

For each model: three choices of calibration problems, each a conversion by the command; the loss on held-out problems
and the divergence (KL) from the model before packing, in nats a target token, and how far they lie from those of the
uniform form, with 95 % intervals (bootstrap over the held-out problems). Beside them the same allocation with the
usual diagonal of the Fisher matrix as the measure, and for single layers what both say against what is measured.

What is measured is the loss, not the speed: weights are unpacked once, and each core takes batches of its own.
(MLX gives a BLAS attention's products one by one; shared out among its threads, each waits for the slowest one.)

The demo's base has learned problems of one and two steps only; it is measured on these. (Of the others it is wrong and
sure, and any noise makes the loss better.)

    python benchmarks/bench_quantize.py                                # the demo's model
    python benchmarks/bench_quantize.py --model FOLDER --name smollm2  # another one, 16 bits, on GSM8K
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlxmath.runtime.blas import limit_threads, preload

preload()  # before anything loads MLX

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from common import GSM8K, REPOSITORY, command_line, machine, save_json, show_table
from mlx.utils import tree_flatten
from numpy.typing import NDArray

from mlxmath.api import convert
from mlxmath.config.schema import DataConfig, RuntimeConfig
from mlxmath.data.batch import Rows
from mlxmath.data.prepare import prepare_rows
from mlxmath.models.load import load_model
from mlxmath.models.sensitivity import _drawn, error_of, sensitivities
from mlxmath.models.threads import thread_for_each_core
from mlxmath.runtime.console import shown
from mlxmath.runtime.device import opened_backend
from mlxmath.training import bits as ours
from mlxmath.weights.allocation import allocate
from mlxmath.weights.manifest import read_manifest
from mlxmath.weights.packing import CANDIDATES, Packing
from mlxmath.weights.quantize import packable

DEMO = REPOSITORY / "mlxmath" / "demo" / "problems"
SEEDS = (0, 1, 2)
UNIFORM = Packing(4, 64)
SINGLE = Packing(3, 64)
"""The form that single layers are given."""
Costs = dict[str, list[float]]
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


def main() -> None:
    """Measure one model and add it to the JSON."""
    parser = command_line(__doc__, "quantize.json", "work")
    parser.add_argument("--model", default="demo", help="folder of a model in 16 bits (default: the demo's)")
    parser.add_argument("--name", default="demo", help="of the model in the JSON (default: demo)")
    parser.add_argument("--note", default="", help="how its weights came about, for the JSON")
    parser.add_argument("--held-out", type=int, default=400, help="problems to measure on (default: 400)")
    parser.add_argument(
        "--diagonal", type=int, default=48, help="problems for the diagonal (default: 48; 0: leave it out)"
    )
    parser.add_argument("--singles", type=int, default=32, help="layers that are packed alone (default: 32)")
    args = parser.parse_args()
    work = args.work / f"quantize-{args.name}"
    work.mkdir(parents=True, exist_ok=True)
    calibration, held_out = problems(args.model, work)
    with shown(), opened_backend(RuntimeConfig(backend="cpu"), seed=0):
        found = measure(args, work, calibration, held_out)
    results = json.loads(args.out.read_text()) if args.out.exists() else {"models": {}}
    results["models"][args.name] = found
    save_json(args.out, {"machine": machine(("mlx", "mlx-lm")), "models": results["models"]})
    show(args.name, found)


def problems(model: str, work: Path) -> tuple[Path, Path]:
    """Files of the problems to calibrate and to measure on, none in both."""
    if model != "demo":
        return GSM8K, GSM8K.with_name("test.jsonl")
    known = [line for line in lines(DEMO / "train.jsonl") if json.loads(line)["kind"] in ("one step", "two steps")]
    fresh = [
        line
        for name in ("validation", "test")
        for line in lines(DEMO / f"{name}.jsonl")
        if json.loads(line)["kind"] in ("one step", "two steps")
    ]
    order = np.random.default_rng(0).permutation(len(known))
    half = len(known) // 2
    paths = work / "calibration.jsonl", work / "held_out.jsonl"
    paths[0].write_text("\n".join(known[i] for i in order[:half]) + "\n")
    paths[1].write_text("\n".join([*(known[i] for i in order[half:]), *fresh]) + "\n")
    return paths


def lines(path: Path) -> list[str]:
    """Of a file."""
    return path.read_text(encoding="utf-8").splitlines()


def measure(args: Any, work: Path, calibration: Path, held_out: Path) -> dict[str, Any]:
    """All figures of a model."""
    plain = made(args.model, work / "plain")
    dtype = read_manifest(plain).dtype
    rows, measured_on = (prepared(path, plain, work) for path in (calibration, held_out))
    model = load_model(plain, "float32").model
    shapes = {path: layer.weight.shape for path, layer in packable(model)}
    ids = list(range(min(args.held_out, len(measured_on))))
    folders = {"uniform": made(args.model, work / "uniform", quantize=4)}
    kept, choices, singles = Kept(work / "kept.json"), {}, {}
    seconds = {}
    for seed in SEEDS:
        name, folder = f"auto {seed}", work / f"auto-{seed}"
        folders[name] = folder

        def choose() -> float:
            started = time.perf_counter()
            made(
                args.model, folder, data=calibration, quantize="auto:4.5", mixture_seed=seed,  # noqa: B023
                cache_dir=str(work / "cache"), decontaminate="none", backend="cpu",
            )  # fmt: skip
            return round(time.perf_counter() - started, 1)

        seconds[name] = kept(f"{name}, seconds", choose)
    compared(model, folders, {}, measured_on, ids, dtype, kept)
    for seed in SEEDS if args.diagonal else ():
        chosen = ours.drawn(rows, seed)
        few = chosen[: args.diagonal]
        diagonal = kept(f"diagonal {seed}, costs", lambda: diagonal_costs(model, rows, few, dtype))  # noqa: B023
        choices[f"diagonal {seed}"] = by_costs(model, diagonal, dtype)
        if seed == 0 and args.singles:
            singles = kept("singles", lambda: of_singles(model, rows, chosen, diagonal, dtype, args.singles))  # noqa: B023
    sums = compared(model, folders, choices, measured_on, ids, dtype, kept)
    others = [name for name in sums if name not in ("plain", "uniform")]
    stored = {name: stored_bytes(folder) for name, folder in folders.items()}
    stored |= {
        name: sum(form.num_bytes(dtype, shapes[path]) for path, form in own.items()) for name, own in choices.items()
    }
    return {
        "note": args.note, "dtype": dtype, "weights": sum(int(np.prod(shape)) for shape in shapes.values()),
        "held_out": str(held_out.name), "held_out_problems": len(ids),
        "held_out_targets": int(np.sum(sums["plain"], axis=0)[2]),
        "loss": {name: a_target(found, 0) for name, found in sums.items()},
        "divergence": {name: a_target(found, 1) for name, found in sums.items()},
        "loss_against_uniform": {name: against(sums[name], sums["uniform"], 0) for name in others},
        "divergence_against_uniform": {name: against(sums[name], sums["uniform"], 1) for name in others},
        "bytes": stored, "auto_seconds": seconds,
        "calibration": {f"auto {seed}": read_manifest(folders[f"auto {seed}"]).calibration for seed in SEEDS},
        "forms": {name: counted(folder) for name, folder in folders.items()}, "single_layers": singles,
    }  # fmt: skip


def made(model: str, folder: Path, data: Path | None = None, **settings: Any) -> Path:
    """The converted model."""
    return convert(model, data, mlx_path=str(folder), verbose=True, **settings)


def prepared(path: Path, plain: Path, work: Path) -> Rows:
    """Tokens and loss masks of a file."""
    return prepare_rows(DataConfig(dataset=str(path), cache_dir=str(work / "cache"), decontaminate=()), plain)


def stored_bytes(folder: Path) -> int:
    """Of the packed weights with their scales and biases."""
    arrays = mx.load(str(folder / "model.safetensors"))
    packed = {name.removesuffix(".scales") for name in arrays if name.endswith(".scales")}
    return sum(array.nbytes for name, array in arrays.items() if name.rpartition(".")[0] in packed)


def counted(folder: Path) -> dict[str, int]:
    """How many layers have each form, as bits/group size."""
    settings = json.loads((folder / "config.json").read_text())["quantization"]
    found: dict[str, int] = {}
    for value in settings.values():
        if isinstance(value, dict):
            name = f"{value['bits']}/{value['group_size']}"
            found[name] = found.get(name, 0) + 1
    return found


def diagonal_costs(model: nn.Module, rows: Rows, ids: list[int], dtype: str) -> Costs:
    """½ Σ_i E[(∂_i)²] e_i², with the gradients of one row each (as sensitivities, the drawn logits' gradients)."""
    layers = dict(packable(model))
    model.freeze()
    for layer in layers.values():
        layer.unfreeze(keys=["weight"], recurse=False)
    squares = {path: mx.zeros(layer.weight.shape) for path, layer in layers.items()}
    gradient, num_targets = nn.value_and_grad(model, _drawn), 0
    for number, i in enumerate(ids):
        tokens_BL, mask_BL = ours._padded(rows, [i])
        found = dict(tree_flatten(gradient(model, tokens_BL, mask_BL, mx.random.key(number))[1]))
        squares = {path: square + mx.square(found[f"{path}.weight"]) for path, square in squares.items()}
        mx.eval(squares)
        num_targets += int(mask_BL[:, 1:].sum().item())
    model.freeze()
    stored = getattr(mx, dtype)
    return {
        path: [
            (squares[path] * mx.square(error_of(layer.weight, form, stored))).sum().item() / 2 / num_targets
            for form in forms_of(layer)
        ]
        for path, layer in layers.items()
    }


def forms_of(layer: Any) -> list[Packing]:
    """That a layer can have."""
    return [form for form in CANDIDATES if layer.weight.shape[-1] % form.group_size == 0]


def by_costs(model: nn.Module, costs: Costs, dtype: str) -> dict[str, Packing]:
    """The forms that cost least in the bytes of the uniform one."""
    layers = dict(packable(model))
    sizes = {
        path: [form.num_bytes(dtype, layer.weight.shape) for form in forms_of(layer)] for path, layer in layers.items()
    }
    budget = sum(UNIFORM.num_bytes(dtype, layer.weight.shape) for layer in layers.values())
    numbers = allocate(sizes, costs, budget)
    return {path: forms_of(layers[path])[number] for path, number in numbers.items()}


def of_singles(model: nn.Module, rows: Rows, ids: list[int], diagonal: Costs, dtype: str, most: int) -> dict[str, Any]:
    """Of some layers packed alone: the divergence that each measure expects and the one that is measured."""
    layers = dict(packable(model))
    some = list(layers)[:: max(1, -(-len(layers) // most))]
    expected = sensitivities(
        model, ours._batches(rows, ids, 1024), {path: [SINGLE] for path in some}, getattr(mx, dtype)
    )
    few = ids[:12]
    reference = [log_p(model, tokens_BL) for tokens_BL, _ in ours._batches(rows, few, 1024)]
    mx.eval(reference)
    found = {}
    for path in some:
        with having(layers, of_forms(layers, {path: SINGLE}, dtype)):
            total = num_targets = 0.0
            for (tokens_BL, mask_BL), before in zip(ours._batches(rows, few, 1024), reference, strict=True):
                total += divergence(before, log_p(model, tokens_BL), mask_BL)
                num_targets += mask_BL[:, 1:].sum().item()
        of_diagonal = diagonal[path][forms_of(layers[path]).index(SINGLE)]
        found[path] = {"measured": total / num_targets, "fisher": expected[path][0], "diagonal": of_diagonal}
    kinds = ("measured", "fisher", "diagonal")
    logs = {kind: np.log([max(each[kind], 1e-12) for each in found.values()]) for kind in kinds}
    return {
        "layers": found,
        "correlation_of_logs": {
            kind: float(np.corrcoef(logs["measured"], logs[kind])[0, 1]) for kind in ("fisher", "diagonal")
        },
        "factor": {kind: float(np.exp(np.mean(logs[kind] - logs["measured"]))) for kind in ("fisher", "diagonal")},
    }


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


def log_p(model: nn.Module, tokens_BL: mx.array) -> mx.array:
    """(B, L - 1, V)."""
    return nn.log_softmax(model(tokens_BL[:, :-1]).astype(mx.float32), axis=-1)


def divergence(before_BLV: mx.array, after_BLV: mx.array, mask_BL: mx.array) -> float:
    """Σ KL over the targets."""
    of_each = (mx.exp(before_BLV) * (before_BLV - after_BLV)).sum(axis=-1)
    total: float = (of_each * mask_BL[:, 1:]).sum().item()
    return total


def target_log_p(model: nn.Module, tokens_BL: mx.array, mask_BL: mx.array) -> NDArray[np.float32]:
    """(N, V) at the N targets, in NumPy, whose sums lose nothing over a large vocabulary."""
    logits_BLV = model(tokens_BL[:, :-1]).astype(mx.float32)
    logits_NV = np.asarray(logits_BLV)[np.asarray(mask_BL[:, 1:])]
    logits_NV -= logits_NV.max(axis=-1, keepdims=True)
    logits_NV -= np.log(np.exp(logits_NV).sum(axis=-1, keepdims=True))
    return logits_NV


def compared(
    model: nn.Module, folders: Mapping[str, Path], choices: Mapping[str, Mapping[str, Packing]], rows: Rows,
    ids: list[int], dtype: str, kept: Kept,
) -> dict[str, Sums]:  # fmt: skip
    """What the model says of held-out problems as it is, with the folders' weights, and with forms by layer."""
    layers = dict(packable(model))
    batches = list(ours._batches(rows, ids, 1024))
    before: list[NDArray[np.float16]] = []

    def mapped(function: Callable[..., Any], *given: Any) -> list[Any]:
        with limit_threads(1):
            return list(thread_for_each_core().map(function, *given))

    def of_batch(batch: tuple[mx.array, mx.array], kept_NV: NDArray[np.float16]) -> Sums:
        tokens_BL, mask_BL = (np.asarray(each)[:, 1:] for each in batch)
        after_NV, before_NV = target_log_p(model, *batch), kept_NV.astype(np.float32)
        loss_N = -np.take_along_axis(after_NV, tokens_BL[mask_BL][:, None], axis=-1)[:, 0]
        apart_N = (np.exp(before_NV) * (before_NV - after_NV)).sum(axis=-1)
        ends = np.cumsum(mask_BL.sum(axis=1))[:-1]
        parts = zip(np.split(loss_N, ends), np.split(apart_N, ends), strict=True)
        return [[float(loss.sum()), float(apart.sum()), len(loss)] for loss, apart in parts]

    def sums() -> Sums:
        return [problem for found in mapped(of_batch, batches, before) for problem in found]

    if {"plain", *folders, *choices} - kept.names:  # while the weights are the model's own
        before = mapped(lambda batch: target_log_p(model, *batch).astype(np.float16), batches)

    def of(weights: dict[str, mx.array]) -> Sums:
        with having(layers, weights):
            return sums()

    found = {"plain": kept("plain", sums)}
    for name, folder in folders.items():
        found[name] = kept(name, lambda: of(of_folder(layers, folder)))  # noqa: B023
    for name, forms in choices.items():
        found[name] = kept(name, lambda: of(of_forms(layers, forms, dtype)))  # noqa: B023
    return found


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


def show(name: str, found: Mapping[str, Any]) -> None:
    """Print a table."""
    show_table(
        name, ("weights", "MB", "loss", "divergence"),
        [
            (each, f"{found['bytes'].get(each, 0) / 1e6:.3f}", f"{loss:.5f}", f"{found['divergence'].get(each, 0):.5f}")
            for each, loss in found["loss"].items()
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
