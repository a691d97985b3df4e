"""Text out of a model: many prompts at once, or one streamed. Both run on mlx_lm's generators."""

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import BatchGenerator, stream_generate
from mlx_lm.models.cache import KVCache, make_prompt_cache
from mlx_lm.sample_utils import apply_top_p, greedy_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_tokenizer as mlx_lm_load_tokenizer

from mlxmath.errors import InputError, MlxmathError

_LEAST_SHARED = 8
"""A shared prefix shorter than this is not worth a pass of its own."""
_PREFILL_STEP = 2048
_REFILLS = 2
"""Finished sequences are replaced once this fraction of the slots is free: taking one in copies the others' caches."""
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio: steps by it do not repeat within 2**64


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 takes the most likely one; `top_p` 1 keeps the whole distribution."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"--max-new-tokens: expected at least 1, found {self.max_new_tokens}")
        if self.temperature < 0:
            raise InputError(f"--temperature: expected 0 or more, found {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p: expected more than 0 and at most 1, found {self.top_p}")

    def sampler(self, seed: int) -> Callable[[mx.array], mx.array]:
        """A sampler of one sequence: its i-th token is drawn with a key made from `seed` and i alone."""
        if self.temperature == 0:
            return greedy_sampler
        drawn = itertools.count()

        def sample(logprobs_BV: mx.array) -> mx.array:
            if self.top_p < 1:
                logprobs_BV = apply_top_p(logprobs_BV, self.top_p)
            key = mx.random.key((seed + next(drawn) * _GOLDEN) % 2**64)
            return mx.random.categorical(logprobs_BV / self.temperature, key=key)

        return sample


@dataclass(frozen=True)
class Completion:
    """What a model answered. `finish_reason` is "stop" (end of sequence, not in `tokens`) or "length"."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    num_prompt_tokens: int
    drawn: tuple[int, ...] = ()
    """With `logprobs`: `tokens` and the end of sequence if it was drawn."""
    logprobs: tuple[float, ...] = ()
    """Of each of `drawn`, under the distribution that it was drawn from."""


def load_generation_tokenizer(folder: Path) -> TokenizerWrapper:
    """The tokenizer in `folder` with mlx_lm's stop tokens and streaming decoder."""
    try:
        return mlx_lm_load_tokenizer(folder)
    except (OSError, ValueError, KeyError) as error:
        raise MlxmathError(f"the tokenizer in {folder} does not load: {str(error).splitlines()[0]}") from error


def stream(
    model: nn.Module, tokenizer: TokenizerWrapper, prompt: Sequence[int], sampling: Sampling
) -> Iterator[str | Completion]:
    """Yield pieces of text as they come, then the whole `Completion`."""
    model.eval()
    tokens: list[int] = []
    text = ""
    reason = "length"
    sampler = sampling.sampler(seed_of(sampling.seed, 0))
    for response in stream_generate(
        model, tokenizer, list(prompt), max_tokens=sampling.max_new_tokens, sampler=sampler
    ):
        if response.finish_reason != "stop":
            tokens.append(response.token)
        reason = response.finish_reason or reason
        text += response.text
        if response.text:
            yield response.text
    yield Completion(text, tuple(tokens), reason, len(prompt))


