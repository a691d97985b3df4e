"""Drawing: the inverse of the cumulative distribution, the same in NumPy and in MLX's operations."""

import mlx.core as mx
import numpy as np
import pytest

from mlxmath.errors import InputError
from mlxmath.generation import sampling
from mlxmath.generation.sampling import Sampling, draw, uniforms

LOGITS = np.random.default_rng(0).standard_normal((200, 50)).astype(np.float32) * 3
NUMBERS = np.random.default_rng(1).random(200)


def expected(temperature: float) -> tuple[np.ndarray, np.ndarray]:
    scaled = LOGITS.astype(np.float64) / temperature
    probabilities = np.exp(scaled) / np.exp(scaled).sum(axis=1, keepdims=True)
    tokens = (np.cumsum(probabilities, axis=1) <= NUMBERS[:, None]).sum(axis=1)
    return tokens, np.log(probabilities[np.arange(200), tokens])


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("device", ["cpu", "other"])
def test_a_token_is_where_its_number_falls(temperature: float, device: str) -> None:
    logits = mx.array(LOGITS)
    tokens, logprobs = (
        draw(logits, NUMBERS, Sampling(temperature=temperature), logprobs=True)
        if device == "cpu"
        else sampling._draw_mlx(logits, mx.array(NUMBERS.astype(np.float32)), temperature)
    )
    wanted, values = expected(temperature)
    np.testing.assert_array_equal(np.array(tokens), wanted)
    np.testing.assert_allclose(np.array(logprobs), values, atol=1e-5)


def test_greedy_takes_the_most_likely() -> None:
    best = LOGITS.argmax(axis=1)
    log_best = LOGITS.max(axis=1) - np.log(np.exp(LOGITS.astype(np.float64)).sum(axis=1))
    for tokens, logprobs in (
        draw(mx.array(LOGITS), NUMBERS, Sampling(), logprobs=True),
        sampling._draw_mlx(mx.array(LOGITS), mx.array(NUMBERS), 0.0),
    ):
        np.testing.assert_array_equal(np.array(tokens), best)
        np.testing.assert_allclose(np.array(logprobs), log_best, atol=1e-5)
    np.testing.assert_array_equal(np.array(draw(mx.array(LOGITS), NUMBERS, Sampling())[0]), best)


@pytest.mark.parametrize("temperature", [5e-324, 1e-40, 1e-30])
@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_next_to_no_temperature_takes_the_most_likely(temperature: float, top_p: float) -> None:
    found = draw(mx.array(LOGITS), NUMBERS, Sampling(temperature=temperature, top_p=top_p))[0]
    np.testing.assert_array_equal(np.array(found), LOGITS.argmax(axis=1))


@pytest.mark.parametrize("temperature", [float("nan"), float("inf"), -1.0])
def test_a_temperature_that_is_no_number_is_refused(temperature: float) -> None:
    with pytest.raises(InputError, match="--temperature: expected a number"):
        Sampling(temperature=temperature)


@pytest.mark.parametrize("number", [0.0, 1 - 2.0**-53])
def test_the_ends_of_the_interval_draw_nothing_impossible(number: float) -> None:
    logits = np.array([[-np.inf, -np.inf, 1, 1, -np.inf, -np.inf]], np.float32)
    found = [
        draw(mx.array(logits), np.array([number]), Sampling(temperature=1.0))[0].item(),
        sampling._draw_mlx(mx.array(logits), mx.array([number]), 1.0)[0].item(),
    ]
    assert found[0] == (2 if number == 0 else 3) and found[1] in (2, 3)


def test_the_numbers_are_uniform_and_each_sequences_own() -> None:
    seeds = np.array([0, 1, 2**64 - 1], np.uint64)
    drawn = np.stack([uniforms(seeds, np.full(3, i, np.uint64)) for i in range(20_000)])
    assert drawn.min() >= 0 and drawn.max() < 1
    for of_one in drawn.T:
        observed = np.bincount((of_one * 20).astype(int), minlength=20)
        assert ((observed - 1000) ** 2 / 1000).sum() < 19 + 5 * np.sqrt(2 * 19)
        assert abs(np.corrcoef(of_one[1:], of_one[:-1])[0, 1]) < 0.04
    assert np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.04
    assert uniforms(seeds[1:2], np.array([7], np.uint64))[0] == drawn[7, 1]
