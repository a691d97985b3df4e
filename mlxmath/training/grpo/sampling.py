"""Drawing completions and scoring them, on all ranks: each draws those of a part of the prompts, and all get all.

It serves GRPO and on-policy distillation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlxmath.config.gkd import GkdConfig
from mlxmath.config.load import Resolved
from mlxmath.config.methods import GrpoConfig
from mlxmath.config.training import TrainingConfig
from mlxmath.errors import InputError
from mlxmath.generation.engine import Completion, Sampling, generate_batch, seed_of
from mlxmath.generation.slots import choose_slots
from mlxmath.grading import grade_many
from mlxmath.tools.forms import Tool
from mlxmath.training.accumulate import Workers
from mlxmath.training.checkpoint import as_written
from mlxmath.training.deadline import Deadline, StopRequest
from mlxmath.training.grpo.rewards import Rewards, Scores
from mlxmath.training.held_out import ACCURACY, HeldOut, Stopped, seeded_order
from mlxmath.training.setup import Run

SLOTS = "slots"
"""Of a checkpoint: completions that each rank draws at a time."""


Drawing = GrpoConfig | GkdConfig
"""Settings of a method that draws: how many completions of a prompt, how long, at which temperature."""


@dataclass(frozen=True)
class Prompt:
    """A problem as the model is given it."""

    id: int
    """Its number among the problems."""
    question: str
    gold: str
    tokens: tuple[int, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)
    """What else its row holds."""
    solution: tuple[int, ...] = ()
    """The dataset's own, with its end, where it is read."""


class DrawingStopped(Exception):  # noqa: N818
    """Completions were abandoned half-way."""


