"""Sequences decoded together, a token each at a step.

Shapes: B sequences, L positions, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import BatchKVCache, KVCache, make_prompt_cache
from numpy.typing import NDArray

from mlxmath.generation.sampling import Sampling, draw, uniforms
from mlxmath.models import cpu_decoding
from mlxmath.models.rows_cache import RowKernels
from mlxmath.models.segments import swiglu_by
from mlxmath.models.served import PROMPT_TOKENS, is_served
from mlxmath.models.shared_prefix import Groups, SharedPrefixes

PREFILL_TOKENS = 2048
"""Prompt tokens that go through a model in memory at once."""
_MOST_GROWTH = 256
"""Positions by which the memory for keys and values grows: all of them are copied then."""

_CLEARED_EVERY = 512
"""Steps between which MLX may keep memory for shapes that do not come again."""


class Caches:
    """The caches of all layers of a model, with a row for each sequence."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = layers

    def filter(self, rows: Sequence[int]) -> None:
        """Keep these rows."""
        for layer in self.layers:
            layer.filter(list(rows))

    def extend(self, other: "Caches") -> None:
        """Take in the rows of another, which is of no use then."""
        for layer, theirs in zip(self.layers, other.layers, strict=True):
            layer.extend(theirs)


class EvenCaches(Caches):
    """The caches that a model makes itself, for rows of equal lengths: none of them knows of rows or of padding."""

    def __init__(self, layers: Sequence[Any], num_rows: int) -> None:
        super().__init__(layers)
        self._num_rows = num_rows

    def filter(self, rows: Sequence[int]) -> None:
        """Keep these rows; one may be kept several times."""
        chosen_B = mx.array(list(rows), mx.int32)

        def of_rows(value: Any) -> Any:
            if isinstance(value, mx.array):
                return value[chosen_B] if value.ndim and len(value) == self._num_rows else value
            if isinstance(value, list | tuple):
                return type(value)(map(of_rows, value))
            for name, inner in list(getattr(value, "__dict__", {}).items()):
                setattr(value, name, of_rows(inner))
            return value

        of_rows(self.layers)
        self._num_rows = len(chosen_B)


@dataclass(frozen=True)
class Prefix:
    """What all prompts begin with: its tokens, and their keys and values."""

    tokens: tuple[int, ...] = ()
    cache: tuple[KVCache, ...] | None = None


