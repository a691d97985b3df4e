"""A tokenizer of 64 words and a tiny model whose greedy choices are clear, for tests of generation."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.conftest import make_tiny_llama

EOS = 63
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [12, 13], [3, 1], [60, 61, 62, 1, 2]]


@pytest.fixture
def tokenizer() -> TokenizerWrapper:
    """64 words, of which the last one ends the text."""
    vocabulary = {f"w{i}": i for i in range(63)} | {"</s>": EOS}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.Fuse()
    return TokenizerWrapper(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))


@pytest.fixture
def model() -> Any:
    """Random weights, sharpened so that greedy choices are clear, and EOS made likely enough to occur."""
    model = make_tiny_llama()
    weight = np.array(model.lm_head.weight) * 8
    weight[EOS] *= 2
    model.lm_head.weight = mx.array(weight)
    return model