class CompletionSampler:
    """Draws completions of prompts with the model as it is, and scores them.

    Args:
        workers: hold the model.
        tokenizer: decodes and knows the stop tokens.
        config: the method's settings.
        rewards: score completions.
        seed: of the run.
        concurrency: sequences decoded together.
        deadline: drawing that does not fit into the time left is abandoned.
        stop: likewise.
        tool: that completions may call.
    """

    def __init__(
        self,
        workers: Workers,
        tokenizer: TokenizerWrapper,
        config: Drawing,
        rewards: Rewards,
        *,
        seed: int,
        concurrency: int,
        deadline: Deadline,
        stop: StopRequest,
        tool: Tool | None = None,
    ) -> None:
        self._tool = tool
        self._workers, self._ranks, self._tokenizer = workers, workers.ranks, tokenizer
        self._config, self._rewards, self._seed, self._concurrency = config, rewards, seed, concurrency
        self._deadline, self._stop = deadline, stop

    def completions(self, prompts: Sequence[Prompt], rollout: int) -> list[Completion]:
        """`num_generations` of each prompt, a prompt's own one after the other.

        Raises:
            DrawingStopped: on all ranks, if there is no time left or a signal came on any.
        """

        def look(_: int) -> None:
            if self._stop or self._deadline.reached():
                raise DrawingStopped

        model, ranks = self._workers.model, self._ranks
        drawn: list[Completion] | None = None
        try:
            look(0)
            drawn = roll_out(
                model, self._tokenizer, prompts[ranks.rank :: ranks.size], self._config, seed=self._seed,
                step=rollout, concurrency=self._concurrency, on_step=look, tool=self._tool,
            )  # fmt: skip
        except DrawingStopped:
            pass
        finally:
            model.train()
            mx.clear_cache()
        if ranks.any("drawn", drawn is None):
            raise DrawingStopped
        assert drawn is not None
        return drawn if ranks.size == 1 else self._of_all(drawn, len(prompts))

    def _of_all(self, drawn: list[Completion], num_prompts: int) -> list[Completion]:
        """All ranks' completions in the order of the prompts, of which rank r drew every `size`-th from number r on."""
        parts = self._ranks.gather("completions", [astuple(completion) for completion in drawn])
        size = self._config.num_generations
        found: list[Completion] = []
        for number in range(num_prompts):
            index, rank = divmod(number, self._ranks.size)
            for values in parts[rank][index * size : (index + 1) * size]:
                plain: list[Any] = [tuple(value) if isinstance(value, list) else value for value in values]
                found.append(Completion(*plain))
        return found

    def scores(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Scores:
        """Scored by rank 0 alone: a reward may look at the whole step, and a verifier's time limit is a clock's."""
        size = self._config.num_generations
        found: list[Any] | None = None
        if self._ranks.first:
            scores = self._rewards(
                [(prompt.question, prompt.gold, prompt.columns) for prompt in prompts for _ in range(size)],
                [(c.text, c.drawn, c.finish_reason == "length") for c in completions],
                self._config.max_completion_length,
            )
            if self._ranks.size == 1:
                return scores
            by_name = {name: values.tolist() for name, values in scores.by_name.items()}
            found = [scores.total_R.tolist(), by_name, scores.num_timed_out]
        total, by_name, num_timed_out = self._ranks.gather("scores", found)[0]
        return Scores(np.array(total), {name: np.array(values) for name, values in by_name.items()}, num_timed_out)


def check_drawing(settings: Resolved, config: Drawing) -> None:
    """Refuse settings that do not go together where completions are drawn.

    Raises:
        InputError: some do not.
    """
    training, size = settings.config.training, config.num_generations
    if training.batch_size * training.grad_accumulation_steps % size:
        raise InputError(
            f"--batch-size {training.batch_size} times --grad-accumulation-steps {training.grad_accumulation_steps} "
            f"completions a step are no multiple of --num-generations {size}."
        )
    if dropout := settings.config.lora.dropout:
        raise InputError(
            f"{settings.where('lora.dropout')}: expected 0 where completions are drawn, found {dropout:g}; they are "
            "drawn without dropout, and the policy that is scored must be the one that drew them."
        )


def in_epochs(prompts: Sequence[Prompt], cursor: int, count: int, *, seed: int) -> list[Prompt]:
    """The next prompts from number `cursor` on, counted over all epochs; none from the next epoch. Each has an order of
    its own."""
    epoch, start = divmod(cursor, len(prompts))
    order = np.random.default_rng([seed, epoch]).permutation(len(prompts))
    return [prompts[i] for i in order[start : start + count].tolist()]


def choose_concurrency(run: Run, config: Drawing, longest: int) -> tuple[int, str]:
    """Completions that this rank draws at a time, and why; as the run did that is resumed, since bits depend on it.

    Args:
        run: with its model.
        config: of the method.
        longest: tokens of the longest prompt and completion together.
    """
    saved = run.checkpoint.state.get(SLOTS) if run.checkpoint else None
    with as_written(run.checkpoint):
        if saved and len(saved) == run.ranks.size and config.concurrency is None:
            return int(saved[run.ranks.rank]), "as before"
    return choose_slots(
        run.model_config, run.device, held_bytes=run.backend.memory().active_bytes, longest=longest,
        prompt=longest - config.max_completion_length, group_size=config.num_generations,
        needed_bytes=run.planned_bytes, asked=config.concurrency,
    )  # fmt: skip


def held_out_problems(
    workers: Workers, tokenizer: TokenizerWrapper, prompts: Sequence[Prompt], longest: int,
    training: TrainingConfig, concurrency: int, tool: Tool | None = None,
) -> HeldOut | None:  # fmt: skip
    """Problems of which the share of right answers is measured, of `longest` tokens each; None if there are none."""
    if not prompts:
        return None
    order = seeded_order(len(prompts), training.seed)

    def verdicts(count: int, stopped: Stopped) -> list[bool] | None:
        chosen = [prompts[i] for i in order[:count]]
        return right_answers(workers, tokenizer, chosen, longest, concurrency, stopped, tool)

    def measure(count: int, stopped: Stopped) -> tuple[float, int] | None:
        found = verdicts(count, stopped)
        return None if found is None else (sum(found) / count, count)

    def measure_rows(count: int, stopped: Stopped) -> list[tuple[int, float, int]] | None:
        found = verdicts(count, stopped)
        if found is None:
            return None
        return sorted((int(i), float(is_right), 1) for i, is_right in zip(order, found, strict=False))

    return HeldOut(
        len(order), "problems", measure, step_items=training.batch_size * training.grad_accumulation_steps / 2,
        metric=ACCURACY, at_once=concurrency * workers.ranks.size, measure_rows=measure_rows,
    )  # fmt: skip


def right_answers(
    workers: Workers,
    tokenizer: TokenizerWrapper,
    prompts: Sequence[Prompt],
    max_tokens: int,
    concurrency: int,
    stopped: Callable[[], bool],
    tool: Tool | None = None,
) -> list[bool] | None:
    """Whether the most likely answer to each of `prompts` is right; None if `stopped()` came true.

    Each rank asks a part of them; all get the same. `concurrency` is that of completions that share their prompts;
    these do not, and take no more memory.
    """
    concurrency = max(1, concurrency * max_tokens // (max_tokens + max(len(prompt.tokens) for prompt in prompts)))
    ranks, all_prompts = workers.ranks, prompts
    prompts = prompts[ranks.rank :: ranks.size]
    found: list[Completion] | None = None
    random_state = mx.array(mx.random.state[0])

    def look(_: int) -> None:
        if stopped():
            raise DrawingStopped

    try:
        found = generate_batch(
            workers.model, tokenizer, [prompt.tokens for prompt in prompts], Sampling(max_tokens),
            concurrency=concurrency, on_step=look, tool=tool,
        )  # fmt: skip
    except DrawingStopped:
        pass
    finally:
        workers.model.train()
        mx.random.state[0][:] = random_state
    if ranks.any("asked", found is None):
        return None
    assert found is not None
    grades = grade_many(
        [(completion.text, prompt.gold) for prompt, completion in zip(prompts, found, strict=True)],
        truncated=[completion.finish_reason == "length" for completion in found],
    )
    by_rank = ranks.gather("right answers", [bool(grade.correct) for grade in grades])
    return [by_rank[i % ranks.size][i // ranks.size] for i in range(len(all_prompts))]


def roll_out(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    prompts: Sequence[Prompt],
    config: Drawing,
    *,
    seed: int,
    step: int,
    concurrency: int,
    on_step: Callable[[int], object] | None = None,
    tool: Tool | None = None,
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
        tool=tool,
        on_step=on_step,
    )
