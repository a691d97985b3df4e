"""An answer does not depend on what is decoded beside it, whatever the architecture: batch, alone and mlx_lm agree."""

import importlib
from itertools import takewhile
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlxmath.generation import neighbours
from mlxmath.generation.decode import Decoder
from mlxmath.generation.engine import Sampling, generate_batch
from mlxmath.generation.neighbours import way_of
from tests.conftest import make_tiny_llama
from tests.generation.words import EOS, PROMPTS, tokenizer

__all__ = ["tokenizer"]

_SHARED = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "tie_word_embeddings": False}
CONFIGS: dict[str, dict[str, Any]] = {
    "gemma2": {"intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
               "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 8},
    "mamba": {"intermediate_size": 64, "state_size": 8, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True,
              "time_step_rank": 4},
    "gpt_bigcode": {"n_embd": 32, "n_layer": 2, "n_inner": 64, "n_head": 4, "n_positions": 64,
                    "layer_norm_epsilon": 1e-5},
}  # fmt: skip


def make(model_type: str) -> Any:
    if model_type == "llama":
        model = make_tiny_llama()
    else:
        module = importlib.import_module(f"mlx_lm.models.{model_type}")
        mx.random.seed(3)
        model = module.Model(module.ModelArgs.from_dict({"model_type": model_type, **_SHARED, **CONFIGS[model_type]}))
        model.update(nn.utils.tree_map(lambda x: x * 3 if x.ndim == 2 else x, model.parameters()))
    model.eval()
    mx.eval(model.parameters())
    return model


def mlx_lms(model: Any, prompt: list[int], count: int) -> list[int]:
    drawn = (int(token) for token, _ in generate_step(mx.array(prompt), model, max_tokens=count))
    return list(takewhile(lambda token: token != EOS, drawn))


@pytest.mark.parametrize(
    "concurrency", [2, 3, 32]
)  # gemma2 has two key heads: a mask of two rows meets them in silence
@pytest.mark.parametrize("model_type", ["llama", *CONFIGS])
def test_batch_alone_and_mlx_lm_give_the_same(model_type: str, concurrency: int, tokenizer: TokenizerWrapper) -> None:
    model = make(model_type)
    prompts = [*PROMPTS, PROMPTS[2], PROMPTS[0]]
    found = generate_batch(model, tokenizer, prompts, Sampling(12), concurrency=concurrency, logprobs=True)
    for prompt, completion in zip(prompts, found, strict=True):
        (alone,) = generate_batch(model, tokenizer, [prompt], Sampling(12), logprobs=True)
        assert list(completion.tokens) == list(alone.tokens) == mlx_lms(model, prompt, 12)
        np.testing.assert_allclose(completion.logprobs, alone.logprobs, atol=1e-4)


@pytest.mark.parametrize("model_type", ["llama", *CONFIGS])
def test_log_probabilities_of_groups_are_the_models(model_type: str, tokenizer: TokenizerWrapper) -> None:
    model = make(model_type)
    prompts = [prompt for prompt in PROMPTS[:3] for _ in range(4)]
    found = generate_batch(model, tokenizer, prompts, Sampling(9, temperature=1.0), concurrency=6, logprobs=True)
    assert len({completion.tokens for completion in found}) > 6
    for prompt, completion in zip(prompts, found, strict=True):
        logits_LV = np.array(model(mx.array([[*prompt, *completion.drawn]])))[0, len(prompt) - 1 : -1].astype(
            np.float64
        )
        wanted = logits_LV - np.log(np.exp(logits_LV).sum(-1, keepdims=True))
        np.testing.assert_allclose(completion.logprobs, wanted[range(len(wanted)), completion.drawn], atol=1e-4)


def test_it_is_tried_once_and_said_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(neighbours, "_TRIED", {})
    assert [way_of(make(name)) for name in ("llama", "gemma2", "gemma2", "mamba")] == [
        "together",
        *["in equal lengths"] * 3,
    ]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("in groups of equally long prompts" in line for line in lines)
    assert "cannot be batched" in lines[0] and "off by" in lines[1]


def test_a_model_that_no_batch_suits_answers_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch, tokenizer: TokenizerWrapper, capsys: pytest.CaptureFixture[str]
) -> None:
    class Mixing(type(make_tiny_llama())):  # type: ignore[misc]
        """Every row sees the first one."""

        def __call__(self, inputs: mx.array, *rest: Any, **more: Any) -> mx.array:
            logits = super().__call__(inputs, *rest, **more)
            return logits + 0.2 * mx.roll(logits[:1], 1, axis=-1)

    monkeypatch.setattr(neighbours, "_TRIED", {})
    model = make_tiny_llama()
    model.__class__ = Mixing
    assert way_of(model) == "alone" and "one at a time" in capsys.readouterr().err
    found = generate_batch(model, tokenizer, PROMPTS, Sampling(9))
    assert [list(completion.tokens) for completion in found] == [mlx_lms(model, prompt, 9) for prompt in PROMPTS]


def test_rounding_in_16_bits_is_no_fault() -> None:
    model = make_tiny_llama()
    model.set_dtype(mx.bfloat16)
    model.eval()
    assert way_of(model) == "together"


def test_rows_of_an_even_batch_are_kept_and_repeated() -> None:
    model = make("mamba")
    decoder = Decoder(model, Sampling(6), even=True)
    decoder.add([[1, 2, 3], [4, 5, 6], [1, 2, 3]], [0, 1, 2])
    first, _ = decoder.step()
    assert first[0] == first[2]
    decoder.keep([1])
    assert len(decoder) == 1 and all(len(array) == 1 for layer in decoder._caches.layers for array in layer.cache)
    later = [first[1], *(decoder.step()[0][0] for _ in range(4))]
    assert later == mlx_lms(model, [4, 5, 6], 5)
