"""Generation: batched equals streamed equals mlx_lm; sampling is seeded."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlxmath.errors import InputError
from mlxmath.generation.engine import Completion, Sampling, generate_batch, seed_of, stream
from mlxmath.generation.neighbours import way_of
from mlxmath.models.shared_prefix import cannot_share_prefixes
from tests.conftest import make_tiny_llama
from tests.generation.words import EOS, PROMPTS, model, tokenizer

__all__ = ["model", "tokenizer"]


def reference(model: Any, prompt: list[int], count: int) -> tuple[list[int], str]:
    """Greedy tokens from a full forward pass each time, without any cache."""
    tokens = list(prompt)
    for _ in range(count):
        token = int(mx.argmax(model(mx.array([tokens]))[0, -1]).item())
        if token == EOS:
            return tokens[len(prompt) :], "stop"
        tokens.append(token)
    return tokens[len(prompt) :], "length"


def test_greedy_batch_and_stream_equal_full_forward_passes(model: Any, tokenizer: TokenizerWrapper) -> None:
    sampling = Sampling(max_new_tokens=20)
    done: list[int] = []
    batch = generate_batch(model, tokenizer, PROMPTS, sampling, concurrency=3, on_done=lambda i, _: done.append(i))
    for prompt, completion in zip(PROMPTS, batch, strict=True):
        tokens, reason = reference(model, prompt, 20)
        assert (list(completion.tokens), completion.finish_reason) == (tokens, reason)
        assert completion.num_prompt_tokens == len(prompt)
        *pieces, whole = stream(model, tokenizer, prompt, sampling)
        assert isinstance(whole, Completion)
        assert whole.tokens == completion.tokens and whole.finish_reason == reason
        assert "".join(str(p) for p in pieces) == whole.text == completion.text
    assert {completion.finish_reason for completion in batch} == {"stop", "length"}  # both ways to end occur
    assert sorted(done) == list(range(len(PROMPTS)))
    mlx_lm_tokens = [t for (t, _), _ in zip(generate_step(mx.array(PROMPTS[0]), model), range(5), strict=False)]
    assert mlx_lm_tokens == list(batch[0].tokens[:5]) + ([EOS] if len(batch[0].tokens) < 5 else [])


def test_the_seed_decides_the_text(model: Any, tokenizer: TokenizerWrapper) -> None:
    first, again, other = (
        generate_batch(model, tokenizer, PROMPTS, Sampling(12, temperature=1.0, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again != other


def drawn_first(model: Any, tokenizer: TokenizerWrapper, count: int, sampling: Sampling) -> tuple[list[int], Any]:
    """First tokens of answers to one prompt, and the model's own probabilities at that temperature."""
    completions = generate_batch(model, tokenizer, [[1, 2, 3]] * count, sampling, concurrency=500)
    logits = np.array(model(mx.array([[1, 2, 3]]))[0, -1], np.float64) / sampling.temperature
    weights = np.exp(logits - logits.max())
    return [c.tokens[0] if c.tokens else EOS for c in completions], weights / weights.sum()


def test_sampling_follows_the_distribution(model: Any, tokenizer: TokenizerWrapper) -> None:
    """First tokens of 4,000 samples at temperature 5 against softmax(logits / 5), by a chi-square statistic."""
    first, probabilities = drawn_first(model, tokenizer, 4000, Sampling(1, temperature=5.0, seed=3))
    expected, observed = 4000 * probabilities, np.bincount(first, minlength=64)
    common = expected >= 5
    statistic = ((observed - expected)[common] ** 2 / expected[common]).sum()
    freedom = common.sum() - 1
    assert freedom > 5 and statistic < freedom + 5 * np.sqrt(2 * freedom)  # five standard deviations


def test_top_p_keeps_the_smallest_set_of_that_probability(model: Any, tokenizer: TokenizerWrapper) -> None:
    first, probabilities = drawn_first(model, tokenizer, 500, Sampling(1, temperature=1.0, top_p=0.5, seed=3))
    order = np.argsort(-probabilities)
    kept = set(order[: int(np.searchsorted(np.cumsum(probabilities[order]), 0.5)) + 1].tolist())
    assert set(first) == kept


