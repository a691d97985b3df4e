"""Windows and micro-batches."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlxmath.config.training import TrainingConfig
from mlxmath.data.batch import Shape, make_batch, make_packed
from mlxmath.data.batching import BatchSampler, StepBatch
from tests.conftest import FakeRows

CONFIG = TrainingConfig(batch_size=2, grad_accumulation_steps=4, num_epochs=2, seed=3)


def plan(rows: FakeRows, max_tokens: int = 64, multiple: int = 16, **changes: object) -> BatchSampler:
    return BatchSampler(rows, CONFIG.model_copy(update=changes), max_tokens, Shape(multiple))


def fill(steps: Iterable[StepBatch]) -> float:
    """The share of processed positions that hold a token."""
    batches = [(step.sampler, ids) for step in steps for ids in step.micro_batches]
    real = sum(int((sampler.rows.lengths[list(ids)] - 1).sum()) for sampler, ids in batches)
    return real / sum(sampler.size(ids) for sampler, ids in batches)


def test_a_batch_by_hand() -> None:
    rows = FakeRows([np.array([5, 6, 7, 8]), np.array([9, 3])], [np.array([0, 0, 1, 1]), np.array([1, 1])])
    batch = make_batch(rows, (0, 1), Shape(4))
    assert batch.inputs_BL.tolist() == [[5, 6, 7, 0], [9, 0, 0, 0]]
    assert batch.positions_N.tolist() == [1, 2, 4]  # the end is in, padding is out
    assert batch.targets_N.tolist() == [7, 8, 3]
    assert batch.weights_N.tolist() == [1, 1, 1]
    assert (batch.num_tokens, batch.num_targets) == (6, 3)


def test_a_packed_batch_by_hand() -> None:
    rows = FakeRows([np.array([5, 6, 7, 8]), np.array([9, 3])], [np.array([0, 0, 1, 1]), np.array([1, 1])])
    batch = make_packed(rows, (0, 1), Shape(6))
    assert batch.inputs_BL.tolist() == [[5, 6, 7, 9, 0, 0]]
    assert batch.positions_N.tolist() == [1, 2, 3]
    assert batch.targets_N.tolist() == [7, 8, 3]
    assert batch.texts_BL is not None and batch.texts_BL.tolist() == [[0, 0, 0, 1, 2, 2]]
    assert batch.mask is not None and batch.mask.array[0, 0].astype(mx.int32).tolist() == [
        [1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 1, 1],
    ]  # fmt: skip


def test_packs_are_full_and_keep_to_the_budget(uneven_rows: FakeRows) -> None:
    windows = list(plan(uneven_rows, 128, batching="pack").epoch(0))
    for window in windows:
        for batch in window.batches():
            assert batch.inputs_BL.shape[0] == 1
            assert batch.inputs_BL.shape[1] <= 128 or len(batch.row_ids) == 1
    assert fill(windows) > fill(plan(uneven_rows, 128, batching="pad").epoch(0))


def test_targets_are_filled_up_with_weight_zero_for_devices_that_compile() -> None:
    rows = FakeRows([np.array([5, 6, 7, 8])], [np.array([0, 1, 1, 1])])
    batch = make_batch(rows, (0,), Shape(16, few=True))  # eighths of 16
    assert batch.targets_N.tolist() == [6, 7, 8, 0]
    assert batch.weights_N.tolist() == [1, 1, 1, 0]
    assert batch.num_targets == 3


@pytest.mark.parametrize("batching", ["bucket", "pack", "pad"])
def test_every_row_once_an_epoch_in_windows_of_the_size_asked_for(uneven_rows: FakeRows, batching: str) -> None:
    windows = list(plan(uneven_rows, batching=batching).epoch(0))
    assert sorted(len(w.row_ids) for w in windows) == [5, 8, 8, 8, 8]
    assert sorted(row for w in windows for row in w.row_ids) == list(range(37))


def test_pad_keeps_batch_size_rows_together(uneven_rows: FakeRows) -> None:
    for window in plan(uneven_rows, batching="pad").epoch(0):
        assert [len(ids) for ids in window.micro_batches][:-1] == [2] * (len(window.micro_batches) - 1)


@pytest.mark.parametrize("max_tokens", [1, 40, 64, 96, 10_000])
def test_micro_batches_keep_to_the_token_budget(uneven_rows: FakeRows, max_tokens: int) -> None:
    for window in plan(uneven_rows, max_tokens).epoch(0):
        for batch in window.batches():
            rows, width = batch.inputs_BL.shape
            assert width % 16 == 0
            assert rows * width <= max_tokens or rows == 1


@pytest.mark.parametrize("batching", ["bucket", "pack", "pad"])
def test_order_is_seeded_changes_with_the_epoch_and_starts_anywhere(uneven_rows: FakeRows, batching: str) -> None:
    def order(epoch: int = 0, **changes: object) -> list[tuple[int, ...]]:
        return [w.row_ids for w in plan(uneven_rows, batching=batching, **changes).epoch(epoch)]

    assert order() == order()
    assert order() != order(epoch=1)
    assert order() != order(seed=4)
    positions = [(w.epoch, w.index) for w in islice(plan(uneven_rows).steps(0, 3), 7)]
    assert positions == [(0, 3), (0, 4), *((1, i) for i in range(5))]
    rest = [w.row_ids for w in islice(plan(uneven_rows, batching=batching).steps(0, 3), 7)]
    assert rest == order()[3:] + order(epoch=1)


def test_the_rows_of_a_window_do_not_depend_on_the_token_budget(uneven_rows: FakeRows) -> None:
    for a, b in zip(plan(uneven_rows, 32).epoch(0), plan(uneven_rows, 4096).epoch(0), strict=True):
        assert set(a.row_ids) == set(b.row_ids)
        assert len(b.micro_batches) == 1 < len(a.micro_batches)


def test_bucketing_makes_other_windows_in_every_epoch_even_of_few_rows(uneven_rows: FakeRows) -> None:
    sets = [{frozenset(w.row_ids) for w in plan(uneven_rows).epoch(e)} for e in (0, 1)]
    assert len(sets[0] & sets[1]) <= 1


def test_devices_that_compile_get_few_widths_and_numbers_of_rows() -> None:
    shape = Shape(16, few=True)
    widths = sorted({shape.width(length) for length in range(2, 1026)})
    assert widths[:16] == [16 * i for i in range(1, 17)]
    assert widths[16:] == [*range(288, 513, 32), *range(576, 1025, 64)]
    assert all(0 <= shape.width(n) - (n - 1) < max(16, n / 8) for n in range(2, 1026))
    assert [shape.num_rows(n) for n in (1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 17, 100)] == [
        1,
        2,
        3,
        4,
        4,
        6,
        6,
        8,
        8,
        12,
        16,
        96,
    ]
    assert [Shape(16).num_rows(n) for n in (5, 17)] == [5, 17]


def gsm8k_rows() -> FakeRows:
    """With lengths and targets like those of a 1,000-piece tokenizer: a character count over four."""
    data = Path(__file__).parents[2].parent / "shared" / "data" / "gsm8k" / "train.jsonl"
    if not data.exists():
        pytest.skip(f"{data} is not here")
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    answers = [1 + len(row["answer"]) // 4 for row in rows]
    lengths = [16 + len(row["question"]) // 4 + own for row, own in zip(rows, answers, strict=True)]
    masks = [(np.arange(n) >= n - own).astype(np.uint8) for n, own in zip(lengths, answers, strict=True)]
    return FakeRows([np.zeros(n, np.int64) for n in lengths], masks)


def test_gsm8k_is_filled_to_93_percent() -> None:
    rows = gsm8k_rows()
    for accumulation in (4, 16):
        windows = BatchSampler(
            rows, TrainingConfig(batch_size=2, grad_accumulation_steps=accumulation), 1024, Shape(16)
        ).epoch(0)
        assert fill(windows) >= 0.93


@pytest.mark.parametrize("max_tokens", [2048, 4096, 16384])
@pytest.mark.parametrize("per_step", [4, 8, 20, 32, 128])
def test_gsm8k_takes_few_graphs_at_little_padding(max_tokens: int, per_step: int) -> None:
    """All that goes into the compiled step has its shape from these three numbers: rows, width, targets."""
    sampler = BatchSampler(gsm8k_rows(), TrainingConfig(batch_size=per_step), max_tokens, Shape(16, few=True))
    shapes, seen = set(), 0
    for epoch in (0, 1):
        steps = list(sampler.epoch(epoch))
        assert 1 - fill(steps) <= 0.12
        for batch in (batch for step in steps for batch in step.batches()):
            shapes.add((batch.inputs_BL.shape, batch.positions_N.shape))
            seen += len(batch.row_ids)
    assert seen == 2 * 7473, "each row once an epoch"
    assert len(shapes) <= 128


@dataclass
class RankedRows(FakeRows):
    ranks: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))


@pytest.mark.parametrize("batching", ["bucket", "pack", "pad"])
def test_a_curriculum_s_order_is_kept(batching: str) -> None:
    rng = np.random.default_rng(0)
    tokens = [rng.integers(1, 64, rng.integers(5, 41)) for _ in range(1200)]
    ranks = rng.permutation(np.repeat(np.arange(3, dtype=np.int32), 400))
    rows = RankedRows(tokens, [np.ones(len(t), np.uint8) for t in tokens], ranks)
    plan = BatchSampler(rows, TrainingConfig(batch_size=2, grad_accumulation_steps=2, batching=batching), 256, Shape(8))
    orders = [[row for window in plan.epoch(epoch) for row in window.row_ids] for epoch in (0, 1)]
    for order in orders:
        assert sorted(order) == list(range(1200)), "each row once"
        assert ranks[order].tolist() == [0] * 400 + [1] * 400 + [2] * 400
    assert orders[0] != orders[1], "rows of the same rank are shuffled"
    windows = [ids for window in plan.epoch(0) for ids in [window.row_ids]]
    assert all(len(ids) == 4 for ids in windows)
    if batching == "bucket":
        spread = np.mean([np.ptp(rows.lengths[list(ids)]) for ids in windows])
        assert spread < 3, "rows of like length still share windows"


def test_ranks_that_all_differ_are_the_order() -> None:
    rng = np.random.default_rng(0)
    tokens = [rng.integers(1, 64, rng.integers(5, 41)) for _ in range(103)]
    ranks = rng.permutation(103).astype(np.int32)
    rows = RankedRows(tokens, [np.ones(len(t), np.uint8) for t in tokens], ranks)
    plan = BatchSampler(rows, TrainingConfig(batch_size=2, grad_accumulation_steps=2), 256, Shape(8))
    for start, window in enumerate(plan.epoch(0)):
        assert sorted(ranks[list(window.row_ids)].tolist()) == list(range(103))[4 * start : 4 * start + 4]
