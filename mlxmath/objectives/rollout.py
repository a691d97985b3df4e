"""Rollouts: several completions of each prompt, drawn by the model as it is, with their exact log-probabilities."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlxmath.config.objectives import GrpoConfig
from mlxmath.generation.engine import Completion, Sampling, generate_batch, seed_of


@dataclass(frozen=True)
class Prompt:
    """A problem as the model is given it."""

    id: int
    """Its number among the problems."""
    question: str
    gold: str
    tokens: tuple[int, ...]


def roll_out(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    prompts: Sequence[Prompt],
    config: GrpoConfig,
    *,
    seed: int,
    step: int,
    concurrency: int,
    on_step: Callable[[int], object] | None = None,
) -> list[Completion]:
    """`num_generations` completions of each prompt, a prompt's own one after the other.

    All are queued together. They are drawn from the whole distribution at the temperature, which is the one that is
    scored in training. A completion's seed is made of the run's seed, the step, the prompt and its number in the group,
    so it does not depend on what else is drawn.
    """
    numbered = [(prompt, number) for prompt in prompts for number in range(config.num_generations)]
    return generate_batch(
        model,
        tokenizer,
        [prompt.tokens for prompt, _ in numbered],
        Sampling(config.max_completion_length, config.temperature),
        seeds=[seed_of(seed, step, prompt.id, number) for prompt, number in numbered],
        concurrency=concurrency,
        logprobs=True,
        on_step=on_step,
    )
