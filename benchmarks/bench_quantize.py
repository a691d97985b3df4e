"""`--quantize auto:4.5` against the same number of bytes with 4 bits in groups of 64 for all layers.

For each model: three choices of calibration problems, each a conversion by the command; the loss on held-out problems
and the divergence (KL) from the model before packing, in nats a target token, and how far they lie from those of the
uniform form, with 95 % intervals (bootstrap over the held-out problems). Beside them the same allocation with the
usual diagonal of the Fisher matrix as the measure, and for single layers what both say against what is measured.

The demo's base has learned problems of one and two steps only; it is measured on these. (Of the others it is wrong and
sure, and any noise makes the loss better.)

    python benchmarks/bench_quantize.py                                # the demo's model
    python benchmarks/bench_quantize.py --model FOLDER --name smollm2  # another one, 16 bits, on GSM8K
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxmath.runtime.blas import preload

preload()  # before anything loads MLX

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from common import GSM8K, REPOSITORY, command_line, machine, save_json, show_table
from mlx.utils import tree_flatten
from quantized_loss import Kept, a_target, against, compared, divergences, having, of_forms, target_log_p

from mlxmath.api import convert
from mlxmath.config.schema import DataConfig, RuntimeConfig
from mlxmath.data.batch import Rows
from mlxmath.data.prepare import prepare_rows
from mlxmath.models.load import load_model
from mlxmath.models.sensitivity import _drawn, error_of, sensitivities
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
        "calibration": {f"auto {seed}": chosen_on(folders[f"auto {seed}"], calibration) for seed in SEEDS},
        "forms": {name: counted(folder) for name, folder in folders.items()}, "single_layers": singles,
    }  # fmt: skip


def chosen_on(folder: Path, calibration: Path) -> str:
    """What a folder's forms were measured on; the file by its name alone."""
    return str(read_manifest(folder).calibration).replace(str(calibration), calibration.name)


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
    reference = [target_log_p(model, *batch) for batch in ours._batches(rows, few, 1024)]
    found = {}
    for path in some:
        with having(layers, of_forms(layers, {path: SINGLE}, dtype)):
            after = [target_log_p(model, *batch) for batch in ours._batches(rows, few, 1024)]
        measured = float(np.concatenate([divergences(*each) for each in zip(reference, after, strict=True)]).mean())
        of_diagonal = diagonal[path][forms_of(layers[path]).index(SINGLE)]
        found[path] = {"measured": measured, "fisher": expected[path][0], "diagonal": of_diagonal}
    kinds = ("measured", "fisher", "diagonal")
    logs = {kind: np.log([max(each[kind], 1e-12) for each in found.values()]) for kind in kinds}
    return {
        "layers": found,
        "correlation_of_logs": {
            kind: float(np.corrcoef(logs["measured"], logs[kind])[0, 1]) for kind in ("fisher", "diagonal")
        },
        "factor": {kind: float(np.exp(np.mean(logs[kind] - logs["measured"]))) for kind in ("fisher", "diagonal")},
    }


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
