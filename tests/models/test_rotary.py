"""Rotary embeddings by tables against MLX's own, and their gradient against its autodiff."""

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlxmath.models.rotary import TabledRoPE, use_tables


def both(**settings: float) -> tuple[nn.RoPE, nn.RoPE]:
    model = nn.Sequential(nn.RoPE(8, **settings))
    use_tables(model)
    (tabled,) = (module for module in model.modules() if isinstance(module, nn.RoPE))
    assert type(tabled) is TabledRoPE
    return tabled, nn.RoPE(8, **settings)


@pytest.mark.parametrize("settings", [{}, {"base": 1e6, "scale": 0.25}, {"traditional": True}])
@pytest.mark.parametrize("width", [8, 12])
@pytest.mark.parametrize("offset", [0, 5])
def test_tables_change_no_bit(settings: dict[str, float], width: int, offset: int) -> None:
    tabled, plain = both(**settings)
    x, cotangent = (mx.random.normal((2, 33, 3, width), key=mx.random.key(i)).swapaxes(1, 2) for i in (0, 1))
    for given in (x, x[:, :, :1], x[0]):
        assert mx.array_equal(tabled(given, offset), plain(given, offset))
    found, expected = (mx.vjp(lambda a, f=f: f(a, offset), [x], [cotangent])[1][0] for f in (tabled, plain))
    assert mx.array_equal(found, expected)


def test_offsets_of_rows_and_16_bit_numbers() -> None:
    tabled, plain = both()
    x = mx.random.normal((2, 3, 4, 8), key=mx.random.key(0))
    for offset in (mx.array([1, 4]), mx.array(2)):
        assert mx.array_equal(tabled(x, offset), plain(x, offset))
    half = x.astype(mx.bfloat16)
    assert mx.array_equal(tabled(half), plain(half))
