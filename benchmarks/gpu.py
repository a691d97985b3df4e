"""What matters of a CUDA machine or a Mac, in three parts of three minutes that run alone, in one JSON.

    python benchmarks/gpu.py --part 1|2|3 [--backend cuda|metal] [--out FILE] [--dry-run]
    python benchmarks/gpu.py --part 2 --backend cpu --tiny          (the same on any machine, on a tiny shape)

1. The backend's contract, parity of loss and gradients with the CPU on all objectives, LoRA training of 0.5B and then
   1.5B by mlxmath, mlx_lm.lora and torch + peft, in 16 bits. Four minutes with an installation of one minute.
2. GRPO, evaluation and rollouts; training and drawing on 4-bit weights.
3. Training 7B, and where a step's time goes.

Weights are random, made here and removed afterwards. Each process has a limit of its own, what time is left is shared
among the steps that are left, and the JSON is written anew after every process, so that being cut off costs one
process. A further call on the same machine adds to the JSON what it measures; `--fresh` begins a new one. A package
that is missing here means a contestant that is skipped, with the reason.
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
from benchmarks.gpu_plan import FULL, GENERATION, PARTS, TESTS, TINY, Scale, shape_of, training_entries
from benchmarks.runs import TEMPLATE
from benchmarks.training import Result
from benchmarks.workload import Workload, make_workload


def main() -> None:
    """Run a part and write the JSON."""
    options = parse()
    scale, part, out = TINY if options.tiny else FULL, PARTS[options.part], options.out
    dtype = "float32" if options.backend == "cpu" else "bfloat16"
    if options.dry_run:
        print("\n".join([*described(options, scale, dtype), f"-> {out}"]))
        return
    if reason := gpu_parts.unavailable(options.backend):
        sys.exit(f"--backend {options.backend}: {reason}")
    started = time.monotonic()
    ends = started + 60 * options.minutes
    record = opened(out, options)
    call: Result = {"part": options.part, "minutes": options.minutes}
    record["calls"].append(call)

    def save() -> None:
        call["seconds"] = round(time.monotonic() - started, 1)
        save_json(out, record)

    save()
    place = Place(options.backend, scale, tuple(options.contestants), lambda: ends - time.monotonic())
    if part.checks:
        record["tests"] = found = gpu_parts.run_tests(TESTS, min(scale.tests_s, place.left_s()))
        print(f"tests: { {name: value for name, value in found.items() if isinstance(value, int | float)} or found }")
        save()
        record["parity"] = found = gpu_parts.parity(place)
        shown = {name: found[name] for name in ("worst_float32", "disagreeing", "skipped", "failed") if name in found}
        print(f"parity with the CPU: {shown}", flush=True)
        save()
    work = options.work or Path(tempfile.mkdtemp(prefix="mlxmath-gpu-"))
    try:
        for i, step in enumerate(part.steps):
            until = time.monotonic() + place.left_s() / (len(part.steps) - i)
            here = replace(place, left_s=lambda until=until: until - time.monotonic())
            run_step(step, here, options, work, dtype, record["shapes"], save)
            print(f"{place.left_s():.0f} s left", flush=True)
    finally:
        if options.work is None:
            shutil.rmtree(work, ignore_errors=True)
    save()
    print(f"\n-> {out} ({call['seconds']:.0f} s)")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__, "gpu.json", "data")
    parser.add_argument("--part", default="1", choices=PARTS, help="what is measured (default: 1)")
    parser.add_argument("--minutes", type=float, help="time for it (default: the part's; with --tiny 5)")
    parser.add_argument("--backend", default="cuda", choices=("cuda", "cpu", "metal"))
    parser.add_argument("--contestants", default="ours,mlx_lm,torch")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to see that everything works")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    parser.add_argument("--fresh", action="store_true", help="do not add to what the JSON holds")
    parser.add_argument("--work", type=Path, help="folder for the models (default: a temporary one)")
    options = parser.parse_args()
    options.contestants = options.contestants.split(",")
    if unknown := set(options.contestants) - set(SHOWN):
        parser.error(f"--contestants: {', '.join(sorted(unknown))} is unknown; there are {', '.join(SHOWN)}")
    if options.tiny and options.out == parser.get_default("out"):
        options.out = options.out.with_name("gpu_tiny.json")
    options.minutes = options.minutes or (5.0 if options.tiny else PARTS[options.part].minutes)
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


def described(options: argparse.Namespace, scale: Scale, dtype: str) -> list[str]:
    """What would be done, a line a step."""
    part = PARTS[options.part]
    lines = [f"part {options.part}: {options.minutes:g} minutes on {options.backend}, {dtype}"]
    if part.checks:
        lines.append(f"  tests of {', '.join(TESTS)}: at most {scale.tests_s:.0f} s")
        what = "sft, packed rows, 4-bit weights, grpo's and dpo's losses, a reward model's"
        lines.append(f"  parity with the CPU: {what}: at most {scale.parity_s:.0f} s")
    for name, bits, what_of in part.steps:
        shape, limit_s = shape_of(name, is_tiny=options.tiny), dict(scale.run_s)[name]
        lines.append(f"  {shape.title}, random weights in {bits} bits, at most {limit_s:.0f} s a process")
        who = {
            "train": "; ".join(entry.name for entry in training_entries(options.contestants, scale, bits)),
            "grpo": f"mlxmath grpo, {scale.max_tokens} tokens each",
            "generate": f"{scale.prompts} prompts: {'; '.join(GENERATION.values())}",
            "profile": f"the pieces of a step of {scale.profile} tokens",
        }
        lines += [f"    {each}: {who[each]}" for each in what_of]
    return lines


def run_step(
    step: tuple[str, int, tuple[str, ...]],
    place: Place,
    options: argparse.Namespace,
    work: Path,
    dtype: str,
    shapes: Result,
    save: Callable[[], None],
) -> None:
    """Make the model of a step, measure what is asked for on it, remove it; saved as it comes."""
    name, bits, what = step
    shape, scale = shape_of(name, is_tiny=options.tiny), place.scale
    record = shapes.setdefault(name, {})
    part = record.setdefault(f"{bits}-bit", {})
    work.mkdir(parents=True, exist_ok=True)
    num_bytes = 2 * shape.num_parameters * (4 if dtype == "float32" else 2)
    if shutil.disk_usage(work).free < num_bytes:
        part["skipped"] = f"{gigabytes(num_bytes)} are not free in {work}"
        save()
        return
    started = time.monotonic()
    dense = make_workload(shape, work, options.data, dtype=dtype, num_rows=dict(scale.rows)[name], template=TEMPLATE)
    record |= {"shape": shape.title, "dtype": dtype, "data": options.data.name}
    print(f"\n{shape.title}: made in {time.monotonic() - started:.1f} s", flush=True)
    try:
        workload = dense if bits == 16 else gpu_parts.quantized(place, dense, bits)
        if isinstance(workload, str):
            part["skipped"] = workload
            print(f"  {bits}-bit weights: {workload}", flush=True)
            return
        part.pop("skipped", None)
        print(f"on {bits}-bit weights ({gigabytes(workload.weights_bytes)})", flush=True)
        measure(workload, bits, dense.model, place, what, part, save)
    finally:
        shutil.rmtree(dense.folder, ignore_errors=True)
        save()


def measure(
    workload: Workload, bits: int, dense: Path, place: Place, what: tuple[str, ...], part: Result,
    save: Callable[[], None],
) -> None:  # fmt: skip
    """What is asked for, on weights of so many bits."""

    def keep(name: str) -> Callable[[Result], None]:
        def kept(found: Result) -> None:
            part[name] = found
            save()

        return kept

    for each in what:
        if each == "train":
            keep(each)(gpu_parts.train(place, workload, bits, dense, keep(each)))
        elif each == "generate":
            keep(each)(gpu_parts.generate(place, workload, keep(each)))
        else:
            keep(each)({"grpo": gpu_parts.grpo, "profile": gpu_parts.profile}[each](place, workload))


if __name__ == "__main__":
    main()
