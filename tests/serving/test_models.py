"""Models that a server has in memory, as the thread that computes finds them."""

from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

from mlxmath.config.schema import LoraConfig
from mlxmath.generation.kept import KeptPrefix
from mlxmath.generation.sampling import Sampling
from mlxmath.models.lora.inject import inject
from mlxmath.serving.engine import Kept, Models
from tests.conftest import make_tiny_llama
from tests.models.architectures import WINDOW, make

TOKENS_BL = mx.array([[3, 1, 4, 1, 5, 9, 2, 6]])
SCALED = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
"""Frequencies that mlx_lm computes when it makes the model, and keeps beside the parameters."""


def opened(dropout: float) -> Any:
    """What `open_models` gives, as far as it is looked at here."""
    model = make_tiny_llama(rope_scaling=SCALED)
    model.eval()  # as mlx_lm loads it, before adapters come
    inject(model, LoraConfig(rank=2, dropout=dropout, targets=("q_proj",)))
    for module in model.modules():
        if "lora_b" in module:
            module.lora_b = mx.random.normal(module.lora_b.shape, key=mx.random.key(0))
    mx.eval(model.parameters())
    return SimpleNamespace(model=model, tokenizer=None, folder=Path(), template=None)


def test_adapters_drop_nothing_out_and_any_of_them_answers_in_another_thread() -> None:
    models = {"with": opened(0.5), "without": opened(0.0)}
    served = Models(models, Sampling(4), [], 0)
    found: dict[str, mx.array] = {}

    def compute() -> None:
        served.load_default()
        for name in models:
            logits = served.load(name)[0](TOKENS_BL)
            mx.eval(logits)
            found[name] = logits

    thread = Thread(target=compute)
    thread.start()
    thread.join()
    assert found.keys() == models.keys()  # an error in the thread leaves one out
    assert mx.array_equal(found["with"], found["without"])


def last_logits(model: Any, cache: list[Any], tokens: list[int]) -> Any:
    """After tokens that come a few at a time, so that chunks forget what is behind them."""
    for start in range(0, len(tokens), 5):
        logits = model(mx.array([tokens[start : start + 5]]), cache=cache)
    return np.array(logits[0, -1])


@pytest.mark.parametrize("num_common", [4, 3 * WINDOW - 1, 4 * WINDOW])
def test_chunks_are_cut_back_to_what_they_hold_alone(num_common: int) -> None:
    model, _ = make("llama4")
    model.eval()
    earlier = np.random.default_rng(0).integers(4, 128, 4 * WINDOW + 2).tolist()
    prompt = [*earlier[:num_common], 3, 2, 1]
    kept, server = KeptPrefix(model), Kept(2, 1 << 30)
    cache, _ = kept.take(earlier)
    last_logits(model, cache, earlier)
    kept.keep(earlier)
    server.insert_cache("llama4", earlier, cache)
    expected = last_logits(model, make_prompt_cache(model), prompt)
    found, rest = server.fetch_nearest_cache("llama4", prompt)
    num_held = len(prompt) - len(rest)
    assert (num_held > 0) == (num_common == 4 * WINDOW)
    np.testing.assert_allclose(last_logits(model, found or make_prompt_cache(model), rest), expected, atol=1e-4)
    cache, num_held = kept.take(prompt)
    assert (num_held > 0) == (num_common == 4 * WINDOW)
    np.testing.assert_allclose(last_logits(model, cache, prompt[num_held:]), expected, atol=1e-4)
