"""Batches, in threads and in processes."""

from pathlib import Path

import numpy as np
import pytest

from mlxmath.config.schema import DataConfig
from mlxmath.data import tokenize as module
from mlxmath.data.codec import load_tokenizer
from mlxmath.data.problem import Problem
from mlxmath.data.templates import get_template
from mlxmath.data.tokenize import tokenize

DEMO_MODEL = Path(__file__).parents[2] / "mlxmath" / "demo" / "model"


def test_processes_give_what_threads_give(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [Problem(str(i), f"Add {i} and 2.", solution=f"{i} + 2 = {i + 2}" if i % 7 else None) for i in range(60)]
    monkeypatch.setattr(module, "BATCH_ROWS", 8)
    results = []
    for from_batches in (100, 3):
        monkeypatch.setattr(module, "PROCESSES_FROM", from_batches)
        tokenizer = load_tokenizer(DEMO_MODEL)
        results.append(list(tokenize(problems, get_template("tutor"), DataConfig(max_seq_len=64), tokenizer)))
    threads, processes = results
    assert len(threads) == len(processes) == 8
    for (rows, counts), (others, other_counts) in zip(threads, processes, strict=True):
        assert counts == other_counts
        for array, other in zip(rows, others, strict=True):
            np.testing.assert_array_equal(array, other)
    assert [counts["problems"] for _, counts in processes] == [8] * 7 + [4]
    assert sum(count for _, counts in processes for name, count in counts.items() if "skipped" in name) == 9