@pytest.mark.parametrize(
    ("values", "option"),
    [({"temperature": -1.0}, "--temperature"), ({"top_p": 0.0}, "--top-p"), ({"max_new_tokens": 0}, "--max-new-tok")],
)
def test_bad_values_name_their_option(values: dict[str, Any], option: str) -> None:
    with pytest.raises(InputError, match=option):
        Sampling(**values)


def watched(model: Any) -> list[tuple[int, ...]]:
    """The shapes of what goes through the model from now on; what it bears is tried before."""
    shapes: list[tuple[int, ...]] = []
    forward = type(model).__call__

    class Watched(type(model)):  # type: ignore[misc]
        def __call__(self, inputs: mx.array, *arguments: Any, **named: Any) -> Any:
            shapes.append(inputs.shape)
            return forward(self, inputs, *arguments, **named)

    model.__class__ = Watched
    assert way_of(model) == "together" and cannot_share_prefixes(model) is None
    shapes.clear()
    return shapes


def test_a_shared_prefix_changes_nothing_and_goes_through_once(model: Any, tokenizer: TokenizerWrapper) -> None:
    prefix = [7, 3, 9, 1, 22, 5, 8, 2, 30, 4]
    prompts = [prefix + own for own in ([1], [2, 3], [40, 41, 42], [5])]
    expected = [reference(model, prompt, 15) for prompt in prompts]
    shapes = watched(model)
    found = generate_batch(model, tokenizer, prompts, Sampling(15), concurrency=2)
    assert [(list(c.tokens), c.finish_reason) for c in found] == expected
    assert [c.num_prompt_tokens for c in found] == [11, 12, 13, 11]
    sizes = [rows * length for rows, length in shapes]
    assert sizes.count(len(prefix)) == 1 and max(sizes) == len(prefix)


def test_equal_prompts_go_through_once(model: Any, tokenizer: TokenizerWrapper) -> None:
    prompts = [PROMPTS[2]] * 3 + [PROMPTS[0]] * 2
    expected = [reference(model, prompt, 12) for prompt in prompts]
    shapes = watched(model)
    found = generate_batch(model, tokenizer, prompts, Sampling(12))
    assert [(list(c.tokens), c.finish_reason) for c in found] == expected
    assert [shape for shape in shapes if shape[1] > 1] == [(2, 6)]  # two prompts but for their last tokens
    shapes.clear()
    generate_batch(model, tokenizer, [PROMPTS[2]] * 4, Sampling(5, temperature=1.0))
    assert [shape for shape in shapes if shape[1] > 1] == [(1, 6)]


def test_windowed_layers_too(tokenizer: TokenizerWrapper) -> None:
    """One layer's cache holds four positions, fewer than there are; prompts are of different lengths, and two equal."""
    model = make_tiny_llama(layer_types=["full_attention", "sliding_attention"], sliding_window=4)
    model.lm_head.weight = model.lm_head.weight * 8
    prompts = [*PROMPTS, PROMPTS[2]]
    found = generate_batch(model, tokenizer, prompts, Sampling(12), concurrency=4)
    for prompt, completion in zip(prompts, found, strict=True):
        assert (list(completion.tokens), completion.finish_reason) == reference(model, prompt, 12)


def test_a_seeded_answer_does_not_depend_on_its_neighbours(model: Any, tokenizer: TokenizerWrapper) -> None:
    sampling = Sampling(12, temperature=1.0)
    seeds = [seed_of("run", i) for i in range(len(PROMPTS))]
    together = generate_batch(model, tokenizer, PROMPTS, sampling, seeds=seeds, concurrency=4)
    for prompt, seed, completion in zip(PROMPTS, seeds, together, strict=True):
        (alone,) = generate_batch(model, tokenizer, [prompt], sampling, seeds=[seed], concurrency=1)
        assert alone.tokens == completion.tokens
    assert generate_batch(model, tokenizer, [], sampling) == []


def test_steps_tell_their_tokens(model: Any, tokenizer: TokenizerWrapper) -> None:
    steps: list[int] = []
    found = generate_batch(model, tokenizer, PROMPTS, Sampling(10), concurrency=3, on_step=steps.append)
    ended = sum(c.finish_reason == "stop" for c in found)  # the end-of-text token is made, but no part of the answer
    assert sum(steps) == sum(len(c.tokens) for c in found) + ended
