"""The whole engine against the plainest loop there is: a row at a time, full logits, autodiff, nothing compiled."""

import itertools
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_map

from mlxmath.config.schema import LoraConfig
from mlxmath.config.training import TrainingConfig
from mlxmath.data.batch import Shape, make_batch
from mlxmath.data.batching import BatchSampler
from mlxmath.models.kernels.cpu import CpuKernels
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.lora.inject import inject
from mlxmath.training.accumulate import Workers
from mlxmath.training.deadline import Deadline, StopRequest
from mlxmath.training.gradients import AutodiffGradients, choose_gradients
from mlxmath.training.sft import sft_loss
from tests.conftest import FakeRows, make_tiny_llama
from tests.loop import fit
from tests.models import architectures
from tests.models.adapted import assert_agrees, plain_gradients, random_adapters
from tests.models.adapted import rows as uneven

LEARNING_RATE, CLIP = 5e-3, 0.5


@pytest.fixture(scope="module")
def rows() -> FakeRows:
    rng = np.random.default_rng(1)
    tokens = [rng.integers(1, 64, rng.integers(5, 90)) for _ in range(125)]
    return FakeRows(tokens, [(np.arange(len(t)) >= len(t) // 2).astype(np.uint8) for t in tokens])


def plan(rows: FakeRows, few: bool = False, num_workers: int = 1, batching: Any = "bucket") -> BatchSampler:
    config = TrainingConfig(batch_size=1, grad_accumulation_steps=8, num_epochs=4, batching=batching)
    return BatchSampler(rows, config, 256, Shape(16, few), num_workers)


def model() -> nn.Module:
    model = make_tiny_llama()
    mx.random.seed(3)
    inject(model, LoraConfig(rank=4, targets=("q_proj", "v_proj", "down_proj")))
    return model


def reference_losses(rows: FakeRows, steps: int) -> list[float]:
    tuned = model()
    optimizer = optim.AdamW(LEARNING_RATE, weight_decay=0.0, bias_correction=True)

    def row_loss(m: nn.Module, index: int) -> mx.array:
        tokens, mask = rows.row(index)
        logits = m(mx.array(tokens[None, :-1]))[0]
        return (nn.losses.cross_entropy(logits, mx.array(tokens[1:])) * mx.array(mask[1:])).sum()

    losses = []
    for _, window in zip(range(steps), plan(rows).steps(), strict=False):
        targets = sum(int(rows.row(i)[1][1:].sum()) for i in window.row_ids)
        loss_sum, gradient_sum = 0.0, None
        for index in window.row_ids:
            loss, gradient = nn.value_and_grad(tuned, row_loss)(tuned, index)
            mx.eval(loss, gradient)
            loss_sum += loss.item()
            gradient_sum = gradient if gradient_sum is None else tree_map(mx.add, gradient_sum, gradient)
        gradient = tree_map(lambda g: g / targets, gradient_sum)  # noqa: B023
        gradient, _ = optim.clip_grad_norm(gradient, CLIP)
        optimizer.update(tuned, gradient)
        mx.eval(tuned.trainable_parameters(), optimizer.state)
        losses.append(loss_sum / targets)
    return losses


@pytest.mark.parametrize(
    ("kernels", "compiled", "checkpoint_every", "num_workers", "batching"),
    [
        (CpuKernels, False, 0, 1, "bucket"),
        (CpuKernels, False, 0, 3, "bucket"),
        (CpuKernels, False, 1, 2, "pack"),
        (Kernels, False, 2, 2, "bucket"),
        (Kernels, True, 0, 1, "bucket"),
        (Kernels, True, 0, 1, "pack"),
    ],
)
def test_fifty_steps_have_the_same_losses(
    rows: FakeRows, kernels: Any, compiled: bool, checkpoint_every: int, num_workers: int, batching: str
) -> None:
    tuned = model()
    workers = Workers(
        tuned,
        lambda model: choose_gradients(
            model, sft_loss, kernels(), compiled=compiled, checkpoint_every=checkpoint_every
        ),
        num_workers,
    )
    optimizer = optim.AdamW(LEARNING_RATE, weight_decay=0.0, bias_correction=True)
    optimizer.init(tuned.trainable_parameters())
    found: list[float] = []
    windows = itertools.islice(plan(rows, compiled, num_workers, batching).steps(), 50)
    fit(
        workers, windows, optimizer, lambda _: LEARNING_RATE, max_grad_norm=CLIP, deadline=Deadline(1e9),
        stop=StopRequest(), hooks=[lambda report: found.append(report.loss)],
    )  # fmt: skip
    expected = reference_losses(rows, 50)
    assert len(found) == 50 and expected[-1] < expected[0] - 0.02
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_no_more_graphs_are_compiled_than_there_are_shapes(rows: FakeRows, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = []
    original = AutodiffGradients._total

    def count(self: AutodiffGradients, *arrays: Any) -> mx.array:
        traced.append(tuple(a.shape for a in arrays if isinstance(a, mx.array)))
        return original(self, *arrays)

    monkeypatch.setattr(AutodiffGradients, "_total", count)
    tuned = model()
    gradients = choose_gradients(tuned, sft_loss, Kernels(), compiled=True)
    tuned.train()
    shapes = set()
    for window in plan(rows, few=True).epoch(0):
        for batch in window.batches():
            mx.eval(gradients.loss_and_gradients(batch))
            shapes.add((batch.inputs_BL.shape, batch.positions_N.shape))
    assert len(traced) <= len(shapes) < 125 * 4 / 2


def test_graphs_beyond_the_most_take_the_place_of_earlier_ones(rows: FakeRows, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = model()
    batches = [batch for step in itertools.islice(plan(rows, few=True).epoch(0), 6) for batch in step.batches()]
    assert len({batch.inputs_BL.shape for batch in batches}) > 3

    def sums() -> list[float]:
        gradients = choose_gradients(tuned, sft_loss, Kernels(), compiled=True)
        return [gradients.loss_and_gradients(batch)[0].item() for batch in batches]

    expected, held = sums(), []
    compile = mx.compile
    monkeypatch.setattr("mlxmath.training.gradients.MOST_GRAPHS", 2)
    monkeypatch.setattr(mx, "compile", lambda *args, **kwargs: held.append(1) or compile(*args, **kwargs))
    assert sums() == expected, "bit for bit"
    assert len(held) > 2


def test_a_model_that_looks_at_what_it_computes_is_not_compiled() -> None:
    """As DBRX does in training, to give each expert its tokens: on GPUs, where steps are compiled, MLX raised."""
    dbrx, data = random_adapters(architectures.make("dbrx")[0]), uneven(architectures.VOCAB_SIZE)
    expected = plain_gradients(dbrx, data)
    gradients = choose_gradients(dbrx, sft_loss, Kernels(), compiled=True)
    assert "not compiled" in gradients.how
    assert_agrees(gradients, make_batch(data, (0, 1, 2), Shape(8)), *expected)
