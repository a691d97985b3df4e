"""Windows and micro-batches."""

import numpy as np
import pytest

from mlxmath.data.batches import epoch_windows, make_batch, num_windows
from tests.conftest import FakeRows

SETTINGS = {"batch_size": 2, "accumulation": 4, "bucket_multiple": 32, "seed": 3, "epoch": 0}


def test_a_batch_by_hand() -> None:
    rows = FakeRows([np.array([5, 6, 7, 8]), np.array([9, 3])], [np.array([0, 0, 1, 1]), np.array([1, 1])])
    batch = make_batch(rows, (0, 1), bucket_multiple=4)
    assert batch.inputs_BL.tolist() == [[5, 6, 7, 0], [9, 0, 0, 0]]
    assert batch.targets_BL.tolist() == [[6, 7, 8, 0], [3, 0, 0, 0]]
    assert batch.weights_BL.tolist() == [[0, 1, 1, 0], [1, 0, 0, 0]]  # the end is in, padding is out
    assert (batch.num_tokens, batch.num_targets) == (6, 3)


def test_every_row_once_an_epoch_with_a_smaller_last_window(uneven_rows: FakeRows) -> None:
    windows = list(epoch_windows(uneven_rows, **SETTINGS))
    assert len(windows) == num_windows(37, 2, 4) == 5
    assert [len(w.row_ids) for w in windows] == [8, 8, 8, 8, 5]
    assert sorted(row for w in windows for row in w.row_ids) == list(range(37))


def test_widths_are_buckets_and_micro_batches_have_their_size(uneven_rows: FakeRows) -> None:
    for window in epoch_windows(uneven_rows, **SETTINGS):
        batches = list(window.batches())
        assert {b.inputs_BL.shape[1] for b in batches} <= {32, 64}
        assert all(len(b.row_ids) == 2 for b in batches[:-1])


def test_order_is_seeded_changes_with_the_epoch_and_starts_anywhere(uneven_rows: FakeRows) -> None:
    first = [w.row_ids for w in epoch_windows(uneven_rows, **SETTINGS)]
    assert first == [w.row_ids for w in epoch_windows(uneven_rows, **SETTINGS)]
    assert first != [w.row_ids for w in epoch_windows(uneven_rows, **SETTINGS | {"epoch": 1})]
    assert first != [w.row_ids for w in epoch_windows(uneven_rows, **SETTINGS | {"seed": 4})]
    assert first[3:] == [w.row_ids for w in epoch_windows(uneven_rows, **SETTINGS, start=3)]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_rows_of_a_window_do_not_depend_on_the_split(uneven_rows: FakeRows, batch_size: int) -> None:
    whole = SETTINGS | {"batch_size": 24, "accumulation": 1}
    split = SETTINGS | {"batch_size": batch_size, "accumulation": 24 // batch_size}
    for a, b in zip(epoch_windows(uneven_rows, **whole), epoch_windows(uneven_rows, **split), strict=True):
        assert set(a.row_ids) == set(b.row_ids)
