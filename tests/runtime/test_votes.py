"""What another rank says, this one does too: a stand-in for the ranks votes for the other one."""

import mlx.core as mx
import numpy as np
import pytest

from mlxmath.errors import MlxmathError
from mlxmath.models.lora.inject import adapter_arrays
from mlxmath.runtime.ranks import Ranks
from mlxmath.training.accumulate import StepSums, Workers, over_ranks
from mlxmath.training.deadline import Deadline, StopRequest
from tests.conftest import FakeRows
from tests.loop import adamw, adapted, fit, gradients_of, windows_of

STOPPED, OUT_OF_MEMORY = 1, 2


class Other(Ranks):
    """The other rank sets `bits` in the first vote on `name`."""

    def __init__(self, name: str, bits: int) -> None:
        super().__init__()
        self._name, self._bits = name, bits

    def vote(self, name: str, flags: int = 0) -> int:
        if name != self._name:
            return flags
        bits, self._bits = self._bits, 0
        return flags | bits


def trained(rows: FakeRows, ranks: Ranks | None) -> tuple[str, int, dict[str, np.ndarray], int]:
    model = adapted()
    windows = windows_of(rows, 4, 2)[:3]
    ending, position = fit(
        Workers(model, gradients_of, 1, ranks), windows, adamw(model), lambda _: 1e-2,
        max_grad_norm=1.0, deadline=Deadline(1e9), stop=StopRequest(),
    )  # fmt: skip
    arrays = {name: np.array(array) for name, array in adapter_arrays(model).items()}
    return ending, position.step, arrays, windows[0].sampler.max_rows


def test_all_halve_when_one_is_out_of_memory_and_the_steps_stay(uneven_rows: FakeRows) -> None:
    _, steps, expected, _ = trained(uneven_rows, None)
    ending, reached, found, max_rows = trained(uneven_rows, Other("window", OUT_OF_MEMORY))
    assert (ending, reached, max_rows) == ("finished", steps, 2)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=1e-5)


def test_a_single_row_that_does_not_fit_another_rank_is_an_error(uneven_rows: FakeRows) -> None:
    model = adapted()
    with pytest.raises(MlxmathError, match="out of memory with a single row of the step .on another rank."):
        fit(
            Workers(model, gradients_of, 1, Other("window", OUT_OF_MEMORY)), windows_of(uneven_rows, 1, 2),
            adamw(model), lambda _: 1e-2, max_grad_norm=1.0, deadline=Deadline(1e9), stop=StopRequest(),
        )  # fmt: skip


@pytest.mark.parametrize(("name", "bits", "expected"), [("window", STOPPED, "stopped"), ("deadline", 1, "deadline")])
def test_all_end_when_one_must(uneven_rows: FakeRows, name: str, bits: int, expected: str) -> None:
    mx.random.seed(3)
    ending, steps, found, _ = trained(uneven_rows, Other(name, bits))
    assert (ending, steps) == (expected, 0)
    assert not any(array.any() for key, array in found.items() if key.endswith("lora_b"))


class Twin(Ranks):
    """Two ranks with the same sums."""

    @property
    def size(self) -> int:
        return 2

    def sum(self, array: mx.array) -> mx.array:
        return 2 * array

    def gather(self, name: str, value: list[int]) -> list[list[int]]:
        return [value, value]


def test_one_vector_brings_back_every_sum() -> None:
    gradients = {"b": [mx.arange(6.0).reshape(2, 3), {"c": mx.array(2.0)}], "a": mx.ones(4)}
    total = over_ranks(StepSums(0.5, gradients, 20_000_001, 30_000_001, (), (1.0, 3.0)), Twin(), 2)
    assert (total.loss_sum, total.num_targets, total.num_tokens) == (1.0, 40_000_002, 60_000_002)
    assert total.metric_sums == (2.0, 6.0) and total.bad_rows == ()
    assert mx.array_equal(total.grad_sum["b"][0], 2 * mx.arange(6.0).reshape(2, 3))
    assert total.grad_sum["b"][1]["c"].item() == 4.0 and mx.array_equal(total.grad_sum["a"], 2 * mx.ones(4))


def test_rows_of_no_finite_loss_are_named_from_all_ranks() -> None:
    total = over_ranks(StepSums(float("nan"), {"a": mx.ones(1)}, 3, 4, (7, 8)), Twin(), 0)
    assert total.bad_rows == (7, 8, 7, 8)


def test_ranks_that_share_a_machine_are_counted() -> None:
    """They divide its cores and memory between them."""
    assert Ranks(hosts=("one", "two", "one", "one")).num_on_host == 3
    assert Ranks().num_on_host == 1
