"""Decoders side by side: what is drawn is what one of them draws."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlxmath.generation import lanes
from mlxmath.generation.engine import Completion, Sampling, generate_batch
from mlxmath.generation.lanes import num_lanes
from mlxmath.models import cpu_decoding
from mlxmath.runtime.blas import can_limit_threads
from tests.conftest import make_tiny_llama
from tests.generation.words import model, tokenizer

__all__ = ["model", "tokenizer"]

pytestmark = pytest.mark.skipif(
    not can_limit_threads() or mx.default_device() != mx.Device(mx.cpu, 0), reason="lanes are for a CPU with OpenBLAS"
)
_random = np.random.default_rng(5)
PROMPTS = [_random.integers(1, 60, 2 + i % 7).tolist() for i in range(30)]
PROMPTS += [[9, 8, 7]] * 12 + [[9, 8, 7, 6]] * 3
"""Of several lengths, and groups of equal ones."""


def drawn(
    monkeypatch: pytest.MonkeyPatch, model: Any, tokenizer: TokenizerWrapper, cores: int, sampling: Sampling, most: int
) -> list[Completion]:
    monkeypatch.setattr(lanes, "num_usable_cores", lambda: cores)
    lanes._threads.cache_clear()
    logprobs = bool(sampling.temperature)
    return generate_batch(model, tokenizer, PROMPTS, sampling, concurrency=most, logprobs=logprobs)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("cores", "most"), [(2, 64), (3, 24)])
def test_lanes_draw_what_one_decoder_draws(
    monkeypatch: pytest.MonkeyPatch, model: Any, tokenizer: TokenizerWrapper, cores: int, most: int, temperature: float
) -> None:
    sampling = Sampling(14, temperature=temperature, seed=2)
    expected = drawn(monkeypatch, model, tokenizer, 1, sampling, most)
    made: list[int] = []
    usual = lanes.Lanes.__init__
    monkeypatch.setattr(lanes.Lanes, "__init__", lambda self, *a: (made.append(a[1]), usual(self, *a))[1])
    found = drawn(monkeypatch, model, tokenizer, cores, sampling, most)
    assert made == [cores]
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    assert len({len(one.tokens) for one in found}) > 3  # they end at different times
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=2e-5)
    assert found == drawn(monkeypatch, model, tokenizer, cores, sampling, most)  # to the last bit


def test_few_sequences_and_other_ways_have_one_lane(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    monkeypatch.setattr(lanes, "num_usable_cores", lambda: 4)
    assert [num_lanes(model, count) for count in (1, 15, 16, 31, 32, 500)] == [1, 1, 2, 3, 4, 4]
    monkeypatch.setattr(cpu_decoding, "unsupported", lambda _: "its device is no CPU")
    assert num_lanes(model, 500) == 1


def test_what_fails_in_a_lane_is_raised_and_leaves_the_next_call_alone(
    monkeypatch: pytest.MonkeyPatch, tokenizer: TokenizerWrapper
) -> None:
    model, sampling = make_tiny_llama(seed=3), Sampling(6)
    expected = drawn(monkeypatch, model, tokenizer, 2, sampling, 64)
    usual, calls = lanes.Decoder.step, []

    def failing(self: Any) -> Any:
        calls.append(0)
        if len(calls) == 4:
            raise MemoryError("no room")
        return usual(self)

    monkeypatch.setattr(lanes.Decoder, "step", failing)
    with pytest.raises(MemoryError, match="no room"):
        drawn(monkeypatch, model, tokenizer, 2, sampling, 64)
    monkeypatch.setattr(lanes.Decoder, "step", usual)
    assert drawn(monkeypatch, model, tokenizer, 2, sampling, 64) == expected
