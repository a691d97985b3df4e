"""Text out of a model: many prompts at once, or one streamed."""

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.generate import stream_generate
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlxmath.errors import MlxmathError
from mlxmath.generation.calls import Calls
from mlxmath.generation.completion import Completion as Completion
from mlxmath.generation.decode import Decoder, Prefix, prefill_tokens, prefilled_prefix
from mlxmath.generation.kept import KeptPrefix
from mlxmath.generation.lanes import Lanes, num_lanes
from mlxmath.generation.neighbours import way_of
from mlxmath.generation.sampling import Sampling as Sampling
from mlxmath.generation.sampling import draw, uniforms
from mlxmath.models import cpu_decoding
from mlxmath.models.kernels.portable import log_sum_exp
from mlxmath.models.load import check_ids
from mlxmath.models.served import is_served
from mlxmath.models.shared_prefix import cannot_share_prefixes, without_gaps
from mlxmath.tools.forms import Tool

_LEAST_SHARED = 8
"""A shared prefix shorter than this is not worth a pass of its own."""
_SPARE = 16
"""Tokens beyond the bytes of the longest stop string that are looked at: some have no text of their own."""
_REFILLS, _CHEAP_REFILLS = 2, 8
"""Finished sequences are replaced once this fraction of the slots is free: taking one in copies the others' caches, or
not, but prompts are read fastest many at a time."""


def stream(
    model: nn.Module, tokenizer: TokenizerWrapper, prompt: Sequence[int], sampling: Sampling,
    kept: KeptPrefix | None = None, tool: Tool | None = None,
) -> Generator[str | Completion, None, None]:  # fmt: skip
    """Yield pieces of text as they come, then the whole `Completion`.

    What may be the beginning of a stop string is held back until it is known not to be.

    Args:
        model: the model, put into evaluation mode.
        tokenizer: see `generate_batch`.
        prompt: token ids, at least one.
        sampling: how tokens are drawn.
        kept: what an earlier prompt has left, and what this one leaves to the next, also if it is not read to its end.
        tool: that the answer may call.
    """
    model.eval()
    if not prompt:
        raise without_tokens()
    check_ids(model, max(prompt), "the prompt")
    tokens: list[int] = []
    text, reason, num_shown, stops = "", "length", 0, stop_strings(tokenizer)
    held_back = max(map(len, stops), default=1) - 1
    seeds_B, numbers = np.array([seed_of(sampling.seed, 0)], np.uint64), itertools.count()
    calls = Calls(tool, tokenizer) if tool else None
    given: Mapping[int, int] = {}
    own = 0  # where the model's own text begins, after the last result

    def sampler(logprobs_BV: mx.array) -> mx.array:
        drawn_B = draw(logprobs_BV, uniforms(seeds_B, np.array([next(numbers)], np.uint64)), sampling)[0]
        return mx.array([given[0]]) if given else drawn_B

    cache, num_kept = kept.take(prompt) if kept else (None, 0)
    responses = (_one_by_one if tool or is_served(model) else stream_generate)(
        model, tokenizer, list(prompt[num_kept:]), max_tokens=sampling.max_new_tokens, sampler=sampler,
        prompt_cache=cache,
    )  # fmt: skip
    try:
        for response in responses:
            is_given = False
            if response.finish_reason != "stop":
                tokens.append(response.token)
                is_given = calls is not None and calls.took(0, response.token)
            found, has_stopped = cut(text[own:] + response.text, () if is_given else stops)
            text = text[:own] + found
            own = len(text) if is_given else own
            if calls and response.finish_reason != "stop" and not has_stopped:
                given = calls.given([0])
            reason = "stop" if has_stopped else response.finish_reason or reason
            done = has_stopped or response.finish_reason is not None
            if new := text[num_shown : len(text) if done else max(num_shown, len(text) - held_back)]:
                num_shown += len(new)
                yield new
            if has_stopped:
                break
    finally:
        responses.close()
        if kept:  # the last token that came has perhaps not been read yet
            kept.keep([*prompt, *tokens[:-1]] if tokens else prompt[:num_kept])
    yield Completion(text, tuple(tokens), reason, len(prompt), by_tool=calls.finish(0)[1] if calls and tokens else ())


