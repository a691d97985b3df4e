"""Runs on the same rows: differences, against an independent calculation."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mlxmath.runtime.sealed import sealed_json
from mlxmath.sweeps.compare import difference, rows_of, student


def told(folder: Path, rows: list, fingerprint: str = "one", step: int = 4, metric: str = "loss") -> tuple[Path, int]:
    folder.mkdir(exist_ok=True)
    sealed_json(folder / "held_out.json", {"step": step, "metric": metric, "fingerprint": fingerprint, "rows": rows})
    return folder, 4


def test_students_quantiles_are_scipys() -> None:
    for freedom in (4, 9, 29, 200):
        assert student(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=3e-3)


def test_rows_of_equal_length_are_a_paired_t_test(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(2, 1, 30), rng.normal(2.2, 1, 30)
    one, other = (
        rows_of([told(tmp_path / name, [[i, 5 * float(x), 5] for i, x in enumerate(values)])])
        for name, values in (("a", first), ("b", second))
    )
    found = difference(one, other)
    expected = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert found is not None and found.estimate == pytest.approx(np.mean(first - second))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=2e-3)


def test_the_interval_covers_the_truth_where_lengths_differ() -> None:
    """Losses grow with the rows' lengths: in 95 of 100 samples the interval holds the true ratio."""
    rng, hits = np.random.default_rng(5), 0
    for _ in range(400):
        lengths = rng.integers(5, 60, 40)
        noise = rng.normal(0.1, 0.5, 40) * np.sqrt(lengths) + 0.3 * lengths
        one = {("x", i): (float(v), int(n)) for i, (v, n) in enumerate(zip(noise, lengths, strict=True))}
        other = {("x", i): (0.0, int(n)) for i, n in enumerate(lengths)}
        truth = 0.3 + 0.1 * np.mean(np.sqrt(np.arange(5, 60))) / np.mean(np.arange(5, 60))
        found = difference(one, other)
        assert found is not None
        hits += found.low <= truth <= found.high
    assert 0.92 <= hits / 400 <= 0.98


def test_seeds_with_the_same_rows_are_added_up_and_others_stand_beside(tmp_path: Path) -> None:
    rows = [[0, 1.0, 2], [1, 3.0, 4]]
    same = rows_of([told(tmp_path / "a", rows), told(tmp_path / "b", rows)])
    assert same == {("one loss", 0): (2.0, 4), ("one loss", 1): (6.0, 8)}
    beside = rows_of([told(tmp_path / "a", rows), told(tmp_path / "b", rows, "two")])
    assert beside is not None and len(beside) == 4


def test_answers_are_not_compared_with_losses(tmp_path: Path) -> None:
    rows = [[i, float(i % 2), 1] for i in range(9)]
    loss, answers = (rows_of([told(tmp_path / name, rows, metric=name)]) for name in ("loss", "answers"))
    assert difference(loss, loss) is not None and difference(loss, answers) is None


@pytest.mark.parametrize(
    "change", [{"step": 9}, {"rows": None}, {"rows": [[0, None, 1]]}, {"rows": 3}, {"fingerprint": None, "rows": [[1]]}]
)
def test_what_is_not_of_these_adapters_gives_no_rows(tmp_path: Path, change: dict) -> None:
    place = told(tmp_path / "a", [[0, 1.0, 2]])
    assert rows_of([place]) is not None
    found = json.loads((place[0] / "held_out.json").read_text()) | change
    del found["checksum"]
    sealed_json(place[0] / "held_out.json", found)
    assert rows_of([place]) is None
    assert rows_of([(tmp_path / "nowhere", 4)]) is None


def test_other_rows_are_not_compared() -> None:
    rows = {("x", i): (float(i), 2) for i in range(9)}
    assert difference(rows, rows) is not None
    assert difference(rows, {("y", i): (float(i), 2) for i in range(9)}) is None
    assert difference(rows, {("x", i): (float(i), 3) for i in range(9)}) is None, "of other lengths"
    assert difference(rows, {**rows, ("x", 3): (math.nan, 2)}) is None
    assert difference(None, rows) is None
