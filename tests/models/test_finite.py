"""A base whose weights cannot be anybody's is refused by name."""

from pathlib import Path

import mlx.core as mx
import pytest

import mlxmath.models.checks as finite
from mlxmath.errors import MlxmathError
from mlxmath.models.checks import check_finite
from mlxmath.models.load import load_model
from tests.models.architectures import write

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e38])
def test_a_base_with_a_weight_that_is_none_does_not_load(tmp_path: Path, value: float) -> None:
    folder = write("llama", tmp_path)
    load_model(folder, "float32")
    arrays = mx.load(str(folder / "model.safetensors"))
    mx.eval(arrays)
    arrays[NAME][-1, -1] = value
    mx.save_safetensors(str(folder / "model.safetensors"), arrays, metadata={"format": "mlx"})
    with pytest.raises(MlxmathError, match=rf"llama is damaged or its training diverged: {NAME} holds"):
        load_model(folder, "float32")


def test_every_part_is_looked_at_and_whole_numbers_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite, "_AT_A_TIME", 7)
    arrays = {"a": mx.zeros((5, 5)), "packed": mx.full((3,), 2**32 - 1, mx.uint32), "empty": mx.zeros((0,))}
    check_finite(Path("x"), arrays)
    for place in range(25):
        flat = [0.0] * 25
        flat[place] = float("nan")
        with pytest.raises(MlxmathError, match="a holds nan"):
            check_finite(Path("x"), arrays | {"a": mx.array(flat).reshape(5, 5)})


def test_many_are_named_in_short() -> None:
    with pytest.raises(MlxmathError, match=r"w0 holds inf.*w4 holds inf and 4 more") as error:
        check_finite(Path("x"), {f"w{i}": mx.full((2,), float("inf"), mx.bfloat16) for i in range(9)})
    assert "w5" not in str(error.value)
