"""What a GRPO run reads: problems with their answers, and those of them that are held out."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlxmath.config.schema import DataConfig, RunConfig
from mlxmath.console import say
from mlxmath.data.render import encode_prompt
from mlxmath.errors import InputError
from mlxmath.evaluation.samples import fingerprint
from mlxmath.generation.engine import load_generation_tokenizer
from mlxmath.grading.extract import extract
from mlxmath.objectives.rollout import Prompt
from mlxmath.prepare import held_out_config
from mlxmath.problems.mixture import Mixture
from mlxmath.problems.prompts import get_template


@dataclass(frozen=True)
class PromptMaterial:
    """Problems to draw completions of; see `mlxmath.session.material.Material`."""

    prompts: list[Prompt]
    held_out: list[Prompt]
    tokenizer: TokenizerWrapper
    """Knows where an answer in the run's template ends."""
    max_completion_length: int

    @cached_property
    def fingerprint(self) -> str:
        """See `Material`."""
        return _fingerprint(self.prompts)

    @cached_property
    def held_out_fingerprint(self) -> str:
        """See `Material`."""
        return _fingerprint(self.held_out)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and completion together."""
        return max(len(prompt.tokens) for prompt in [*self.prompts, *self.held_out]) + self.max_completion_length

    @property
    def facts(self) -> dict[str, Any]:
        """See `Material`."""
        return {"fingerprint": self.fingerprint, "problems": len(self.prompts), "held_out": len(self.held_out)}


def read_prompts(config: RunConfig, model_folder: Path) -> PromptMaterial:
    """The problems to learn from, and those to measure on if any are asked for.

    Raises:
        InputError: no problem is left.
        MlxmathError: the tokenizer or the data cannot be had.
    """
    training, template = config.training, get_template(config.data.template, config.data.template_file)
    tokenizer = load_generation_tokenizer(model_folder, template)
    prompts, held_out = _read(config, config.data, tokenizer), []
    if training.validation_dataset is not None:
        other, _ = held_out_config(config.data, training.validation_dataset)
        held_out = _read(config, other, tokenizer)
    elif training.validation_split is not None:
        prompts, held_out = _split(prompts, training.validation_split, training.seed)
    return PromptMaterial(prompts, held_out, tokenizer, config.grpo.max_completion_length)


def _fingerprint(prompts: list[Prompt]) -> str:
    return fingerprint([(prompt.tokens, prompt.gold) for prompt in prompts])


def _split(prompts: list[Prompt], amount: float, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Hold out a fraction of the prompts (below 1), or their number."""
    count = int(amount if amount >= 1 else max(1, round(amount * len(prompts))))
    if count >= len(prompts):
        raise InputError(f"--validation-split {amount:g}: there are only {len(prompts):,} problems.")
    chosen = set(np.random.default_rng(seed).permutation(len(prompts))[:count].tolist())
    return (
        [prompt for i, prompt in enumerate(prompts) if i not in chosen],
        [prompt for i, prompt in enumerate(prompts) if i in chosen],
    )


def _read(config: RunConfig, data: DataConfig, tokenizer: TokenizerWrapper) -> list[Prompt]:
    """The problems of `data` that have an answer and leave room for a completion."""
    template = get_template(config.data.template, config.data.template_file).for_tokenizer(tokenizer)
    mixture = Mixture(data)
    mixture.choose()
    prompts: list[Prompt] = []
    num_unanswered = num_long = 0
    room = data.max_seq_len - config.grpo.max_completion_length
    for problem in mixture:
        found = None if problem.answer or not problem.solution else extract(problem.solution)
        gold = problem.answer or (found.text if found else None)
        tokens = tuple(encode_prompt(tokenizer, template.prompt(problem.question)))
        num_unanswered += not gold
        num_long += bool(gold) and len(tokens) > room
        if gold and len(tokens) <= room:
            prompts.append(Prompt(len(prompts), problem.question, gold, tokens))
    names = ", ".join(str(source) for source in mixture.sources)
    left_out = f"{num_unanswered:,} without an answer and {num_long:,} too long left out"
    say(f"{names}: {len(prompts):,} problems ({left_out})")
    if not prompts:
        raise InputError(
            f"{names}: no problem is left ({left_out}; --max-seq-len {data.max_seq_len} leaves {room} tokens to a "
            "prompt)."
        )
    return prompts
