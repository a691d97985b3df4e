"""What `gpu.py` measures, in which order, and how long each part may take."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.contestants import Entry
from benchmarks.shapes import SHAPES, Shape

PARTS = ("tests", "parity", "matmul", "train", "profile", "generate")
"""In the order in which they run; the last four for each shape."""
PER_SHAPE = PARTS[2:]
BITS = (16, 4)
GENERATION = {
    "evaluation": "mlxmath evaluate",
    "rollouts": "mlxmath grpo's rollouts",
    "mlx_lm_batch": "mlx_lm batch_generate",
    "mlx_lm_single": "mlx_lm.generate, one at a time",
}
LARGE_BYTES = 6e9
"""Models from this size on are loaded once a contestant: the loss of the first batch is left out for ours."""


@dataclass(frozen=True)
class Scale:
    """How much of everything. `tests` are groups of folders or files in `tests/`, each with its seconds."""

    shapes: tuple[str, ...]
    tests: tuple[tuple[tuple[str, ...], float], ...]
    parity_sizes: tuple[tuple[str, int], ...]
    rows: tuple[tuple[str, int], ...]
    effective_batch: int
    batches: tuple[int, ...]
    """Micro-batch sizes at which mlx_lm.lora is tried; torch takes the last."""
    run_s: tuple[tuple[str, float], ...]
    """Most seconds of a process on a shape."""
    piece_s: float
    """For each piece of the profile, and for the products of the ceiling eight times that."""
    profile: tuple[int, int]
    """Rows and width of the profiled micro-batch."""
    prompts: int
    max_tokens: int
    num_generations: int
    concurrency: int
    group_size: int


FULL = Scale(
    shapes=("0.5b", "1.5b", "7b"),
    tests=((("backends", "kernels"), 60.0), (("lora", "models", "objectives", "training"), 90.0)),
    parity_sizes=(),
    rows=(("0.5b", 256), ("1.5b", 128), ("7b", 64)),
    effective_batch=32,
    batches=(4, 32),
    run_s=(("0.5b", 60.0), ("1.5b", 75.0), ("7b", 110.0)),
    piece_s=0.3,
    profile=(32, 256),
    prompts=32,
    max_tokens=128,
    num_generations=8,
    concurrency=256,
    group_size=64,
)
TINY = Scale(
    shapes=("0.5b",),
    tests=((("backends", "kernels"), 60.0), (("objectives", "models/test_tuning.py"), 45.0)),
    parity_sizes=(("hidden_size", 64), ("intermediate_size", 128), ("vocab_size", 200)),
    rows=(("0.5b", 16), ("1.5b", 16), ("7b", 16)),
    effective_batch=8,
    batches=(4,),
    run_s=(("0.5b", 90.0), ("1.5b", 90.0), ("7b", 90.0)),
    piece_s=0.02,
    profile=(2, 32),
    prompts=4,
    max_tokens=8,
    num_generations=2,
    concurrency=8,
    group_size=32,
)


def tiny(shape: Shape) -> Shape:
    """The same kind of model, next to nothing in size."""
    return replace(shape, hidden=64, layers=2, heads=4, kv_heads=2, intermediate=160, vocab=2_000)


def shapes_of(names: Sequence[str], *, is_tiny: bool) -> dict[str, Shape]:
    """The shapes by name."""
    return {name: tiny(SHAPES[name]) if is_tiny else SHAPES[name] for name in names}


def training_entries(names: Sequence[str], scale: Scale, bits: int, dense: Path | None = None) -> list[Entry]:
    """Who trains on weights of so many bits, what matters most first.

    Args:
        names: of contestants.
        scale: how much.
        bits: 16 or 4.
        dense: the 16-bit folder, which torch quantizes by itself.
    """
    batch, largest = scale.effective_batch, scale.batches[-1]
    found = {
        "ours": [Entry("ours", f"batch {batch}", batch)],
        "mlx_lm": [Entry("mlx_lm", f"batch {size}", size) for size in (scale.batches if bits == 16 else [largest])],
        "torch": [
            Entry("torch", f"batch {largest}", largest, {"own_blas": True}),
            Entry("torch", f"batch {largest}, compiled", largest, {"own_blas": True, "compile": True}),
        ],
    }
    if bits == 4:
        setting = {"own_blas": True, "bits": 4, "model": str(dense or "")}
        found["torch"] = [Entry("torch", f"batch {largest}, NF4", largest, setting)]
    return [entry for name, entries in found.items() if name in names for entry in entries]
