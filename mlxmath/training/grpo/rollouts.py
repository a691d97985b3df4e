"""Where GRPO's steps come from: draw, score, compare within groups, and hand the completions to the trainer."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from mlxmath.config.methods import GrpoConfig
from mlxmath.config.training import TrainingConfig
from mlxmath.data.batch import Shape
from mlxmath.data.batching import StepBatch
from mlxmath.generation.engine import Completion
from mlxmath.runtime.console import say, warn
from mlxmath.training.accumulate import Workers
from mlxmath.training.checkpoint import Checkpoint, Ending, Part
from mlxmath.training.deadline import Deadline, StopRequest
from mlxmath.training.grpo.batches import MostRows, RolloutRows, RolloutSampler, Trajectory
from mlxmath.training.grpo.loss import Entropies, Reference, group_advantages, token_weights
from mlxmath.training.grpo.report import RolloutReport, Silence
from mlxmath.training.grpo.rewards import Scores
from mlxmath.training.grpo.sampling import SLOTS, CompletionSampler, DrawingStopped, Prompt, in_epochs

_SECTION = "rollouts"
SILENT_ROLLOUTS, SILENT_GROUPS = 10, 100
"""After so many rollouts in a row, of so many groups, from which nothing could be learned, a run gives up."""
_WARN_AFTER = 3
"""Rollouts in a row from which nothing could be learned after which the reason is told."""
MAX_DRAWS = 4
"""Times that `dynamic_sampling` draws for one step before it makes do with what there is, within one epoch: a rollout
that has a prompt twice draws the same completions of it again."""


@dataclass(frozen=True)
class _Place:
    """Where the rollouts are: `iteration` of the trajectories at hand, then rollout number `rollout`."""

    rollout: int = 0
    cursor: int = 0
    """Prompts drawn so far, over all epochs."""
    iteration: int = 0
    trajectories: tuple[Trajectory, ...] = ()
    silence: Silence = field(default_factory=Silence)
    num_signals: int = 0
    """Rollouts from which something could be learned."""


class Rollouts(Part):
    """Makes steps out of prompts, and goes on exactly where a checkpoint was.

    A step takes `batch_size · grad_accumulation_steps` completions, as in TRL. Groups without variance teach nothing
    when beta is 0: they stay out of the backward pass, but count in the loss's denominators. A step that has no other
    groups is left out. After many such rollouts in a row, or if there were no others at all, the run ends as one that
    found no signal, and says why.

    Args:
        workers: hold the model.
        sampler: draws and scores.
        prompts: to draw from; each epoch in another order.
        config: GRPO's settings.
        training: batch size and seed.
        num_epochs: passes over the prompts.
        max_tokens: padded tokens in a micro-batch.
        shape: of batches.
        slots: completions that each rank draws at a time, for a run that is resumed.
        reference: computes log-probabilities of micro-batches (None: beta is 0).
        entropies: finds the tokens that count (None: all do).
        deadline: a rollout that does not fit into the time left is not begun, or is abandoned.
        stop: likewise.
        end: told why no more steps come, and more on that for people, if not because all prompts were drawn.
        listener: told of each rollout, on rank 0.
    """

    def __init__(
        self,
        workers: Workers,
        sampler: CompletionSampler,
        prompts: Sequence[Prompt],
        config: GrpoConfig,
        training: TrainingConfig,
        max_tokens: int,
        shape: Shape,
        *,
        slots: Sequence[int] = (),
        reference: Reference | None,
        entropies: Entropies | None = None,
        deadline: Deadline,
        stop: StopRequest,
        num_epochs: int | None = None,
        end: Callable[[Ending, str], object] = lambda *_: None,
        listener: Callable[[RolloutReport], object] = lambda _: None,
    ) -> None:
        self._workers, self._sampler, self._prompts = workers, sampler, prompts
        self.num_epochs = num_epochs or training.num_epochs
        self._config, self._training = config, training
        self._max_tokens, self._shape, self._slots = max_tokens, shape, slots
        self._reference, self._entropies, self._deadline, self._stop = reference, entropies, deadline, stop
        self._end, self.listener = end, listener
        if workers.cannot_share:
            say(f"the prompt of a group is computed for each of its completions, since {workers.cannot_share}")
        self.prompts_per_step = training.batch_size * training.grad_accumulation_steps // config.num_generations
        self.steps_per_epoch = self.rollouts_per_epoch * config.num_iterations
        self._done = self._next = _Place()
        self._seconds = 0.0
        self._most_rows = MostRows()

    @property
    def rollouts_per_epoch(self) -> int:
        """The last one of an epoch takes what is left."""
        return -(-len(self._prompts) // self.prompts_per_step)

    def step_done(self) -> None:
        """A step was taken; whether there is time for another rollout. Must come before what saves."""
        self._done = self._next
        is_late = self._done.iteration == 0 and self._deadline.room_s < self._seconds
        if self._workers.ranks.any("time to draw", is_late):
            self._end("deadline", "")

    def steps(self, *_: int) -> Iterator[StepBatch]:
        """From where it is. The trajectories are drawn by the model as it is when they are asked for."""
        place = self._done
        while True:
            if place.iteration == 0:
                try:
                    drawn = self._draw(place)
                except DrawingStopped:
                    self._end("stopped" if self._workers.ranks.any("stopped", bool(self._stop)) else "deadline", "")
                    return
                if drawn is None:
                    self._end_without_signal(place, at_the_end=True)
                    return
                place = drawn
                if self._end_without_signal(place):
                    return
                if not place.trajectories:
                    continue
            workers = self._workers
            teaching = [i for i, t in enumerate(place.trajectories) if self._teaches(t)]
            found = self._entropies(self._forward_only(place.trajectories)) if self._entropies else None
            sampler = self._batches(
                [place.trajectories[i] for i in teaching], workers.num_in_all, self._max_tokens,
                in_parts=workers.takes_parts, entropic=[found[i] for i in teaching] if found else None,
            )  # fmt: skip
            epoch, index = divmod(place.rollout - 1, self.rollouts_per_epoch)
            last = place.iteration + 1 == self._config.num_iterations
            following = replace(place, iteration=0, trajectories=()) if last else replace(
                place, iteration=place.iteration + 1
            )  # fmt: skip
            self._next = following
            with self._most_rows.of(sampler):
                yield sampler.whole(epoch, index)
            place = following

    def _draw(self, place: _Place) -> _Place | None:
        """The next rollout; None after the last epoch."""
        start = time.perf_counter()
        cursor, wanted = place.cursor, self.prompts_per_step
        prompts: list[Prompt] = []
        completions: list[Completion] = []
        scores: list[Scores] = []
        size = self._config.num_generations
        varied = 0
        for _ in range(MAX_DRAWS if self._config.dynamic_sampling else 1):
            chosen, cursor = self._choose(cursor, wanted - varied)
            if not chosen:
                break
            found = self._sampler.completions(chosen, place.rollout)
            got = self._sampler.scores(chosen, found)
            prompts, completions, scores = prompts + chosen, completions + found, [*scores, got]
            varied += int((np.ptp(got.total_R.reshape(-1, size), axis=1) > 0).sum())
            if varied >= wanted or cursor % len(self._prompts) == 0:  # the next epoch's would be drawn as here
                break
        if not prompts:
            return None
        totals = np.concatenate([part.total_R for part in scores])
        has_variance = np.ptp(totals.reshape(-1, size), axis=1) > 0
        lengths = np.array([len(completion.drawn) - sum(completion.by_tool) for completion in completions])
        truncated = np.array([completion.finish_reason == "length" for completion in completions])
        if self._config.dynamic_sampling:  # the others were drawn in vain
            kept = np.repeat(has_variance, size)
        else:
            kept = np.ones(len(completions), bool)
        trajectories = self._trajectories(prompts, completions, totals, lengths, truncated, kept)
        self._seconds = time.perf_counter() - start
        by_name = {
            name: float(np.concatenate([part.by_name[name] for part in scores]).mean()) for name in scores[0].by_name
        }
        self.listener(
            RolloutReport(
                place.rollout, by_name, float(totals.mean()), len(completions), int(lengths.sum()),
                float(1 - has_variance.mean()), float(truncated.mean()), float(lengths.mean()),
                sum(part.num_timed_out for part in scores), self._seconds,
                (prompts[0].question, prompts[0].gold, completions[0].text, float(totals[0])), bool(truncated[0]),
            )
        )  # fmt: skip
        if any(trajectory.advantage for trajectory in trajectories):
            return _Place(place.rollout + 1, cursor, 0, tuple(trajectories), num_signals=place.num_signals + 1)
        right = by_name.get("correctness")
        silence = place.silence.after(
            len(prompts), len(completions), float(truncated.sum()), None if right is None else right * len(completions)
        )
        if silence.rollouts == _WARN_AFTER:
            warn(f"nothing to learn from in {_WARN_AFTER} rollouts in a row: {silence.reason(self._config)}")
        return _Place(place.rollout + 1, cursor, 0, tuple(trajectories), silence, place.num_signals)

    def _end_without_signal(self, place: _Place, *, at_the_end: bool = False) -> bool:
        """End the run where there is no point in drawing on, or where all was drawn and nothing could be learned."""
        silence = place.silence
        if place.num_signals and (at_the_end or silence.all_right):
            return False
        if not at_the_end and (silence.rollouts < SILENT_ROLLOUTS or silence.groups < SILENT_GROUPS):
            return False
        if not silence.rollouts:
            return False
        self._end("no_signal", f"in the last {silence.rollouts:,} rollouts {silence.reason(self._config)}")
        return True

    def _choose(self, cursor: int, count: int) -> tuple[list[Prompt], int]:
        """The next prompts of the epoch that `cursor` is in; none after the last epoch."""
        if cursor // len(self._prompts) >= self.num_epochs:
            return [], cursor
        chosen = in_epochs(self._prompts, cursor, count, seed=self._training.seed)
        return chosen, cursor + len(chosen)

    def _trajectories(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        totals_R: Any,
        lengths_R: Any,
        truncated_R: Any,
        kept_R: Any,
    ) -> list[Trajectory]:
        size = self._config.num_generations
        kept = np.flatnonzero(kept_R)
        if not len(kept):
            return []
        advantages = group_advantages(totals_R[kept], size, self._config.scale_rewards)
        counted = ~truncated_R[kept] if self._config.mask_truncated_completions else np.ones(len(kept), bool)
        weights = token_weights(self._config, lengths_R[kept], counted, self._training.batch_size)
        trajectories = [
            Trajectory(
                prompts[i // size].id, prompts[i // size].tokens, completions[i].drawn, float(advantage), float(weight),
                completions[i].own_logprobs, by_tool=completions[i].drawn_by_tool,
            )
            for i, advantage, weight in zip(kept.tolist(), advantages, weights, strict=True)
        ]  # fmt: skip
        trajectories = [t for t in trajectories if t.weight and (self._entropies or self._teaches(t))]
        if not any(map(self._teaches, trajectories)):
            return []
        if self._reference is None:
            return trajectories
        found = self._reference(self._forward_only(trajectories))
        return [replace(t, reference=tuple(found[i])) for i, t in enumerate(trajectories)]

    def _teaches(self, trajectory: Trajectory) -> bool:
        """Whether it has a gradient. The entropies of the others are compared too."""
        return bool(trajectory.advantage or self._config.beta)

    def _forward_only(self, trajectories: Sequence[Trajectory]) -> StepBatch:
        at_once = 2 * self._max_tokens * self._workers.count  # nothing is kept of a forward pass alone
        return self._batches(trajectories, 1, at_once, in_parts=False).whole(0, 0)

    def _batches(
        self, trajectories: Sequence[Trajectory], num_workers: int, max_tokens: int, *, in_parts: bool,
        entropic: Sequence[Sequence[bool]] | None = None,
    ) -> RolloutSampler:  # fmt: skip
        return RolloutSampler(
            RolloutRows(trajectories, entropic), self._training, max_tokens, self._shape, num_workers,
            shares=self._workers.cannot_share is None, in_parts=in_parts,
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it, as JSON can."""
        place = self._done
        return {
            _SECTION: {
                "rollout": place.rollout, "cursor": place.cursor, "iteration": place.iteration,
                "trajectories": [trajectory.plain() for trajectory in place.trajectories],
                "silence": asdict(place.silence), "num_signals": place.num_signals,
            },
            SLOTS: list(self._slots),
        }  # fmt: skip

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where the checkpoint was."""
        saved = checkpoint.state[_SECTION]
        trajectories = tuple(map(Trajectory.from_plain, saved["trajectories"]))
        self._done = self._next = _Place(
            saved["rollout"], saved["cursor"], saved["iteration"], trajectories,
            Silence(**saved.get("silence", {})), saved.get("num_signals", checkpoint.position.step),
        )  # fmt: skip
