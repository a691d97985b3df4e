"""Real data outside the repository; tests that need it are skipped where it is absent."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).parents[3] / "shared" / "data"


@cache
def rows(name: str) -> list[dict[str, Any]]:
    """A JSONL file's rows; skips the test if the file is not there."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def gsm8k(split: str) -> list[dict[str, Any]]:
    return rows(f"gsm8k/{split}.jsonl")
