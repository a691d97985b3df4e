"""What `gpu.py` measures, in which order, and how long each part may take."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.contestants import Entry
from benchmarks.shapes import SHAPES, Shape


@dataclass(frozen=True)
class Part:
    """What one call measures, within so many minutes.

    `steps`: (shape, bits of its weights, what is measured: `train`, `grpo`, `generate`, `profile`), in order.
    """

    minutes: float
    steps: tuple[tuple[str, int, tuple[str, ...]], ...]
    checks: bool = False
    """First the backend's tests and the parity with the CPU."""


PARTS = {
    "1": Part(3.2, (("0.5b", 16, ("train",)), ("1.5b", 16, ("train",))), checks=True),
    "2": Part(2.9, (("0.5b", 16, ("grpo", "generate")), ("0.5b", 4, ("train", "generate")))),
    "3": Part(2.9, (("7b", 16, ("train", "profile")),)),
}
"""What matters most first. The first leaves some of its four minutes to an installation."""
GENERATION = {
    "evaluation": "mlxmath evaluate",
    "rollouts": "mlxmath grpo's rollouts",
    "mlx_lm_batch": "mlx_lm batch_generate",
    "mlx_lm_single": "mlx_lm.generate, one at a time",
}
LARGE_BYTES = 6e9
"""Models from this size on are loaded once a contestant: the loss of the first batch is left out for ours."""
TESTS = ("runtime/test_device.py", "models/test_kernels.py", "models/test_linear_ce.py")
"""The backend's contract and what it computes with, on MLX's default device; in `tests/`."""


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    tests_s: float
    parity_s: float
    """Most seconds of each."""
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
    """Of `generate`; an eighth of them of `grpo`, for each of which it draws `num_generations`."""
    max_tokens: int
    num_generations: int
    concurrency: int
    group_size: int


FULL = Scale(
    tests_s=30.0,
    parity_s=45.0,
    parity_sizes=(),
    rows=(("0.5b", 256), ("1.5b", 128), ("7b", 64)),
    effective_batch=32,
    batches=(4, 32),
    run_s=(("0.5b", 40.0), ("1.5b", 45.0), ("7b", 60.0)),
    piece_s=0.3,
    profile=(32, 256),
    prompts=32,
    max_tokens=128,
    num_generations=8,
    concurrency=256,
    group_size=64,
)
TINY = Scale(
    tests_s=90.0,
    parity_s=120.0,
    parity_sizes=(("hidden_size", 64), ("intermediate_size", 128), ("vocab_size", 200)),
    rows=(("0.5b", 16), ("1.5b", 16), ("7b", 16)),
    effective_batch=8,
    batches=(4,),
    run_s=(("0.5b", 90.0), ("1.5b", 90.0), ("7b", 90.0)),
    piece_s=0.02,
    profile=(2, 32),
    prompts=8,
    max_tokens=8,
    num_generations=2,
    concurrency=8,
    group_size=32,
)


def tiny(shape: Shape) -> Shape:
    """The same kind of model, next to nothing in size."""
    return replace(shape, hidden=64, layers=2, heads=4, kv_heads=2, intermediate=160, vocab=2_000)


def shape_of(name: str, *, is_tiny: bool) -> Shape:
    """The shape of this name."""
    return tiny(SHAPES[name]) if is_tiny else SHAPES[name]


def training_entries(names: Sequence[str], scale: Scale, bits: int, dense: Path | None = None) -> list[Entry]:
    """Who trains on weights of so many bits, what matters most first.

    Args:
        names: of contestants.
        scale: how much.
        bits: 16 or 4.
        dense: the 16-bit folder, which torch quantizes by itself.
    """
    batch, largest, own = scale.effective_batch, scale.batches[-1], {"own_blas": True}
    ours = Entry("ours", f"batch {batch}", batch)
    fastest = Entry("mlx_lm", f"batch {largest}", largest)
    if bits == 4:
        found = [
            ours,
            fastest,
            Entry("torch", f"batch {largest}, NF4", largest, {**own, "bits": 4, "model": f"{dense}"}),
        ]
    else:
        default = [Entry("mlx_lm", f"batch {size}", size) for size in scale.batches[:-1]]
        eager = Entry("torch", f"batch {largest}", largest, own)
        found = [
            ours,
            fastest,
            eager,
            *default,
            replace(eager, label=f"{eager.label}, compiled", setting={**own, "compile": True}),
        ]
    return [entry for entry in found if entry.contestant in names]