def without_tokens() -> MlxmathError:
    """The error for a prompt of which a tokenizer leaves nothing."""
    return MlxmathError(
        "the tokenizer gives no tokens for the prompt, so its vocabulary is not the model's; use the tokenizer that "
        "came with the model."
    )


@dataclass(frozen=True)
class _Response:
    """What is used of mlx_lm's `GenerationResponse`."""

    text: str
    token: int
    finish_reason: str | None = None


def _one_by_one(
    model: nn.Module, tokenizer: TokenizerWrapper, prompt: list[int], max_tokens: int,
    sampler: Callable[[mx.array], mx.array], prompt_cache: list[Any] | None = None,
) -> Generator[_Response, None, None]:  # fmt: skip
    """mlx_lm's `stream_generate`, without its passes over the model ahead of what is wanted: where each reads the model
    from the disk, or a token may be another than was drawn."""
    cache = make_prompt_cache(model) if prompt_cache is None else prompt_cache
    detokenizer, step, token = tokenizer.detokenizer, prefill_tokens(model), 0
    for start in range(0, len(prompt) - 1, step):
        model(mx.array([prompt[start : min(start + step, len(prompt) - 1)]]), cache=cache)
    last, reason = prompt[-1], "length"
    for number in range(max_tokens):
        logits_BV = model(mx.array([[last]]), cache=cache)[:, -1]
        token = last = int(sampler(logits_BV - log_sum_exp(logits_BV, keepdims=True)).item())
        if token in tokenizer.eos_token_ids:
            reason = "stop"
            break
        detokenizer.add_token(token)
        if number + 1 < max_tokens:
            yield _Response(detokenizer.last_segment, token)
    detokenizer.finalize()
    yield _Response(detokenizer.last_segment, token, reason)


