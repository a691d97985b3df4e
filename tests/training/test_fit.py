"""The loop: sums, the update, non-finite windows, the deadline, stopping, checkpoints."""

import math
import re
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlxmath.config.schema import RunConfig
from mlxmath.config.training import TrainingConfig
from mlxmath.data.batch import Batch, Shape
from mlxmath.data.batching import BatchSampler, StepBatch
from mlxmath.errors import MlxmathError
from mlxmath.models.lora.inject import adapter_arrays
from mlxmath.runtime.ranks import Ranks
from mlxmath.training.accumulate import Workers
from mlxmath.training.checkpoint import Position
from mlxmath.training.deadline import Deadline, StopRequest
from mlxmath.training.events import StepReport
from mlxmath.training.gradients import Gradients
from mlxmath.training.optimizers import apply_gradients, global_norm
from mlxmath.training.trainer import MAX_BAD_STEPS, Trainer
from tests.conftest import FakeRows, make_tiny_llama
from tests.loop import Clock, adamw, adapted, fit, gradients_of, summed, windows_of, workers_of


class Changed:
    """Gradients whose loss goes through `change(loss, batch)`, to plant what a test needs."""

    how = "changed"

    def __init__(self, model: nn.Module, change: Callable[[mx.array, Batch], mx.array]) -> None:
        self._inner, self._change = gradients_of(model), change

    def loss(self, batch: Batch) -> mx.array:
        return self._change(self._inner.loss(batch), batch)

    def loss_and_gradients(self, batch: Batch) -> tuple[mx.array, Any]:
        loss, gradients = self._inner.loss_and_gradients(batch)
        changed = self._change(loss, batch)
        return changed, nn.utils.tree_map(lambda g: g * (changed / loss), gradients)


def changed(model: nn.Module, change: Callable[[mx.array, Batch], mx.array], count: int = 1) -> Workers:
    return Workers(model, lambda each: Changed(each, change), count)


