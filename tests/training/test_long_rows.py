"""Rows longer than a block against the same rows with attention in one piece, by every way to gradients."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlxmath.data.batch import Batch, Shape, make_batch, make_packed
from mlxmath.models.kernels import cpu_long_rows, long_rows, short_rows
from mlxmath.models.kernels.cpu import CpuKernels
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.layouts import SharedPrompts
from mlxmath.training.gradients import AutodiffGradients, BlockwiseGradients, choose_gradients
from mlxmath.training.sft import sft_loss
from tests.conftest import FakeRows, make_tiny_llama
from tests.models.adapted import random_adapters

LENGTHS = 41, 7, 19
WINDOWS = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 20}
WAYS: dict[str, tuple[dict[str, Any], Any, dict[str, Any]]] = {
    "block by block": ({}, CpuKernels, {"compiled": False}),
    "block by block, checkpointed": ({}, CpuKernels, {"compiled": False, "checkpoint_every": 1}),
    "autodiff": ({}, Kernels, {"compiled": False}),
    "compiled": ({}, Kernels, {"compiled": True}),
    "compiled, checkpointed": ({}, Kernels, {"compiled": True, "checkpoint_every": 1}),
    "windows": (WINDOWS, CpuKernels, {"compiled": False}),
    "windows, compiled": (WINDOWS, Kernels, {"compiled": True}),
}
"""Of a tiny Llama, its settings and kernels, and what `choose_gradients` is asked for."""


def rows() -> FakeRows:
    texts = [np.arange(length + 1) * 7 % 60 + 4 for length in LENGTHS]
    return FakeRows(texts, [np.ones_like(text) for text in texts])


def continued() -> Batch:
    """The rows but for their first 3 tokens, which are the prompts that they go on from."""
    whole = make_batch(rows(), (0, 1, 2), Shape(4))
    length, (num_rows, width) = 3, whole.inputs_BL.shape
    own = whole.inputs_BL[:, length:]
    at = np.array(whole.positions_N)
    row, place = at // width, at % width
    chosen = place >= length
    return Batch(
        own, mx.array(row * (width - length) + place - length)[mx.array(np.flatnonzero(chosen))],
        whole.targets_N[mx.array(np.flatnonzero(chosen))], mx.ones(int(chosen.sum())), (0, 1, 2), 60, int(chosen.sum()),
        prompts=SharedPrompts(whole.inputs_BL[:, :length], mx.full((num_rows,), length), mx.arange(num_rows)),
    )  # fmt: skip


BATCHES = {
    "rows": lambda: make_batch(rows(), (0, 1, 2), Shape(4)),
    "packed": lambda: make_packed(rows(), (0, 1, 2), Shape(4)),
    "continued": continued,
}


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("way", WAYS)
def test_the_gradient_is_the_same(way: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, kernels, asked = WAYS[way]
    if kind == "continued" and way == "compiled, checkpointed":
        pytest.skip("such rows cannot share prompts")
    calls: list[int] = []

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: calls.append(long_rows.BLOCK) or original(*args)

    for home in (long_rows, cpu_long_rows):
        monkeypatch.setattr(home, "attention_backward", counted(home.attention_backward))

    def found(block: int) -> tuple[float, dict[str, np.ndarray], Any]:
        monkeypatch.setattr(long_rows, "BLOCK", block)
        monkeypatch.setattr(short_rows, "LONGEST", block)
        model = random_adapters(make_tiny_llama(**settings), targets=("*",))
        gradients = choose_gradients(model, sft_loss, kernels(), **asked)
        loss, tree = gradients.loss_and_gradients(BATCHES[kind]())
        return loss.item(), {name: np.array(array) for name, array in tree_flatten(tree)}, gradients

    (loss, expected, _), (by_blocks, gradients, way_taken) = found(1 << 20), found(16)
    assert isinstance(way_taken, BlockwiseGradients if way.startswith("block by block") else AutodiffGradients)
    assert by_blocks == pytest.approx(loss, rel=1e-5)
    assert set(calls) == {16}, "attention went by blocks, of the second alone"
    for name, array in expected.items():
        np.testing.assert_allclose(gradients[name], array, atol=2e-5 * np.abs(array).max() + 1e-7, err_msg=name)
