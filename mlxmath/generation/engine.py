"""Text out of a model: many prompts at once, or one streamed. Both run on mlx_lm's generators."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import BatchGenerator, stream_generate
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_tokenizer as mlx_lm_load_tokenizer

from mlxmath.errors import InputError, MlxmathError


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

    def sampler(self) -> Callable[[mx.array], mx.array]:
        """mlx_lm's sampler, with the random state set to the seed."""
        mx.random.seed(self.seed)
        sampler: Callable[[mx.array], mx.array] = make_sampler(temp=self.temperature, top_p=self.top_p)
        return sampler


@dataclass(frozen=True)
class Completion:
    """What a model answered. `finish_reason` is "stop" (end of sequence, not in `tokens`) or "length"."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    num_prompt_tokens: int


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
    sampler = sampling.sampler()
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
    concurrency: int = 32,
    on_done: Callable[[int, Completion], object] | None = None,
) -> list[Completion]:
    """Answer all prompts, `concurrency` of them at a time; a finished one makes room for the next.

    Args:
        model: the model, put into evaluation mode.
        tokenizer: decodes, and knows the stop tokens.
        prompts: token ids, each at least one.
        sampling: the same for all.
        concurrency: sequences decoded together.
        on_done: called with a prompt's position and its completion as each ends.

    Returns:
        Completions in the order of the prompts.
    """
    model.eval()
    generator = BatchGenerator(
        model,
        stop_tokens=[[token] for token in tokenizer.eos_token_ids],
        sampler=sampling.sampler(),
        completion_batch_size=concurrency,
        prefill_batch_size=min(concurrency, 16),
    )
    # longest first: the last ones to finish are then short, and slots stay full
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    uids = generator.insert([list(prompts[i]) for i in order], max_tokens=[sampling.max_new_tokens] * len(prompts))
    position = dict(zip(uids, order, strict=True))
    tokens: dict[int, list[int]] = {uid: [] for uid in uids}
    completions: dict[int, Completion] = {}
    while responses := generator.next_generated():
        for response in responses:
            if response.finish_reason != "stop":
                tokens[response.uid].append(response.token)
            if response.finish_reason is not None:
                index = position[response.uid]
                ids = tokens.pop(response.uid)
                completions[index] = Completion(
                    tokenizer.decode(ids), tuple(ids), response.finish_reason, len(prompts[index])
                )
                if on_done:
                    on_done(index, completions[index])
    generator.close()
    return [completions[i] for i in range(len(prompts))]