def generate_batch(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    seeds: Sequence[int] | None = None,
    concurrency: int = 32,
    logprobs: bool = False,
    on_done: Callable[[int, Completion], object] | None = None,
    on_step: Callable[[int], object] | None = None,
) -> list[Completion]:
    """Answer all prompts, `concurrency` of them at a time; a finished one makes room for the next.

    What the prompts begin with in common goes through the model once.

    Args:
        model: the model, put into evaluation mode.
        tokenizer: decodes, and knows the stop tokens.
        prompts: token ids, each at least one.
        sampling: the same for all.
        seeds: one for each prompt, below 2**64 (unset: made from `sampling.seed` and the position). What is drawn for a
            prompt depends on its seed alone, not on its neighbours in the batch.
        concurrency: sequences decoded together.
        logprobs: keep log-probabilities; they are of the whole distribution, so `sampling.top_p` must be 1.
        on_done: called with a prompt's position and its completion as each ends.
        on_step: called after each decoding step with the number of tokens that it made.

    Returns:
        Completions in the order of the prompts.
    """
    assert not logprobs or sampling.top_p == 1
    if not prompts:
        return []
    model.eval()
    seeds = seeds if seeds is not None else [seed_of(sampling.seed, i) for i in range(len(prompts))]
    generator = BatchGenerator(
        model,
        stop_tokens=[[token] for token in tokenizer.eos_token_ids],
        completion_batch_size=concurrency,
        prefill_batch_size=min(concurrency, 16),
    )
    with mx.stream(generator.stream):
        num_shared, cache = _shared_prefix(model, prompts)
    # longest first: the last ones to finish are then short, and slots stay full
    waiting = deque(sorted(range(len(prompts)), key=lambda i: -len(prompts[i])))
    refill = max(1, concurrency // _REFILLS)
    answering: dict[int, tuple[int, list[int]]] = {}  # uid -> position, tokens so far
    drawn: dict[int, list[tuple[int, float]]] = {}  # position -> tokens and their log-probabilities
    completions: dict[int, Completion] = {}
    try:
        while waiting or answering:
            free = concurrency - len(answering)
            if waiting and (free >= refill or not answering):
                chosen = [waiting.popleft() for _ in range(min(free, len(waiting)))]
                uids = generator.insert(
                    [list(prompts[i][num_shared:]) for i in chosen],
                    max_tokens=[sampling.max_new_tokens] * len(chosen),
                    caches=[cache] * len(chosen) if cache else None,
                    samplers=[sampling.sampler(seeds[i]) for i in chosen],
                )
                answering |= {uid: (i, []) for uid, i in zip(uids, chosen, strict=True)}
            responses = generator.next_generated()
            if logprobs and responses:
                for response, value in zip(responses, _logprobs(responses, sampling.temperature), strict=True):
                    drawn.setdefault(answering[response.uid][0], []).append((response.token, value))
            for response in responses:
                index, ids = answering[response.uid]
                if response.finish_reason != "stop":
                    ids.append(response.token)
                if response.finish_reason is not None:
                    del answering[response.uid]
                    tokens, values = zip(*drawn[index], strict=True) if logprobs else ((), ())
                    completions[index] = Completion(
                        tokenizer.decode(ids), tuple(ids), response.finish_reason, len(prompts[index]), tokens, values
                    )
                    if on_done:
                        on_done(index, completions[index])
            if on_step:
                on_step(len(responses))
    finally:
        generator.close()
    return [completions[i] for i in range(len(prompts))]


def _logprobs(responses: Sequence[Any], temperature: float) -> list[float]:
    """The log-probability of each response's token at the temperature (greedy: at 1)."""
    logprobs_BV = mx.stack([response.logprobs for response in responses]).astype(mx.float32) / (temperature or 1.0)
    tokens_B1 = mx.array([[response.token] for response in responses])
    chosen_B = mx.take_along_axis(logprobs_BV, tokens_B1, axis=1).squeeze(1) - mx.logsumexp(logprobs_BV, axis=1)
    return chosen_B.tolist()


def seed_of(*parts: object) -> int:
    """A seed below 2**64 made from values with stable texts: the same on every machine."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:8], "big")


def _shared_prefix(model: nn.Module, prompts: Sequence[Sequence[int]]) -> tuple[int, list[KVCache] | None]:
    """How many tokens all prompts begin with (each keeps one of its own at least), and their keys and values."""
    first, last = min(map(list, prompts)), max(map(list, prompts))
    longest = min(map(len, prompts)) - 1
    num_shared = next((i for i in range(longest) if first[i] != last[i]), longest)
    if len(prompts) < 2 or num_shared < _LEAST_SHARED:
        return 0, None
    cache = make_prompt_cache(model)
    if any(type(layer) is not KVCache for layer in cache):  # others do not copy their past into a batch unchanged
        return 0, None
    for start in range(0, num_shared, _PREFILL_STEP):
        model(mx.array([first[start : min(start + _PREFILL_STEP, num_shared)]]), cache=cache)
        mx.eval([layer.state for layer in cache])
    return num_shared, cache
