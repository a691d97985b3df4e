"""FLOPs of a training token, counted by hand."""

from typing import Any

import pytest

from mlxmath.config.load import resolve
from mlxmath.models.memory import ModelShape
from mlxmath.models.speed import flops_per_token

SHAPE = ModelShape(layers=3, hidden=4, feed_forward=6, heads=2, kv_heads=1, head_width=2, vocab=10, tied=True)
BLOCK = 4 * 4 + 2 * 4 * 2 + 4 * 4 + 3 * 4 * 6
HEAD = 4 * 10 * 4


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (2 + 2) * 3 * BLOCK + HEAD),
        ({"lora.num_layers": 1}, (2 * 3 + 2) * BLOCK + HEAD),
        ({"training.full": True}, (2 + 4) * 3 * BLOCK + HEAD),
        ({"training.grad_checkpoint": 1}, (2 + 2 + 2) * 3 * BLOCK + HEAD),
        ({"training.grad_checkpoint": 2}, ((2 + 2) * 3 + 2 * 2) * BLOCK + HEAD),
    ],
)
def test_by_hand(settings: dict[str, Any], expected: float) -> None:
    assert flops_per_token(SHAPE, resolve([("test", settings)]).config) == expected
