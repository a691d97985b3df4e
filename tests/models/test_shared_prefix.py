"""Prompts held once: the same tokens and log-probabilities as a full forward pass, whoever joins and leaves."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlxmath.generation import engine
from mlxmath.generation.decode import Decoder
from mlxmath.generation.engine import Completion, Sampling, generate_batch
from mlxmath.models import cpu_decoding, shared_prefix
from mlxmath.models.shared_prefix import GROWTH, Groups, cannot_share_prefixes, without_gaps
from tests.conftest import make_tiny_llama
from tests.generation.words import tokenizer
from tests.models import architectures
from tests.models.adapted import adapted, make

__all__ = ["tokenizer"]
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [60, 61, 62, 1, 2]]


def logprobs_of(model: Any, prompt: list[int], drawn: list[int], temperature: float) -> np.ndarray:
    """By one forward pass over everything."""
    logits = np.array(model(mx.array([prompt + drawn])).astype(mx.float32))[0, len(prompt) - 1 : -1] / temperature
    logits = logits.astype(np.float64)
    return logits[np.arange(len(drawn)), drawn] - np.log(np.exp(logits).sum(-1))


def drawn(
    model: nn.Module, tokenizer: TokenizerWrapper, prompts: list[list[int]], sampling: Sampling, **more: Any
) -> list[Completion]:
    """Completions, with log-probabilities that are those of one forward pass."""
    found = generate_batch(model, tokenizer, prompts, sampling, logprobs=True, **more)
    for prompt, completion in zip(prompts, found, strict=True):
        expected = logprobs_of(model, prompt, list(completion.drawn), sampling.temperature)
        np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)
    return found


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "phi3"])
def test_rows_that_join_and_leave_draw_from_the_models_distribution(
    family: str, tokenizer: TokenizerWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(family) if family == "phi3" else adapted(family)
    model.eval()
    assert cannot_share_prefixes(model) is None
    prompts = [prompt for prompt, count in zip(PROMPTS, (5, 1, 4), strict=True) for _ in range(count)]
    sampling = Sampling(70, temperature=0.8)
    assert sampling.max_new_tokens > GROWTH
    found = drawn(model, tokenizer, prompts, sampling, concurrency=4)
    lengths = {len(completion.drawn) for completion in found}
    assert len(lengths) > 3 and {c.finish_reason for c in found} == {"stop", "length"}
    for place, name in ((engine, "cannot_share_prefixes"), (cpu_decoding, "unsupported")):
        monkeypatch.setattr(place, name, lambda _: "not now")
    apart = generate_batch(model, tokenizer, prompts, sampling, concurrency=4, logprobs=True)
    assert [completion.drawn for completion in apart] == [completion.drawn for completion in found]


def test_a_common_beginning_too(tokenizer: TokenizerWrapper) -> None:
    model = make_tiny_llama()
    common = list(range(20, 30))
    prompts = [common + own for own in ([1], [2, 3], [2, 3], [1])]
    drawn(model, tokenizer, prompts, Sampling(9, temperature=1.0))


@pytest.mark.parametrize("in_numpy", [True, False])
def test_a_prompt_is_held_once_and_only_while_it_is_wanted(in_numpy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_tiny_llama()
    assert cannot_share_prefixes(model) is None and cpu_decoding.unsupported(model) is None
    if not in_numpy:
        monkeypatch.setattr(cpu_decoding, "unsupported", lambda _: "not now")
    decoder = Decoder(model, Sampling(20), shares=True)

    def shapes() -> tuple[tuple[int, ...], tuple[int, ...]]:
        layer = decoder._caches.layers[0]
        if in_numpy:
            return layer._prompts.both[0].shape[:3:2], layer._own.both[0].shape[:3:2]
        return layer.prompts.keys_and_values()[0].shape[:3:2], layer._own.keys_and_values()[0].shape[:3:2]

    first, second = [5, 6, 7, 8], [1, 2, 3, 4, 5, 6]
    decoder.add([first] * 3, [1, 2, 3])
    assert shapes() == ((1, 3), (3, 1))
    decoder.step()
    decoder.add([first, second, second], [4, 5, 6])
    assert shapes() == ((2, 5), (6, 2))  # three tokens of the first prompt were padded
    decoder.keep([4, 5])
    assert shapes() == ((1, 5), (2, 1))
    assert in_numpy or decoder._caches.layers[0]._own.keys.shape[2] <= 21


def test_memory_is_that_of_one_prompt_and_the_completions(tokenizer: TokenizerWrapper) -> None:
    model = make_tiny_llama()
    assert cannot_share_prefixes(model) is None
    prompt, num_rows, num_new = [3] * 100, 100, 8

    def above() -> int:
        mx.synchronize()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        generate_batch(model, tokenizer, [prompt] * num_rows, Sampling(num_new, temperature=1.0))
        return mx.get_peak_memory() - before

    a_token = 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, width, bytes
    assert 2 * above() < num_rows * len(prompt) * a_token


def test_groups_of_rows() -> None:
    groups = Groups(((1,), (2,), (3,)), np.array([2, 0, 2, 1, 2]))
    x = mx.arange(5 * 2 * 3 * 4, dtype=mx.float32).reshape(5, 2, 3, 4)
    by_prompt = groups.by_prompt(x)
    assert by_prompt.shape == (3, 2, 9, 4)
    np.testing.assert_array_equal(np.array(by_prompt[2, :, 3:6]), np.array(x[2]))  # its second row is row 2
    np.testing.assert_array_equal(np.array(groups.by_row(by_prompt)), np.array(x))
    even = Groups(((1,), (2,)), np.array([0, 0, 1, 1]))
    np.testing.assert_array_equal(np.array(even.by_row(even.by_prompt(x[:4]))), np.array(x[:4]))
    kept, numbers = groups.kept([2, 3])
    assert numbers == [2, 1] and kept.prompts == ((3,), (2,)) and kept.of_rows.tolist() == [0, 1]
    joined, new = kept.joined(groups)
    assert new == [0] and joined.prompts == ((3,), (2,), (1,)) and joined.of_rows.tolist() == [0, 1, 0, 2, 0, 1, 0]


def test_gaps_are_filled_with_the_last_ones() -> None:
    assert without_gaps([0, 1, 3, 6, 7]) == [0, 1, 7, 3, 6]
    assert without_gaps([]) == [] and without_gaps([4]) == [4] and without_gaps([0, 1]) == [0, 1]


def test_what_cannot_share_says_why_and_is_decoded_all_the_same(tokenizer: TokenizerWrapper) -> None:
    own_attention: nn.Module = adapted("gemma2")
    own_attention.eval()
    assert cannot_share_prefixes(own_attention) is not None
    windowed = make_tiny_llama(layer_types=["full_attention", "sliding_attention"], sliding_window=4)
    assert "all positions" in (cannot_share_prefixes(windowed) or "")
    prompts = [PROMPTS[0]] * 3 + [PROMPTS[2]]
    drawn(windowed, tokenizer, prompts, Sampling(6, temperature=1.0))


def test_roundings_of_16_bits_are_no_reason_to_hold_a_prompt_for_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on GPUs, where models compute in bfloat16: some of a token's logits are near zero, the others as they may."""
    model, _ = architectures.make("llama")
    model.lm_head.weight = 100 * model.lm_head.weight
    model.set_dtype(mx.bfloat16)
    model.eval()
    monkeypatch.setattr(shared_prefix, "_TRIED", {})
    assert cannot_share_prefixes(model) is None
    attend = shared_prefix.SharedPrefixCache.attend
    halved = lambda self, *given, **more: 0.5 * attend(self, *given, **more)  # noqa: E731
    monkeypatch.setattr(shared_prefix.SharedPrefixCache, "attend", halved)
    monkeypatch.setattr(shared_prefix, "_TRIED", {})
    assert "see more" in (cannot_share_prefixes(model) or "")
