"""Keys and values kept from one prompt to the next that begins alike, as in a chat."""

from collections.abc import Iterable, Sequence
from typing import Any

import mlx.nn as nn
from mlx_lm.models.cache import ChunkedKVCache, make_prompt_cache


class KeptPrefix:
    """The caches of a model, and the tokens whose keys and values are in them.

    A prompt that begins with some of these tokens goes through the model from there on. Caches that cannot be cut back
    (states of linear attention, windows that have turned, chunks of which the beginning is gone) are made anew.

    Args:
        model: that the prompts are for; always the same.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._layers: list[Any] = []
        self._tokens: list[int] = []

    def take(self, prompt: Sequence[int]) -> tuple[list[Any], int]:
        """The caches of all layers for a prompt, and how many of its tokens they hold: fewer than all."""
        most = min(len(self._tokens), len(prompt) - 1)
        num_common = next((i for i in range(most) if self._tokens[i] != prompt[i]), most)
        if not num_common or not self._cut(num_common):
            self._layers, num_common = make_prompt_cache(self._model), 0
        self._tokens = list(prompt[:num_common])
        return self._layers, num_common

    def keep(self, tokens: Sequence[int]) -> None:
        """Say whose keys and values the caches hold now; what they hold beyond (the model runs ahead) is cut off."""
        self._tokens = list(tokens) if self._cut(len(tokens)) else []

    def _cut(self, num_tokens: int) -> bool:
        """Leave so many tokens in the caches; False if that cannot be."""
        if any(not hasattr(layer, "offset") or layer.offset < num_tokens for layer in self._layers):
            return False
        if lacks_keys(self._layers, num_tokens):
            return False
        for layer in self._layers:
            if layer.offset > num_tokens:
                if not layer.is_trimmable():
                    return False
                layer.trim(layer.offset - num_tokens)
        return bool(self._layers)


def lacks_keys(layers: Iterable[Any], num_tokens: int) -> bool:
    """Whether caches that are cut back to so many tokens lack keys that the next token attends to.

    Layers that see a chunk alone (Llama 4) forget what is behind it, and let themselves be cut back to before it.
    """
    return any(
        layer.start_position > num_tokens // layer.chunk_size * layer.chunk_size
        for layer in layers
        if isinstance(layer, ChunkedKVCache)
    )
