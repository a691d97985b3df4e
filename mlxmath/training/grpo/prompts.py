"""What a run that draws reads: problems with their answers, and those of them that are held out."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper
from numpy.typing import NDArray

from mlxmath.config.schema import DataConfig, RunConfig
from mlxmath.data.gold import WITHOUT_GOLD, gold
from mlxmath.data.load import held_out, num_problems, warn_of_shared
from mlxmath.data.mixture import Mixture
from mlxmath.data.prepare import held_out_config
from mlxmath.data.problem import Problem, SkippedRowError
from mlxmath.data.render import encode_prompt, render
from mlxmath.data.templates import Template, get_template
from mlxmath.errors import InputError
from mlxmath.evaluation.samples import fingerprint
from mlxmath.generation.engine import stop_strings
from mlxmath.generation.model import load_generation_tokenizer
from mlxmath.runtime.console import counted, say
from mlxmath.training.grpo.sampling import Prompt


@dataclass(frozen=True)
class Prompts:
    """Problems to draw completions of; see `mlxmath.training.setup.Data`."""

    prompts: list[Prompt]
    held_out: list[Prompt]
    tokenizer: TokenizerWrapper
    """Knows where an answer in the run's template ends."""
    max_completion_length: int
    stop: str | None = None
    """The template's token that ends a turn."""

    @cached_property
    def fingerprint(self) -> str:
        """See `Data`."""
        return _fingerprint(self.prompts)

    @cached_property
    def held_out_fingerprint(self) -> str:
        """See `Data`."""
        return _fingerprint(self.held_out)

    @property
    def ends(self) -> list[str] | None:
        """What ends a completion beyond the end-of-text token and the template's end of a turn."""
        own = {self.tokenizer.eos_token_id, self.tokenizer.convert_tokens_to_ids(self.stop) if self.stop else None}
        more = sorted(token for token in self.tokenizer.eos_token_ids if token not in own)
        return [*map(str, self.tokenizer.convert_ids_to_tokens(more)), *stop_strings(self.tokenizer)] or None

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and completion together."""
        return max(len(prompt.tokens) for prompt in [*self.prompts, *self.held_out]) + self.max_completion_length

    @property
    def largest_id(self) -> int:
        """See `Data`."""
        return max(max(prompt.tokens) for prompt in [*self.prompts, *self.held_out])

    @property
    def facts(self) -> dict[str, Any]:
        """See `Data`."""
        return {"fingerprint": self.fingerprint, "problems": len(self.prompts), "held_out": len(self.held_out)}


def load_prompts(
    config: RunConfig, model_folder: Path, *, max_completion_length: int | None = None, solutions: bool = False
) -> Prompts:  # fmt: skip
    """The problems to learn from, and those to measure on if any are asked for.

    Args:
        config: of the run.
        model_folder: with the tokenizer.
        max_completion_length: tokens that a prompt leaves room for (None: those of [grpo]).
        solutions: read the dataset's own of the problems to learn from too, and leave out those without.

    Raises:
        InputError: no problem is left.
        MlxmathError: the tokenizer or the data cannot be had.
    """
    training, template = config.training, get_template(config.data.template, config.data.template_file)
    tokenizer = load_generation_tokenizer(model_folder, template)
    length = max_completion_length or config.grpo.max_completion_length
    read = read_prompts(config, config.data, tokenizer, length, solutions=solutions)
    if training.validation_dataset is not None:
        other, _ = held_out_config(config.data, training.validation_dataset)
        measured = read_prompts(config, other, tokenizer, length)
        warn_of_shared(read.questions, measured.questions, training.validation_dataset)
        prompts, apart = read.prompts, measured.prompts
    elif training.validation_split is not None:
        held = held_out(read.questions, training.validation_split, training.seed, read.among)
        prompts, apart = ([read.prompts[i] for i in np.flatnonzero(part)] for part in (~held, held))
        say(f"{num_problems(read.questions[held]):,} of {num_problems(read.questions):,} problems are held out")
    else:
        prompts, apart = read.prompts, []
    stop = template.for_tokenizer(tokenizer).stop
    return Prompts(prompts, apart, tokenizer, length, stop)


def _fingerprint(prompts: list[Prompt]) -> str:
    return fingerprint([(p.tokens, p.gold, p.solution) if p.solution else (p.tokens, p.gold) for p in prompts])


def solution_tokens(
    tokenizer: TokenizerWrapper, template: Template, problem: Problem, prompt: tuple[int, ...], longest: int
) -> tuple[int, ...] | str:  # fmt: skip
    """What follows the prompt in a training row of a problem, with its end; or why there is no such thing."""
    try:
        rows, _ = render(tokenizer, [template.render(problem)])
    except SkippedRowError as error:
        return str(error)
    found: tuple[int, ...] = tuple(rows.tokens.tolist())
    if not rows.mask.any() or found[: len(prompt)] != prompt or not rows.mask[len(prompt) :].all():
        return "conversation that is more than a question and its solution"
    return found[len(prompt) :] if len(found) - len(prompt) <= longest else "solution too long"


@dataclass(frozen=True)
class Read:
    """P prompts of a dataset with Q problems."""

    prompts: list[Prompt]
    questions: NDArray[np.uint64]
    """(P,) hash of each one's question."""
    among: NDArray[np.uint64]
    """(Q,) likewise, of the problems that are left out too."""
    left_out: Counter[str]
    """Rows, by reason."""


