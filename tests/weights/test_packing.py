"""Forms of packed weights: their sizes, and the choice of one for each layer under a budget."""

import itertools

import mlx.core as mx
import numpy as np
import pytest

from mlxmath.config.schema import ModelConfig
from mlxmath.errors import InputError
from mlxmath.weights import allocation
from mlxmath.weights.allocation import allocate
from mlxmath.weights.packing import CANDIDATES, FLOATS, Packing, held_otherwise, planned_packing


@pytest.mark.parametrize("form", [*CANDIDATES, *FLOATS.values()], ids=str)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_sizes_are_those_of_mlx(form: Packing, dtype: str) -> None:
    weight = mx.random.normal((3, 8, 256)).astype(getattr(mx, dtype))
    arrays = mx.quantize(weight, form.group_size, form.bits, mode=form.mode)
    assert form.num_bytes(dtype, weight.shape) == sum(array.nbytes for array in arrays)
    declared = form.declared("x.weight", dtype, weight.shape)
    assert [(shape, getattr(mx, kind)) for _, kind, shape in declared] == [(a.shape, a.dtype) for a in arrays]


def test_bits_a_weight() -> None:
    assert Packing(4).bits_a_weight("float16") == 4.5
    assert Packing(3, 32).bits_a_weight("float32") == 5
    assert [form.bits_a_weight("float16") for form in FLOATS.values()] == [4.25, 4.5, 8.25]
    assert planned_packing(ModelConfig(quantize="auto:4.4")) == Packing(4, 32)
    assert planned_packing(ModelConfig(quantize="auto:9")) == Packing(8, 32)
    assert planned_packing(ModelConfig(quantize="mxfp8")) == FLOATS["mxfp8"]


@pytest.mark.parametrize(
    ("asked", "group_size", "otherwise"),
    [(4, None, False), (4, 32, True), (8, None, True), ("mxfp4", None, True), ("auto:4.5", None, True)],
)
def test_what_a_folder_holds(asked: str | int, group_size: int | None, otherwise: bool) -> None:
    config = ModelConfig(quantize=asked, group_size=group_size)
    assert held_otherwise(config, Packing(4).settings, "4") is otherwise
    assert held_otherwise(config, Packing(4).settings, "auto:4.5") is (asked != "auto:4.5")


@pytest.mark.parametrize("seed", range(6))
def test_the_choice_is_the_best_of_all(seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = {f"{i}": [int(size) * 24 for size in random.integers(1, 40, 4)] for i in range(5)}
    costs = {name: list(random.random(4)) for name in sizes}
    smallest, largest = (sum(of(each) for each in sizes.values()) for of in (min, max))
    budget = int(smallest + random.random() * (largest - smallest))
    found = allocate(sizes, costs, budget)
    best = min(
        sum(costs[name][number] for name, number in zip(sizes, numbers, strict=True))
        for numbers in itertools.product(range(4), repeat=5)
        if sum(sizes[name][number] for name, number in zip(sizes, numbers, strict=True)) <= budget
    )
    assert sum(sizes[name][number] for name, number in found.items()) <= budget
    assert sum(costs[name][number] for name, number in found.items()) == pytest.approx(best)


def test_rounded_sizes_stay_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "_MOST_UNITS", 50)
    random = np.random.default_rng(0)
    sizes = {f"{i}": sorted(int(size) for size in random.integers(900, 9000, 6)) for i in range(8)}
    costs = {name: [1 / size for size in own] for name, own in sizes.items()}
    found = allocate(sizes, costs, 30_011)
    assert 0.8 * 30_011 < sum(sizes[name][number] for name, number in found.items()) <= 30_011


def test_a_budget_for_no_more_than_the_smallest_forms_is_kept() -> None:
    """Sizes that differ by less than a unit."""
    sizes, costs = {name: [70_002, 70_001] for name in "abc"}, {name: [0.0, 1.0] for name in "abc"}
    assert allocate(sizes, costs, 3 * 70_001) == dict.fromkeys("abc", 1)


def test_too_small_a_budget_is_refused() -> None:
    with pytest.raises(InputError, match=r"--quantize auto: the smallest forms of all layers take 30 bytes, 29 were"):
        allocate({"a": [10, 20], "b": [20, 30]}, {"a": [1, 0], "b": [1, 0]}, 29)