def generate_batch(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    seeds: Sequence[int] | None = None,
    concurrency: int = 32,
    logprobs: bool = False,
    tool: Tool | None = None,
    on_done: Callable[[int, Completion], object] | None = None,
    on_step: Callable[[int], object] | None = None,
) -> list[Completion]:
    """Answer all prompts, `concurrency` of them at a time; a finished one makes room for the next.

    What the prompts begin with in common goes through the model once. So do equal prompts, whose keys and values are
    held once where the model allows. A model that does not bear prompts of different lengths in a batch gets them in
    groups of one length, or alone; see `mlxmath.generation.neighbours.way_of`.

    Args:
        model: the model, put into evaluation mode.
        tokenizer: decodes, and knows where an answer ends; see `mlxmath.generation.model.load_generation_tokenizer`.
        prompts: token ids, each at least one.
        sampling: the same for all.
        seeds: one for each prompt, below 2**64 (unset: made from `sampling.seed` and the position). What is drawn for a
            prompt depends on its seed alone, not on its neighbours in the batch.
        concurrency: sequences decoded together.
        logprobs: keep log-probabilities; they are of the whole distribution, so `sampling.top_p` must be 1.
        tool: that answers may call; what it writes counts among their tokens.
        on_done: called with a prompt's position and its completion as each ends.
        on_step: called after each decoding step with the number of tokens that it made.

    Returns:
        Completions in the order of the prompts.
    """
    assert not logprobs or sampling.top_p == 1
    if not prompts:
        return []
    model.eval()
    if not all(prompts):
        raise without_tokens()
    check_ids(model, max(max(prompt) for prompt in prompts), "a prompt")
    seeds = seeds if seeds is not None else [seed_of(sampling.seed, i) for i in range(len(prompts))]
    way = "alone" if len(prompts) == 1 else way_of(model)
    decoder: Decoder | Lanes
    if way == "together":
        repeat = len(set(map(tuple, prompts))) < len(prompts)
        shares = min(map(len, prompts)) > 1 and (
            cpu_decoding.unsupported(model) is None or (repeat and cannot_share_prefixes(model) is None)
        )
        prefix, lanes = (
            _shared_prefix(model, prompts),
            num_lanes(model, min(concurrency, len(prompts))) if shares else 1,
        )
        make = partial(Decoder, model, sampling, logprobs=logprobs, prefix=prefix, shares=shares)
        decoder = Lanes(model, lanes, partial(make, num_cores=1)) if lanes > 1 else make()
    else:
        decoder = Decoder(model, sampling, logprobs=logprobs, even=True)
        concurrency = 1 if way == "alone" else concurrency
    ends, stops = tokenizer.eos_token_ids, stop_strings(tokenizer)
    calls = Calls(tool, tokenizer) if tool else None
    # longest first: the last ones to finish are then short, and slots stay full
    waiting = deque(sorted(range(len(prompts)), key=lambda i: -len(prompts[i])))
    refill = max(1, concurrency // (_CHEAP_REFILLS if decoder.joins_cheaply else _REFILLS))
    answering: list[int] = []  # positions, as the decoder has their sequences
    drawn: dict[int, list[tuple[int, float]]] = {}
    completions: dict[int, Completion] = {}
    while waiting or answering:
        free = concurrency - len(answering)
        if waiting and (not answering or (free >= refill and way == "together")):
            number = min(free, len(waiting))
            if way != "together":
                longest = len(prompts[waiting[0]])
                number = min(number, sum(len(prompts[i]) == longest for i in waiting))
            chosen = [waiting.popleft() for _ in range(number)]
            decoder.add([prompts[i] for i in chosen], [seeds[i] for i in chosen])
            answering += chosen
            drawn |= {i: [] for i in chosen}
        left: list[int] = []
        for row, (index, token, value) in enumerate(zip(answering, *decoder.step(), strict=True)):
            drawn[index].append((token, value))
            is_own = calls is None or not calls.took(index, token)
            has_ended = is_own and (token in ends or (
                bool(stops) and completes_stop(
                    tokenizer, calls.drawn(index) if calls else [found for found, _ in drawn[index]], stops
                )
            ))  # fmt: skip
            if not has_ended and len(drawn[index]) < sampling.max_new_tokens:
                left.append(row)
                continue
            tokens, values = zip(*drawn.pop(index), strict=True)
            ids = tokens[:-1] if token in ends else tokens
            before, by_tool = calls.finish(index) if calls else ("", ())
            text = tokenizer.decode(ids)
            completions[index] = Completion(
                before + cut(text[len(before) :], stops if has_ended else ())[0], ids,
                "stop" if has_ended else "length",
                len(prompts[index]), tokens if logprobs else (), values if logprobs else (), by_tool[: len(ids)],
            )  # fmt: skip
            if on_done:
                on_done(index, completions[index])
        num_made = len(answering)
        if len(left) < num_made:
            left = without_gaps(left)
            decoder.keep(left)
            answering = [answering[row] for row in left]
        if calls and (given := calls.given(answering)):
            decoder.force(given)
        if on_step:
            on_step(num_made)
    return [completions[i] for i in range(len(prompts))]


def seed_of(*parts: object) -> int:
    """A seed below 2**64 made from values with stable texts: the same on every machine."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:8], "big")


def _shared_prefix(model: nn.Module, prompts: Sequence[Sequence[int]]) -> Prefix:
    """What all prompts begin with (each keeps one token of its own at least), if that is long enough."""
    first, last = min(map(list, prompts)), max(map(list, prompts))
    longest = min(map(len, prompts)) - 1
    num_shared = next((i for i in range(longest) if first[i] != last[i]), longest)
    if first == last or num_shared < _LEAST_SHARED:
        return Prefix()
    return prefilled_prefix(model, first[:num_shared])


def stop_strings(tokenizer: TokenizerWrapper) -> tuple[str, ...]:
    """Texts before the first of which an answer is cut; see `mlxmath.generation.model.load_generation_tokenizer`."""
    return getattr(tokenizer, "_stop_strings", ())


def cut(text: str, stops: Iterable[str]) -> tuple[str, bool]:
    """The text before the first stop string in it, and whether there is one."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def completes_stop(tokenizer: TokenizerWrapper, tokens: Sequence[int], stops: Sequence[str]) -> bool:
    """Whether one of the stop strings lies in a text whose last token is new."""
    recent = tokens[-max(len(stop.encode()) for stop in stops) - _SPARE :]  # a token may be a byte
    return cut(tokenizer.decode(recent), stops)[1] and cut(tokenizer.decode(tokens), stops)[1]