def read_prompts(
    config: RunConfig, data: DataConfig, tokenizer: TokenizerWrapper, length: int, *, pairs: bool = False,
    labels: bool = False, solutions: bool = False,
) -> Read:  # fmt: skip
    """The problems of `data` (of its pairs) that have a gold answer and leave room for one of `length` tokens.

    Args:
        config: of the run.
        data: which problems.
        tokenizer: of the model.
        length: tokens of the longest answer.
        pairs: the rows are pairs.
        labels: with `pairs`, or completions with a label.
        solutions: read the dataset's own too, and leave out problems without.

    Raises:
        InputError: no problem is left.
    """
    template = get_template(config.data.template, config.data.template_file).for_tokenizer(tokenizer)
    mixture = Mixture(data, solutions_required=solutions, pairs=pairs, labels=labels)
    mixture.choose()
    room = data.max_seq_len - length
    left_out = Counter[str]()
    for report in mixture.reports:
        left_out.update(report.left_out)
    prompts: list[Prompt] = []
    questions: list[int] = []
    seen: set[str] = set()
    num_system = 0
    for problem, question in zip(mixture, mixture.questions.tolist(), strict=True):
        answer, text = gold(problem), problem.question.strip()
        if answer is None:
            left_out[WITHOUT_GOLD] += 1
        elif text in seen and data.deduplicate != "off":
            left_out["repeated"] += 1
        elif len(tokens := tuple(encode_prompt(tokenizer, template.prompt(problem.question)))) > room:
            left_out["too long"] += 1
        elif isinstance(own := solution_tokens(tokenizer, template, problem, tokens, length) if solutions else (), str):
            left_out[own] += 1
        else:
            seen.add(text)
            num_system += bool(problem.messages) and problem.messages[0].role == "system"
            questions.append(question)
            prompts.append(Prompt(len(prompts), problem.question, answer, tokens, problem.meta, own))
    names = ", ".join(str(source) for source in mixture.sources)
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items() if count)
    say(f"{names}: {counted(len(prompts), 'problem')} with a gold answer{f'; left out: {reasons}' if reasons else ''}")
    if num_system:
        say(f"the system messages of {counted(num_system, 'problem')} are not asked: the template's prompt is")
    if not prompts:
        raise InputError(
            f"{names}: no problem is left ({reasons or 'it is empty'}; --max-seq-len {data.max_seq_len} leaves {room} "
            "tokens to a prompt; --answer-column names the column with the answers)."
        )
    return Read(prompts, np.array(questions, np.uint64), mixture.questions, left_out)
