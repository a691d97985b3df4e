"""Rotary embeddings and RMSNorm in few passes against MLX's own, and their gradients against its autodiff."""

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlxmath.models.few_passes import SummedRMSNorm, TabledRoPE, use_few_passes


def both(**settings: float) -> tuple[nn.RoPE, nn.RoPE]:
    model = nn.Sequential(nn.RoPE(8, **settings))
    use_few_passes(model)
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


@pytest.mark.parametrize("shape", [(1, 1, 8), (2, 33, 512), (3, 5, 7, 64)])
def test_norm(shape: tuple[int, ...]) -> None:
    plain = nn.RMSNorm(shape[-1], eps=1e-3)
    plain.weight = mx.random.normal((shape[-1],), key=mx.random.key(0))
    model = nn.Sequential(nn.RMSNorm(shape[-1], eps=1e-3))
    model.layers[0].weight = plain.weight
    use_few_passes(model)
    few: nn.RMSNorm = model.layers[0]
    assert type(few) is SummedRMSNorm
    x, cotangent = (mx.random.normal(shape, key=mx.random.key(i)) * 3 for i in (1, 2))

    def results(norm: nn.RMSNorm) -> list[mx.array]:
        def of(a: mx.array, weight: mx.array) -> mx.array:
            norm.weight = weight
            return norm(a)

        weight = norm.weight
        outputs, gradients = mx.vjp(of, [x, weight], [cotangent])
        norm.weight = weight
        return [*outputs, *gradients]

    for found, expected in zip(results(few), results(plain), strict=True):
        assert mx.allclose(found, expected, rtol=1e-5, atol=2e-5 * mx.abs(expected).max().item())
    half = x.astype(mx.bfloat16)
    assert mx.array_equal(few(half), plain(half))