def run(model: nn.Module, windows: list[StepBatch], optimizer: optim.Optimizer, **more: Any) -> tuple[str, Position]:
    return fit(workers_of(model), windows, optimizer, **more)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_accumulated_gradient_is_that_of_one_big_batch(uneven_rows: FakeRows, batch_size: int) -> None:
    model = adapted()
    model.update(nn.utils.tree_map(lambda a: a + 0.01, model.trainable_parameters()))
    split = summed(workers_of(model), windows_of(uneven_rows, batch_size, 24 // batch_size)[0])
    whole = summed(workers_of(model), windows_of(uneven_rows, 24, 1)[0])
    assert (split.num_targets, split.num_tokens) == (whole.num_targets, whole.num_tokens)
    assert split.loss_sum == pytest.approx(whole.loss_sum, rel=1e-6)
    for (_, a), (_, b) in zip(tree_flatten(split.grad_sum), tree_flatten(whole.grad_sum), strict=True):
        np.testing.assert_allclose(np.array(a), np.array(b), rtol=1e-4, atol=1e-5)


def test_ways_to_gradients_are_chosen_in_training_mode() -> None:
    """A model is loaded in evaluation mode, in which Metal's kernel of linear attention has no gradient."""
    model, modes = adapted(), []
    model.eval()
    of_run: Any = SimpleNamespace(
        config=RunConfig(), model=model, checkpoint=None, ranks=Ranks(), batching=SimpleNamespace(num_workers=2),
        closing=ExitStack(),
    )  # fmt: skip

    def noting(each: nn.Module) -> Gradients:
        modes.append(each.training)
        return gradients_of(each)

    Trainer(of_run, noting)
    assert modes == [True, True]


def test_loss_by_hand() -> None:
    rows = FakeRows([np.array([1, 2, 3])], [np.array([0, 0, 1])])
    model = make_tiny_llama()
    logits = np.array(model(mx.array([[1, 2]])), np.float64)[0, 1]
    expected = np.log(np.exp(logits).sum()) - logits[3]
    batch = next(windows_of(rows, 1, 1)[0].batches())
    assert gradients_of(model).loss(batch).item() == pytest.approx(expected, rel=1e-5)


def test_clipping_is_by_the_global_norm(uneven_rows: FakeRows) -> None:
    model = adapted()
    sums = summed(workers_of(model), windows_of(uneven_rows)[0])
    flat = np.concatenate([np.array(a).ravel() for _, a in tree_flatten(sums.grad_sum)])
    assert global_norm(sums.grad_sum).item() == pytest.approx(np.linalg.norm(flat), rel=1e-5)
    norm = np.linalg.norm(flat) / sums.num_targets
    before = {k: np.array(v) for k, v in adapter_arrays(model).items()}
    assert apply_gradients(model, optim.SGD(1.0), sums, 1.0, max_grad_norm=norm / 4) == pytest.approx(norm, rel=1e-5)
    moved = np.concatenate([(before[k] - np.array(v)).ravel() for k, v in adapter_arrays(model).items()])
    assert np.linalg.norm(moved) == pytest.approx(norm / 4, rel=1e-3)


def test_training_lowers_the_loss_and_moves_only_adapters(uneven_rows: FakeRows) -> None:
    model = adapted()
    before = {name: np.array(a) for name, a in tree_flatten(model.parameters())}
    losses: list[float] = []
    windows = windows_of(uneven_rows) * 8
    ending, position = run(model, windows, adamw(model), hooks=[lambda r: losses.append(r.loss)])
    assert (ending, position.step) == ("finished", len(windows))
    assert losses[-1] < losses[0] - 0.05
    for name, array in tree_flatten(model.parameters()):
        if not name.endswith(("lora_a", "lora_b")):
            assert np.array_equal(before[name], np.array(array)), name
    assert position.num_tokens == 8 * int(uneven_rows.lengths.sum())


def test_a_nan_row_skips_its_window_names_it_and_the_run_goes_on(
    uneven_rows: FakeRows, capsys: pytest.CaptureFixture[str]
) -> None:
    model = adapted()
    reports: list[StepReport] = []
    windows = windows_of(uneven_rows, 1, 8)
    bad = windows[1].row_ids[3]
    arrays: list[dict[str, np.ndarray]] = []
    planted = changed(model, lambda loss, batch: loss * math.nan if bad in batch.row_ids else loss)

    def remember(report: StepReport) -> None:
        reports.append(report)
        arrays.append({k: np.array(v) for k, v in adapter_arrays(model).items()})

    ending, position = fit(planted, windows, adamw(model), hooks=[remember])
    assert (ending, position.num_skipped) == ("finished", 1)
    assert [r.applied for r in reports] == [True, False, True, True, True]
    assert all(np.array_equal(arrays[0][k], arrays[1][k]) for k in arrays[0])
    assert all(np.isfinite(a).all() for a in arrays[-1].values())
    assert f"step 2: loss is not finite, the step is not applied; rows {bad}\n" in capsys.readouterr().err


def test_too_many_bad_windows_end_the_run_on_good_adapters(uneven_rows: FakeRows) -> None:
    model = adapted()
    before = {k: np.array(v) for k, v in adapter_arrays(model).items()}

    planted = changed(model, lambda loss, _: loss * math.inf)
    ending, position = fit(planted, windows_of(uneven_rows) * 3, adamw(model))
    assert (ending, position.step, position.num_skipped) == ("diverged", MAX_BAD_STEPS, MAX_BAD_STEPS)
    assert all(np.array_equal(before[k], np.array(v)) for k, v in adapter_arrays(model).items())


def test_the_deadline_leaves_time_for_a_window_and_the_save(uneven_rows: FakeRows) -> None:
    clock = Clock()
    deadline = Deadline(100.0, clock)
    deadline.note_save(5.0)
    model = adapted()

    def pass_time(report: StepReport) -> None:
        clock.now += 12.0
        deadline.note_step(12.0)

    ending, position = run(model, windows_of(uneven_rows) * 10, adamw(model), deadline=deadline, hooks=[pass_time])
    assert ending == "deadline"
    assert position.step == 7  # after 84 s, 12 s for a window and 10 s for the save no longer fit
    assert deadline.left_s == pytest.approx(16.0)


def test_a_stop_abandons_the_window_and_puts_random_state_back(uneven_rows: FakeRows) -> None:
    model = adapted(dropout=0.5)
    stop = StopRequest()
    windows = windows_of(uneven_rows, 1, 8)
    optimizer = adamw(model)
    run(model, windows[:1], optimizer)
    before = {k: np.array(v) for k, v in adapter_arrays(model).items()}
    random_state = np.array(mx.random.state[0])
    calls = []

    def count(loss: mx.array, batch: Batch) -> mx.array:
        calls.append(batch.row_ids)
        if len(calls) == 3:
            stop.signal = 2
        return loss

    at = Position(step=1, window=1)
    ending, position = fit(changed(model, count), windows[1:], optimizer, stop=stop, position=at)
    assert (ending, position.step, position.window, len(calls)) == ("stopped", 1, 1, 3)
    assert np.array_equal(random_state, np.array(mx.random.state[0]))
    assert all(np.array_equal(before[k], np.array(v)) for k, v in adapter_arrays(model).items())


@pytest.mark.parametrize(
    ("batching", "error", "words", "remedy"),
    [
        ("bucket", "[malloc] Unable to allocate 123456789 bytes.", "out of memory", "--grad-checkpoint 1"),
        ("pad", "[malloc] Unable to allocate 123456789 bytes.", "out of memory", "--grad-checkpoint 1"),
        ("bucket", "[METAL] Command buffer execution failed: Impacting Interactivity (…)", "kept the display waiting",
         "--max-batch-tokens"),
        ("bucket", "[metal::malloc] Resource limit (499000) exceeded.", "as many arrays", "--max-seq-len"),
    ],
)  # fmt: skip
def test_a_device_in_trouble_gets_half_the_micro_batches_and_nothing_else_changes(
    uneven_rows: FakeRows, capsys: pytest.CaptureFixture[str], batching: str, error: str, words: str, remedy: str
) -> None:
    def train(limit_rows: int) -> tuple[nn.Module, Position, BatchSampler]:
        model = adapted(dropout=0.0)

        def allocate(loss: mx.array, batch: Batch) -> mx.array:
            if len(batch.row_ids) > limit_rows:
                raise RuntimeError(error)
            return loss

        config = TrainingConfig(batch_size=8, grad_accumulation_steps=1, batching=batching)
        plan = BatchSampler(uneven_rows, config, 10_000, Shape(32))
        _, position = fit(changed(model, allocate), plan.epoch(0), adamw(model))
        return model, position, plan

    free, free_position, _ = train(limit_rows=8)
    assert words not in capsys.readouterr().err
    tight, tight_position, plan = train(limit_rows=3)
    assert len(re.findall(f"{words}.*; micro-batches of at most", capsys.readouterr().err)) == 2  # 8, then 4, then 2
    assert plan.max_rows == 2
    assert free_position == tight_position
    for name, array in adapter_arrays(free).items():
        np.testing.assert_allclose(np.array(array), np.array(adapter_arrays(tight)[name]), rtol=1e-3, atol=1e-5)
    with pytest.raises(MlxmathError, match=f"{words}.* with a single row .*{remedy}"):
        train(limit_rows=0)
