"""Where the steps of on-policy distillation come from: completions of the student, and the dataset's solutions."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mlxmath.config.gkd import GkdConfig
from mlxmath.config.training import TrainingConfig
from mlxmath.data.batch import Shape
from mlxmath.data.batching import StepBatch
from mlxmath.generation.engine import Completion
from mlxmath.training.accumulate import Workers
from mlxmath.training.checkpoint import Ending, Part
from mlxmath.training.deadline import Deadline, StopRequest
from mlxmath.training.gkd.kept import Kept
from mlxmath.training.gkd.pieces import PieceScores
from mlxmath.training.grpo.batches import MostRows, Pieced, RolloutRows, RolloutSampler, Taught, Trajectory
from mlxmath.training.grpo.report import RolloutReport
from mlxmath.training.grpo.sampling import SLOTS, CompletionSampler, DrawingStopped, Prompt, in_epochs

_OWN = 2
"""Beside the run's seed: of who writes the solution of a problem."""


class Draws(Part):
    """Makes each step of the next problems, by the student as it is then; what a step is depends on its number alone.

    A step takes `batch_size · grad_accumulation_steps` completions, `num_generations` of a problem; of a share of
    1 − `lmbda` of the problems it takes the dataset's solution instead, once.

    Args:
        workers: hold the student.
        sampler: draws and grades.
        prompts: the problems; each epoch in another order.
        config: lmbda, and how many completions.
        training: batch size and seed.
        max_tokens: padded tokens in a micro-batch.
        shape: of batches.
        slots: completions that each rank draws at a time, for a run that is resumed.
        deadline: what does not fit into the time left is not drawn, or is abandoned.
        stop: likewise.
        end: told why no more steps come, if not because all were made.
        listener: told of what was drawn, on rank 0.
        kept: what the teacher says of each problem's solution, by its id, where it was asked before the run.
        scores: what a teacher with other tokens says of completions (None: they are the student's).
    """

    def __init__(
        self, workers: Workers, sampler: CompletionSampler, prompts: Sequence[Prompt], config: GkdConfig,
        training: TrainingConfig, max_tokens: int, shape: Shape, *, slots: Sequence[int] = (), deadline: Deadline,
        stop: StopRequest, end: Callable[[Ending, str], object] = lambda *_: None,
        listener: Callable[[RolloutReport], object] = lambda _: None, kept: Mapping[int, Kept] | None = None,
        scores: PieceScores | None = None,
    ) -> None:  # fmt: skip
        self._workers, self._sampler, self._prompts = workers, sampler, prompts
        self._config, self._training, self._slots = config, training, slots
        self._max_tokens, self._shape = max_tokens, shape
        self._deadline, self._stop, self._end, self._listener = deadline, stop, end, listener
        self.prompts_per_step = training.batch_size * training.grad_accumulation_steps // config.num_generations
        self.steps_per_epoch = -(-len(prompts) // self.prompts_per_step)
        self._shares = config.num_generations > 1 and workers.cannot_share is None
        self._kept, self._scores, self._seconds = kept, scores, 0.0
        self._most_rows = MostRows()

    def steps(self, epoch: int, index: int) -> Iterator[StepBatch]:
        """From number `index` of `epoch` on, without end but for time and signals."""
        number = epoch * self.steps_per_epoch + index
        ranks = self._workers.ranks
        while True:
            if ranks.any("time to draw", self._deadline.room_s < self._seconds):
                self._end("deadline", "")
                return
            try:
                trajectories = self._draw(number)
            except DrawingStopped:
                self._end("stopped" if ranks.any("stopped", bool(self._stop)) else "deadline", "")
                return
            sampler = RolloutSampler(
                RolloutRows(trajectories), self._training, self._max_tokens, self._shape, self._workers.num_in_all,
                shares=self._shares,
            )  # fmt: skip
            with self._most_rows.of(sampler):
                yield sampler.whole(*divmod(number, self.steps_per_epoch))
            number += 1

    def _draw(self, number: int) -> list[Trajectory]:
        """The texts of a step."""
        start = time.perf_counter()
        epoch, index = divmod(number, self.steps_per_epoch)
        cursor = epoch * len(self._prompts) + index * self.prompts_per_step
        seed = self._training.seed
        chosen = in_epochs(self._prompts, cursor, self.prompts_per_step, seed=seed)
        is_own = np.random.default_rng([seed, _OWN, number]).random(len(chosen)) < self._config.lmbda
        asked = [prompt for prompt, own in zip(chosen, is_own, strict=True) if own]
        kept = self._kept
        found: list[Trajectory] = []
        for prompt in (prompt for prompt, own in zip(chosen, is_own, strict=True) if not own):
            made = (prompt.id, prompt.tokens, prompt.solution, 0.0, 0.0, (0.0,) * len(prompt.solution))
            found.append(Trajectory(*made) if kept is None else Taught(*made, (), (), *kept[prompt.id]))
        if asked:
            drawn = self._sampler.completions(asked, number)
            each = [prompt for prompt in asked for _ in range(self._config.num_generations)]
            texts = [(p.id, p.tokens, one.drawn, 0.0, 0.0, one.logprobs) for p, one in zip(each, drawn, strict=True)]
            if self._scores is None:
                found += [Trajectory(*text) for text in texts]
            else:
                scored = self._scores(each, drawn)
                found += [Pieced(*text, (), (), *excess) for text, excess in zip(texts, scored, strict=True)]
            self._report(number, asked, drawn, start)
        self._seconds = time.perf_counter() - start
        weight = 1 / sum(len(text.drawn) for text in found)
        return [replace(text, weight=weight) for text in found]

    def _report(self, number: int, prompts: list[Prompt], drawn: list[Completion], start: float) -> None:
        scores = self._sampler.scores(prompts, drawn)
        truncated = [one.finish_reason == "length" for one in drawn]
        num_tokens = sum(len(one.drawn) for one in drawn)
        right = scores.total_R
        self._listener(
            RolloutReport(
                number, {name: float(values.mean()) for name, values in scores.by_name.items()}, float(right.mean()),
                len(drawn), num_tokens, None, float(np.mean(truncated)), num_tokens / len(drawn),
                scores.num_timed_out, time.perf_counter() - start,
                (prompts[0].question, prompts[0].gold, drawn[0].text, float(right[0])), truncated[0],
            )
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {SLOTS: list(self._slots)}
