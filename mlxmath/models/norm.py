"""RMSNorm on a CPU, where MLX's sums of rows take as long as all the rest of it.

Shapes: D width.
"""

from functools import lru_cache

import mlx.core as mx
import mlx.nn as nn


class SummedRMSNorm(nn.RMSNorm):
    """RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467), y = w ∘ x / √(mean x² + ε), with rows summed by a product."""

    def __call__(self, x: mx.array) -> mx.array:
        """Normalize (…, D)."""
        if x.dtype != mx.float32 or self.weight.dtype != mx.float32:
            return super().__call__(x)
        normalized: mx.array = x * mx.rsqrt(mx.square(x) @ _mean(x.shape[-1]) + self.eps) * self.weight
        return normalized


def use_products_for_norms(model: nn.Module) -> None:
    """Let all plain RMSNorms of a model sum by products."""
    for module in model.modules():
        if type(module) is nn.RMSNorm:
            module.__class__ = SummedRMSNorm


@lru_cache(64)
def _mean(width: int) -> mx.array:
    """(D, 1): what a product with makes a row's mean."""
    mean_D1 = mx.full((width, 1), 1 / width)
    mx.eval(mean_D1)
    return mean_D1
