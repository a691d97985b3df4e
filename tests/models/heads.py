"""Heads of every kind: tied or not, quantized, scaled, with soft caps."""

import mlx.core as mx
import mlx.nn as nn

from mlxmath.models.lm_head import Head

N, D, V = 23, 64, 96


def heads() -> dict[str, Head]:
    mx.random.seed(0)
    linear, biased, embedding = nn.Linear(D, V, bias=False), nn.Linear(D, V), nn.Embedding(V, D)
    return {
        "untied": Head(linear),
        "bias": Head(biased),
        "tied": Head(embedding),
        "soft cap": Head(linear, soft_cap=2.0),
        "scale and bias": Head(biased, scale=0.3),
        "scale and soft cap": Head(linear, soft_cap=2.0, scale=3.0),
        "4 bits": Head(nn.QuantizedLinear.from_linear(linear, 32, 4)),
        "8 bits, tied": Head(nn.QuantizedEmbedding.from_embedding(embedding, 32, 8)),
    }
