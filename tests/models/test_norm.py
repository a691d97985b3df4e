"""RMSNorm summed by products against MLX's own, and its gradients against its autodiff."""

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlxmath.models.norm import SummedRMSNorm, use_products_for_norms


@pytest.mark.parametrize("shape", [(1, 1, 8), (2, 33, 512), (3, 5, 7, 64)])
def test_norm(shape: tuple[int, ...]) -> None:
    plain = nn.RMSNorm(shape[-1], eps=1e-3)
    plain.weight = mx.random.normal((shape[-1],), key=mx.random.key(0))
    model = nn.Sequential(nn.RMSNorm(shape[-1], eps=1e-3))
    model.layers[0].weight = plain.weight
    use_products_for_norms(model)
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
