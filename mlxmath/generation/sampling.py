"""Drawing tokens: one uniform number each, looked up in the cumulative distribution.

MLX's `random.categorical` takes a random number and two logarithms for each entry of the vocabulary, on a CPU as long
as the model itself takes.

Shapes: B sequences, V vocabulary.
"""

import math
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx_lm.sample_utils import apply_top_p
from numpy.typing import NDArray

from mlxmath.errors import InputError
from mlxmath.models.kernels.cpu import view
from mlxmath.models.kernels.portable import log_sum_exp

_COLDEST = 1e-30
"""Temperatures below it, but for 0, have no inverse in float32."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: steps by it do not repeat within 2**64


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 takes the most likely one; `top_p` 1 keeps the whole distribution."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for option, found, is_right, expected in (
            ("--max-new-tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1"),
            ("--temperature", self.temperature, 0 <= self.temperature < math.inf, "a number, 0 or more"),
            ("--top-p", self.top_p, 0 < self.top_p <= 1, "more than 0 and at most 1"),
        ):
            if not is_right:
                raise InputError(f"{option}: expected {expected}, found {found}")


def uniforms(seeds_B: NDArray[np.uint64], numbers_B: NDArray[np.uint64]) -> NDArray[np.float64]:
    """(B,) in [0, 1), made of each sequence's seed and its token's number (splitmix64; Steele et al. 2014)."""
    z = seeds_B + (numbers_B + np.uint64(1)) * _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw(
    logits_BV: mx.array, uniforms_B: NDArray[np.float64], sampling: Sampling, *, logprobs: bool = False
) -> tuple[mx.array, mx.array]:
    """A token of each row, (B,), and its log-probability, (B,), under the distribution at the temperature.

    Greedy ones are at temperature 1. Without `logprobs` they may be anything. On a CPU the logits are overwritten.
    """
    logits_BV = logits_BV.astype(mx.float32)
    temperature = sampling.temperature and max(sampling.temperature, _COLDEST)
    if temperature and sampling.top_p < 1:
        logits_BV = apply_top_p(logits_BV - log_sum_exp(logits_BV, keepdims=True), sampling.top_p)
    if mx.default_device() != mx.Device(mx.cpu, 0):
        return _draw_mlx(logits_BV, mx.array(uniforms_B.astype(np.float32)), temperature)
    if not temperature and not logprobs:
        tokens_B = mx.argmax(logits_BV, axis=-1).astype(mx.int32)
        return tokens_B, mx.zeros(tokens_B.shape)
    found = [_draw_row(row, u, temperature) for row, u in zip(view(logits_BV), uniforms_B, strict=True)]
    tokens, values = zip(*found, strict=True)
    return mx.array(tokens, mx.int32), mx.array(values, mx.float32)


def _draw_row(row: NDArray[np.float32], uniform: float, temperature: float) -> tuple[int, float]:
    """See `draw`. Overwrites the row."""
    token = int(row.argmax())
    row -= row[token]
    if temperature not in (0, 1):
        row *= np.float32(1 / temperature)
    probabilities = np.exp(row)
    if not temperature:
        return token, -float(np.log(probabilities.sum(dtype=np.float64)))
    sums = np.cumsum(probabilities, dtype=np.float64)
    token = min(int(np.searchsorted(sums, uniform * sums[-1], side="right")), len(row) - 1)
    return token, float(row[token] - np.log(sums[-1]))


def _draw_mlx(logits_BV: mx.array, uniforms_B: mx.array, temperature: float) -> tuple[mx.array, mx.array]:
    tokens_B = mx.argmax(logits_BV, axis=-1)
    logits_BV = (logits_BV - logits_BV.max(axis=-1, keepdims=True)) / (temperature or 1.0)
    if temperature:
        sums_BV = mx.cumsum(mx.exp(logits_BV), axis=-1)
        count_B = (sums_BV <= uniforms_B[:, None] * sums_BV[:, -1:]).sum(axis=-1)
        tokens_B = mx.where(count_B < logits_BV.shape[-1], count_B, tokens_B)  # if a product was rounded up to the sum
    tokens_B = tokens_B.astype(mx.int32)
    chosen_B = mx.take_along_axis(logits_BV, tokens_B[:, None], axis=-1).squeeze(-1)
    return tokens_B, chosen_B - mx.logsumexp(logits_BV, axis=-1)
