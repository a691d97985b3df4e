"""Everything there is to know of a CUDA machine, within minutes, in one JSON.

    python benchmarks/gpu.py [--minutes 9] [--parts tests,parity,...] [--shapes 0.5b,1.5b,7b] [--out FILE] [--dry-run]
    python benchmarks/gpu.py --backend cpu --tiny        (the same on any machine, on a tiny shape)

Parts: the `tests` of the backend and of what runs on it; `parity` of loss and gradients with the CPU on all objectives;
and for each shape (random weights made here, removed afterwards; in 16 bits and in 4): the rate of its matrix products
(`matmul`), LoRA training of mlxmath, mlx_lm.lora and torch + peft (`train`), where a step's time goes (`profile`), new
tokens a second in evaluation and rollouts, and by mlx_lm (`generate`).

Each part has a limit of its own, what time is left is shared among the shapes that are left, and the JSON is written
anew after every process, so that being cut off costs one process. A further call on the same machine adds to the JSON
what it measures; `--fresh` begins a new one. A package that is missing here means a contestant that is skipped, with
the reason.

On a GPU such as an H200, in two calls of ten minutes:

    python benchmarks/gpu.py --minutes 9.5 --parts tests,parity,matmul,train,profile --shapes 0.5b,1.5b
    python benchmarks/gpu.py --minutes 9.5 --parts matmul,train,profile,generate --shapes 7b,1.5b --bits 16,4
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import gpu_parts
from benchmarks.bench_train import PACKAGES
from benchmarks.common import command_line, gigabytes, machine, save_json
from benchmarks.contestants import SHOWN
from benchmarks.gpu_parts import Place
from benchmarks.gpu_plan import (
    BITS,
    FULL,
    GENERATION,
    PARTS,
    PER_SHAPE,
    TINY,
    Scale,
    shapes_of,
    training_entries,
)
from benchmarks.runs import TEMPLATE
from benchmarks.shapes import SHAPES, Shape
from benchmarks.training import Result
from benchmarks.workload import Workload, make_workload


def main() -> None:
    """Run the parts and write the JSON."""
    options = parse()
    scale = TINY if options.tiny else FULL
    shapes = shapes_of(options.shapes or scale.shapes, is_tiny=options.tiny)
    dtype = "float32" if options.backend == "cpu" else "bfloat16"
    out = options.out
    if options.dry_run:
        for line in described(options, scale, shapes, dtype):
            print(line)
        print(f"-> {out}")
        return
    if reason := gpu_parts.unavailable(options.backend):
        sys.exit(f"--backend {options.backend}: {reason}")
    started = time.monotonic()
    ends = started + 60 * options.minutes
    record = opened(out, options)
    call = {"parts": options.parts, "shapes": list(shapes), "bits": options.bits, "minutes": options.minutes}
    record["calls"].append(call)

    def save() -> None:
        call["seconds"] = round(time.monotonic() - started, 1)
        save_json(out, record)

    save()
    place = Place(options.backend, scale, tuple(options.contestants), lambda: ends - time.monotonic())
    if "tests" in options.parts:
        record["tests"] = {}
        for names, limit_s in scale.tests:
            record["tests"][", ".join(names)] = found = gpu_parts.run_tests(names, min(limit_s, place.left_s()))
            counts = {name: value for name, value in found.items() if isinstance(value, int | float)}
            print(f"tests of {', '.join(names)}: {counts or found}", flush=True)
            save()
    if "parity" in options.parts:
        record["parity"] = found = gpu_parts.parity(place)
        shown = {name: found[name] for name in ("worst_float32", "disagreeing", "skipped", "failed") if name in found}
        print(f"parity with the CPU: {shown}", flush=True)
        save()
    work = options.work or Path(tempfile.mkdtemp(prefix="mlxmath-gpu-"))
    try:
        if set(options.parts) & set(PER_SHAPE):
            for i, (name, shape) in enumerate(shapes.items()):
                until = time.monotonic() + place.left_s() / (len(shapes) - i)
                here = replace(place, left_s=lambda until=until: until - time.monotonic())
                run_shape(shape, here, options, work, dtype, record["shapes"].setdefault(name, {}), save)
                print(f"{name}: {place.left_s():.0f} s left", flush=True)
    finally:
        if options.work is None:
            shutil.rmtree(work, ignore_errors=True)
    save()
    print(f"\n-> {out} ({call['seconds']:.0f} s)")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__, "gpu.json", "data")
    parser.add_argument("--minutes", type=float, help="time for everything (default: 9; with --tiny 5)")
    parser.add_argument("--backend", default="cuda", choices=("cuda", "cpu", "metal"))
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)} (default: all)")
    parser.add_argument("--shapes", default="", help="which, in this order (default: 0.5b,1.5b,7b; with --tiny 0.5b)")
    parser.add_argument("--bits", default="16,4", help="of the weights (default: 16,4)")
    parser.add_argument("--contestants", default="ours,mlx_lm,torch")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to see that everything works")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    parser.add_argument("--fresh", action="store_true", help="do not add to what the JSON holds")
    parser.add_argument("--work", type=Path, help="folder for the models (default: a temporary one)")
    options = parser.parse_args()
    for name, known in (("parts", PARTS), ("shapes", SHAPES), ("contestants", SHOWN), ("bits", map(str, BITS))):
        chosen, allowed = [part for part in getattr(options, name).split(",") if part], list(known)
        if unknown := set(chosen) - set(allowed):
            parser.error(f"--{name}: {', '.join(sorted(unknown))} is unknown; there are {', '.join(allowed)}")
        setattr(options, name, chosen)
    options.bits = [int(bits) for bits in options.bits]
    if options.tiny and options.out == parser.get_default("out"):
        options.out = options.out.with_name("gpu_tiny.json")
    options.minutes = options.minutes or (5.0 if options.tiny else 9.0)
    return options


def opened(out: Path, options: argparse.Namespace) -> Result:
    """The JSON to add to: what an earlier call on the same GPU left, or a new one."""
    here = {"backend": options.backend, "gpu": gpu_parts.gpu(), "tiny": options.tiny}
    new: Result = {
        "question": "tests, parity, training and generation on a GPU",
        **here,
        "machine": machine((*PACKAGES, "mlx-cuda-12", "mlx-cuda-13", "bitsandbytes", "datasets")),
        "calls": [],
        "shapes": {},
    }
    if options.fresh or not out.exists():
        return new
    found: Result = json.loads(out.read_text())
    if any(found.get(name) != value for name, value in here.items()) or "calls" not in found:
        return new
    return found | {"machine": new["machine"]}


def described(options: argparse.Namespace, scale: Scale, shapes: dict[str, Shape], dtype: str) -> list[str]:
    """What would be done, a line a step."""
    lines = [f"{options.minutes:g} minutes on {options.backend}, {dtype}: {', '.join(options.parts)}"]
    if "tests" in options.parts:
        lines += [f"  tests of {', '.join(names)}: at most {limit_s:.0f} s" for names, limit_s in scale.tests]
    if "parity" in options.parts:
        what = "sft, packed rows, 4-bit weights, grpo's and dpo's losses, a reward model's"
        lines.append(f"  parity with the CPU: {what}: at most 120 s")
    for name, shape in shapes.items():
        size = gigabytes(shape.num_parameters * (4 if dtype == "float32" else 2))
        rows, limit_s = dict(scale.rows)[name], dict(scale.run_s)[name]
        lines.append(f"  {shape.title}, {size} of random weights, at most {limit_s:.0f} s a process")
        if "matmul" in options.parts:
            lines.append("    matmul: its matrix products alone")
        for bits in options.bits:
            if "train" in options.parts:
                who = "; ".join(entry.name for entry in training_entries(options.contestants, scale, bits))
                lines.append(
                    f"    train on {bits}-bit weights, {rows} rows twice, {scale.effective_batch} a step: {who}"
                )
            if "profile" in options.parts:
                lines.append(f"    profile on {bits}-bit weights: the pieces of a step of {scale.profile} tokens")
            if "generate" in options.parts:
                who = "; ".join(GENERATION.values())
                lines.append(f"    generate on {bits}-bit weights, {scale.prompts} prompts: {who}")
    return lines


def run_shape(
    shape: Shape,
    place: Place,
    options: argparse.Namespace,
    work: Path,
    dtype: str,
    record: Result,
    save: Callable[[], None],
) -> None:
    """Make the model of a shape, measure everything on it, remove it."""
    scale, num_bytes = place.scale, shape.num_parameters * (4 if dtype == "float32" else 2)
    work.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(work).free < 2 * num_bytes:
        record["skipped"] = f"{gigabytes(2 * num_bytes)} are not free in {work}"
        save()
        return
    started = time.monotonic()
    num_rows, data = dict(scale.rows)[shape.name], options.data
    dense = make_workload(shape, work, data, dtype=dtype, num_rows=num_rows, template=TEMPLATE)
    record |= {"shape": shape.title, "dtype": dtype, "data": data.name, "made_s": round(time.monotonic() - started, 1)}
    print(f"\n{shape.title}: made in {record['made_s']} s", flush=True)
    try:
        if "matmul" in options.parts:
            record["matmul"] = gpu_parts.matmul(place, dense)
            rates = {
                name: f"{found.get('flops_per_s', 0) / 1e12:,.2f} TFLOP/s" for name, found in record["matmul"].items()
            }
            print(f"  matrix products: {rates}", flush=True)
            save()
        for bits in options.bits:
            workload = dense if bits == 16 else gpu_parts.quantized(place, dense, bits)
            part = record.setdefault(f"{bits}-bit", {})
            if isinstance(workload, str):
                part["skipped"] = workload
                print(f"  {bits}-bit weights: {workload}", flush=True)
                continue
            part.pop("skipped", None)
            measure(workload, bits, dense.model, place, options.parts, part, record.get("matmul", {}).get(dtype), save)
    finally:
        shutil.rmtree(dense.folder, ignore_errors=True)
        save()


def measure(
    workload: Workload,
    bits: int,
    dense: Path,
    place: Place,
    parts: list[str],
    record: Result,
    ceiling: Result | None,
    save: Callable[[], None],
) -> None:
    """The parts that are measured on weights of so many bits, saved as they come."""

    def keep(name: str) -> Callable[[Result], None]:
        def kept(found: Result) -> None:
            record[name] = found
            save()

        return kept

    print(f"on {bits}-bit weights ({gigabytes(workload.weights_bytes)})", flush=True)
    if "train" in parts:
        keep("train")(gpu_parts.train(place, workload, bits, dense, ceiling, keep("train")))
    if "profile" in parts:
        keep("profile")(gpu_parts.profile(place, workload))
    if "generate" in parts:
        keep("generate")(gpu_parts.generate(place, workload, keep("generate")))


if __name__ == "__main__":
    main()
