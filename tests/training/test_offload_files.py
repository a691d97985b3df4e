"""Training with the base on the disk, whose files do not stay what they were."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlxmath.api import sft
from mlxmath.errors import MlxmathError


def cut(weights: Path) -> None:
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size // 2)


def replace_by_another(weights: Path) -> None:
    """As a conversion does: another file of the same name and size."""
    other = weights.with_name("other")
    bits = bytearray(weights.read_bytes())
    bits[-4:] = bytes(4)
    other.write_bytes(bits)
    other.replace(weights)


@pytest.mark.parametrize(("damage", "said"), [(cut, "truncated"), (replace_by_another, "has been changed")])
def test_a_file_that_is_not_what_it_was_ends_the_run(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None], said: str
) -> None:
    monkeypatch.chdir(prepared)
    weights = prepared / "mlx_model" / "model.safetensors"

    def callback(event: Any) -> None:
        if event["event"] == "step" and event["step"] == 3:
            damage(weights)

    settings = {"dataset": "demo", "model": "demo", "max_steps": 6, "num_examples": 10, "save_every": 2}
    with pytest.raises(MlxmathError, match=said):
        sft(callback=callback, offload="on", **settings)
    checkpoint = prepared / "adapters" / "checkpoints" / "step-2"
    assert checkpoint.is_dir() and not (prepared / "adapters" / "checkpoints" / "step-4").exists()