class Decoder:
    """Draws the next token of each of its sequences; others may join and leave between steps.

    A prompt goes through the model once, however many sequences begin with it. What is drawn for a sequence depends on
    its prompt and seed alone, not on its neighbours, where `mlxmath.generation.neighbours.way_of` the model says so.

    Args:
        model: in evaluation mode.
        sampling: the same for all.
        logprobs: give those of what is drawn.
        prefix: that all prompts begin with; each has at least one token more.
        shares: hold the keys and values of equal prompts once. Needs a model that `cannot_share_prefixes` has nothing
            against, and prompts of two tokens at least.
        even: take one set of prompts of equal lengths and no more until all of them have left. Nothing is padded, and
            the model runs as in mlx_lm's own generation.
        num_cores: of a CPU, to be used (default: all).
    """

    def __init__(
        self,
        model: nn.Module,
        sampling: Sampling,
        *,
        logprobs: bool = False,
        prefix: Prefix = Prefix(),
        shares: bool = False,
        even: bool = False,
        num_cores: int | None = None,
    ) -> None:
        assert not (even and (shares or prefix.tokens))
        self._kernels = RowKernels(num_cores) if shares and cpu_decoding.unsupported(model) is None else None
        self._model, self._sampling, self._logprobs, self._prefix = model, sampling, logprobs, prefix
        self._shares, self._even = shares, even
        self._caches: Any = None
        self._num_steps = 0
        self._seeds_B = np.zeros(0, np.uint64)
        self._counts_B = np.zeros(0, np.uint64)
        self._tokens_B = mx.zeros(0, mx.int32)
        self._logprobs_B = mx.zeros(0, mx.float32)

    def __len__(self) -> int:
        return len(self._seeds_B)

    @property
    def joins_cheaply(self) -> bool:
        """Whether sequences that join leave the keys and values of the others where they are."""
        return self._kernels is not None

    def add(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> None:
        """Let sequences join behind those that are there already."""
        assert not self._even or (not len(self) and len(set(map(len, prompts))) == 1)
        for part in (
            [range(len(prompts))] if self._even or self._kernels else _parts(prompts, prefill_tokens(self._model))
        ):
            self._add([tuple(prompts[i]) for i in part], [seeds[i] for i in part])

    def _add(self, prompts: Sequence[tuple[int, ...]], seeds: Sequence[int]) -> None:
        unique = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        numbers = [unique[prompt] for prompt in prompts]
        caches: Caches | SharedPrefixes
        if self._shares:
            groups, most = Groups(tuple(unique), np.array(numbers)), self._sampling.max_new_tokens + 1
            if self._kernels:
                texts = [prompt[len(self._prefix.tokens) : -1] for prompt in unique]
                caches = cpu_decoding.read(self._model, self._kernels, texts, groups, most, self._prefix.cache or ())
            else:
                caches = SharedPrefixes.of(self._prefilled(list(unique)), groups, most)
        else:
            layers = self._prefilled(list(unique))
            caches = EvenCaches(layers, len(unique)) if self._even else Caches(layers)
            if len(unique) < len(prompts):
                caches.filter(numbers)
        seeds_B, counts_B = np.array(seeds, np.uint64), np.zeros(len(seeds), np.uint64)
        tokens_B, logprobs_B = self._next(mx.array([p[-1] for p in prompts]), caches, seeds_B, counts_B)
        if self._caches is None:
            self._caches, self._tokens_B, self._logprobs_B = caches, tokens_B, logprobs_B
        else:
            self._caches.extend(caches)
            self._tokens_B = mx.concatenate([self._tokens_B, tokens_B])
            self._logprobs_B = mx.concatenate([self._logprobs_B, logprobs_B])
        self._seeds_B = np.concatenate([self._seeds_B, seeds_B])
        self._counts_B = np.concatenate([self._counts_B, counts_B + np.uint64(1)])

    def step(self) -> tuple[list[int], list[float]]:
        """The next token of each sequence, and its log-probability where they are asked for.

        The device is at work on the tokens after these when it returns.
        """
        tokens_B, logprobs_B = self._tokens_B, self._logprobs_B
        if self._counts_B.min() < self._sampling.max_new_tokens:
            self._tokens_B, self._logprobs_B = self._next(tokens_B, self._caches, self._seeds_B, self._counts_B)
            self._counts_B += np.uint64(1)
        self._num_steps += 1
        if self._num_steps % _CLEARED_EVERY == 0:
            mx.clear_cache()
        return tokens_B.tolist(), logprobs_B.tolist()

    def force(self, tokens: Mapping[int, int]) -> None:
        """Let sequences, by their places, go on with tokens that were not drawn."""
        self._tokens_B[mx.array(list(tokens), mx.int32)] = mx.array(list(tokens.values()), mx.int32)

    def keep(self, indices: Sequence[int]) -> None:
        """Let all other sequences leave."""
        chosen = list(indices)
        if chosen:
            self._caches.filter(chosen)
        else:
            self._caches = None
        chosen_B = mx.array(chosen, mx.int32)
        self._tokens_B, self._logprobs_B = self._tokens_B[chosen_B], self._logprobs_B[chosen_B]
        self._seeds_B, self._counts_B = self._seeds_B[chosen], self._counts_B[chosen]

    def _next(
        self, tokens_B: mx.array, caches: Any, seeds_B: NDArray[np.uint64], counts_B: NDArray[np.uint64]
    ) -> tuple[mx.array, mx.array]:
        """The tokens after `tokens_B`."""
        with swiglu_by(self._kernels.swiglu) if self._kernels else nullcontext():
            logits_BV = self._model(tokens_B[:, None], cache=caches.layers)[:, -1]
        found = draw(logits_BV, uniforms(seeds_B, counts_B), self._sampling, logprobs=self._logprobs)
        mx.async_eval(found)
        return found

    def _prefilled(self, prompts: Sequence[tuple[int, ...]]) -> list[Any]:
        """Keys and values of all but the last token of each prompt."""
        if self._even:
            cache = make_prompt_cache(self._model)
        else:
            single = [self._prefix.cache or make_prompt_cache(self._model) for _ in prompts]
            cache = [layers[0].merge(list(layers)) for layers in zip(*single, strict=True)]
        inputs = [prompt[len(self._prefix.tokens) : -1] for prompt in prompts]
        lengths = [len(tokens) for tokens in inputs]
        step, width = max(2, prefill_tokens(self._model) // len(prompts)), max(lengths)
        if min(lengths) < width and width % step == 1:
            width += 1  # a padded batch of single tokens looks like a decoding step to caches of windowed layers
        padding = [width - length for length in lengths]
        if any(padding):
            for layer in cache:
                layer.prepare(lengths=lengths, right_padding=padding)
        tokens_BL = mx.array([[*tokens, *[0] * pad] for tokens, pad in zip(inputs, padding, strict=True)], mx.int32)
        for start in range(0, width, step):
            self._model(tokens_BL[:, start : start + step], cache=cache)
            mx.eval([layer.state for layer in cache])
        for layer in cache:
            if any(padding):
                layer.finalize()
            if type(layer) is BatchKVCache:
                layer.step = min(_MOST_GROWTH, self._sampling.max_new_tokens)
                if layer.keys is not None:  # without the room that was left over
                    layer.keys, layer.values = map(mx.contiguous, layer.keys_and_values())
        mx.eval([layer.state for layer in cache])
        mx.clear_cache()
        return cache


def prefill_tokens(model: nn.Module) -> int:
    """Prompt tokens that go through a model at once."""
    return PROMPT_TOKENS if is_served(model) else PREFILL_TOKENS


def prefilled_prefix(model: nn.Module, tokens: Sequence[int]) -> Prefix:
    """The keys and values of a prefix, or none where the model's caches do not copy their past into a batch."""
    cache = make_prompt_cache(model)
    if any(type(layer) is not KVCache for layer in cache):
        return Prefix()
    step = prefill_tokens(model)
    for start in range(0, len(tokens), step):
        model(mx.array([tokens[start : start + step]]), cache=cache)
        mx.eval([layer.state for layer in cache])
    return Prefix(tuple(tokens), tuple(cache))


def _parts(prompts: Sequence[Sequence[int]], most: int) -> Iterator[list[int]]:
    """The positions of the prompts in parts of at most so many padded tokens, equal ones counted once."""
    part: list[int] = []
    unique: set[tuple[int, ...]] = set()
    for index, prompt in enumerate(prompts):
        wider = unique | {tuple(prompt)}
        if part and len(wider) * max(map(len, wider)) > most:
            yield part
            part, wider = [], {tuple(prompt)}
        part.append(index)
        unique = wider
    if part:
        yield part
