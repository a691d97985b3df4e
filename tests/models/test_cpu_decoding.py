"""Decoding with the CPU's own kernels: what mlx_lm's forward pass gives, however prompts are divided and rows move."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlxmath.generation.decode import Decoder, prefilled_prefix
from mlxmath.generation.sampling import Sampling
from mlxmath.models import cpu_decoding
from mlxmath.models.cpu_decoding import _divided, unsupported
from mlxmath.runtime.blas import num_usable_cores
from tests.conftest import make_tiny_llama
from tests.models.adapted import adapted

PREFIX, SIZES = list(range(20, 33)), {"a": 11, "b": 7, "c": 7, "d": 3, "e": 2}


def drawn(decoder: Decoder, names: list[str], count: int) -> dict[str, tuple[list[int], list[float]]]:
    """The next tokens of each sequence, by its name, and their log-probabilities."""
    steps = [decoder.step() for _ in range(count)]
    return {name: ([step[0][i] for step in steps], [step[1][i] for step in steps]) for i, name in enumerate(names)}


def check(model: nn.Module, prompt: list[int], tokens: list[int], logprobs: list[float]) -> None:
    """Against one forward pass over everything."""
    logits_LV = np.array(model(mx.array([prompt + tokens])), np.float64)[0, len(prompt) - 1 : -1]
    wanted = logits_LV - np.log(np.exp(logits_LV).sum(-1, keepdims=True))
    np.testing.assert_allclose(logprobs, wanted[np.arange(len(tokens)), tokens], atol=1e-4)
    assert (wanted.max(-1) - wanted[np.arange(len(tokens)), tokens] < 1e-4).all()


@pytest.mark.parametrize("begins_alike", [False, True])
@pytest.mark.parametrize("make", [make_tiny_llama, lambda: adapted("qwen3")])
def test_rows_of_divided_prompts_join_and_leave(make: Any, begins_alike: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are so small that each text is in one of its own, and is itself read in several pieces."""
    monkeypatch.setattr(cpu_decoding, "PART_TOKENS", 4)
    monkeypatch.setattr(cpu_decoding, "_LEAST", 1)
    model = make()
    model.eval()
    assert unsupported(model) is None
    rng = np.random.default_rng(1)
    before = PREFIX if begins_alike else []
    prompts = {name: before + rng.integers(64, size=size).tolist() for name, size in SIZES.items()}
    prefix = prefilled_prefix(model, PREFIX) if begins_alike else None
    decoder = Decoder(model, Sampling(80), logprobs=True, shares=True, **({"prefix": prefix} if prefix else {}))
    assert decoder.joins_cheaply
    decoder.add([prompts[name] for name in "abc"], [0] * 3)
    first = drawn(decoder, ["a", "b", "c"], 3)
    decoder.keep([2, 1])  # the last one moves to the place of the first one
    decoder.add([prompts[name] for name in "de"], [0] * 2)
    later = drawn(decoder, ["c", "b", "d", "e"], 70)  # more than the first room for them
    for name, prompt in prompts.items():
        tokens, logprobs = map(list.__add__, first.get(name, ([], [])), later.get(name, ([], [])))
        check(model, prompt, tokens, logprobs)


def test_parts_are_about_equal_and_leave_nothing_out() -> None:
    lengths = sorted(np.random.default_rng(0).integers(60, 180, size=100).tolist(), reverse=True)
    parts = _divided(lengths, num_usable_cores(), cpu_decoding.PART_TOKENS)
    assert [i for part in parts for i in part] == list(range(100))
    tokens = [sum(lengths[i] for i in part) for part in parts]
    assert max(len(part) * lengths[part.start] for part in parts) <= 1.2 * cpu_decoding.PART_TOKENS
    assert max(tokens) < 1.5 * min(tokens)
    few = [_divided(lengths, 2, 1024) for lengths in ([0, 0], [5], [0, 900, 0, 0])]
    assert few[:2] == [[range(2)], [range(1)]] and few[2][-1].stop == 4


def test_what_it_is_not_made_for_says_why() -> None:
    model = make_tiny_llama()
    model.is_spread = True
    assert unsupported(model) == "it is spread over several processes"
    model = make_tiny_llama()
    model.set_dtype(mx.bfloat16)
    assert unsupported(model) == "it does not compute in float32"
    own_attention = adapted("gemma2")
    own_attention.eval()
    assert unsupported(own_attention) is not None
