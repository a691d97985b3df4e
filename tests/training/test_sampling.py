"""Rollouts: their log-probabilities are the model's, their frequencies too, whatever shares the batch."""

# ruff: noqa: F401, F811

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from scipy.stats import chisquare

from mlxmath.config.methods import GrpoConfig
from mlxmath.generation.engine import Sampling, generate_batch, stream
from mlxmath.training.grpo.sampling import Prompt, roll_out
from tests.conftest import make_tiny_llama
from tests.generation.words import EOS, PROMPTS, model, tokenizer

Model = Any


def prompts(rows: list[list[int]]) -> list[Prompt]:
    return [Prompt(i, "", "", tuple(tokens)) for i, tokens in enumerate(rows)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_a_fresh_forward_pass(model: Model, tokenizer: TokenizerWrapper, temperature: float) -> None:
    config = GrpoConfig(num_generations=3, max_completion_length=12, temperature=temperature)
    found = roll_out(model, tokenizer, prompts(PROMPTS), config, seed=0, step=0, concurrency=4)
    assert len(found) == 3 * len(PROMPTS)
    assert {completion.finish_reason for completion in found} == {"stop", "length"}
    for i, completion in enumerate(found):
        prompt, drawn = PROMPTS[i // 3], list(completion.drawn)
        assert drawn == list(completion.tokens) + [EOS] * (completion.finish_reason == "stop")
        logits = np.array(model(mx.array([prompt + drawn])))[0, len(prompt) - 1 : -1].astype(np.float64) / temperature
        expected = logits[np.arange(len(drawn)), drawn] - np.log(np.exp(logits).sum(-1))
        np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)


def test_frequencies_are_the_distribution(tokenizer: TokenizerWrapper) -> None:
    model = make_tiny_llama()
    model.lm_head.weight = model.lm_head.weight * 3
    number, temperature = 4000, 0.8
    config = GrpoConfig(num_generations=number, max_completion_length=1, temperature=temperature)
    found = roll_out(model, tokenizer, prompts([[1, 2, 3]]), config, seed=3, step=1, concurrency=500)
    counts = np.bincount([completion.drawn[0] for completion in found], minlength=64)
    logits = np.array(model(mx.array([[1, 2, 3]])))[0, -1].astype(np.float64) / temperature
    expected = np.exp(logits) / np.exp(logits).sum() * number
    assert chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-3
    untempered = np.exp(logits * temperature)
    assert chisquare(counts, untempered / untempered.sum() * number).pvalue < 1e-6  # the test can tell


def test_what_is_drawn_does_not_depend_on_the_batch(model: Model, tokenizer: TokenizerWrapper) -> None:
    config = GrpoConfig(num_generations=2, max_completion_length=10)
    asked = prompts(PROMPTS)
    together = roll_out(model, tokenizer, asked, config, seed=0, step=5, concurrency=12)
    apart = [c for one in asked for c in roll_out(model, tokenizer, [one], config, seed=0, step=5, concurrency=1)]
    assert [c.drawn for c in together] == [c.drawn for c in apart]
    later = roll_out(model, tokenizer, asked, config, seed=0, step=6, concurrency=12)
    assert [c.drawn for c in together] != [c.drawn for c in later]
    assert any(together[2 * i].drawn != together[2 * i + 1].drawn for i in range(len(PROMPTS)))
