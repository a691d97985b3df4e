"""Where GRPO's windows come from: which groups train, what is drawn instead, the reference, stopping, going on."""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlxmath.config.methods import GrpoConfig
from mlxmath.config.schema import LoraConfig
from mlxmath.config.training import TrainingConfig
from mlxmath.data.batch import Shape
from mlxmath.data.batching import StepBatch
from mlxmath.models.kernels.cpu import CpuKernels
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.lora.inject import inject
from mlxmath.training.accumulate import Workers
from mlxmath.training.checkpoint import Checkpoint, Position
from mlxmath.training.deadline import Deadline, StopRequest
from mlxmath.training.gradients import choose_gradients
from mlxmath.training.grpo import rollouts
from mlxmath.training.grpo.loss import Entropies, Reference, grpo_loss, target_entropies, target_logprobs
from mlxmath.training.grpo.report import RolloutReport, Silence
from mlxmath.training.grpo.rewards import Scores
from mlxmath.training.grpo.rollouts import Rollouts
from mlxmath.training.grpo.sampling import CompletionSampler, Prompt
from tests.conftest import make_tiny_llama
from tests.generation.words import tokenizer

__all__ = ["tokenizer"]
PROMPTS = [Prompt(i, f"q{i}", "1", tuple(range(1 + i, 5 + 2 * i))) for i in range(6)]
Rule = Callable[[int, int], float]
"""What completion number i of problem p gets."""


class FixedRewards:
    """Scores by rule instead of by text."""

    def __init__(self, rule: Rule, name: str) -> None:
        self._rule, self._name = rule, name

    def __call__(self, questions: Sequence[tuple[str, str, Any]], completions: Any, max_tokens: int) -> Scores:
        totals = np.array([self._rule(int(q[1:]), i % 4) for i, (q, *_) in enumerate(questions)], np.float64)
        return Scores(totals, {self._name: totals}, 0)


class Compared(Entropies):
    """Notes what it compares."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.steps: list[Any] = []

    def __call__(self, step: StepBatch) -> dict[int, list[bool]]:
        self.steps.append(step.sampler.rows.trajectories)  # type: ignore[attr-defined]
        return super().__call__(step)


class Made:
    """A source of windows on a tiny model, and what it told."""

    def __init__(
        self,
        tokenizer: TokenizerWrapper,
        rule: Rule,
        *,
        stop: StopRequest | None = None,
        epochs: int = 2,
        named: str = "fixed",
        **more: Any,
    ) -> None:
        self.model = make_tiny_llama()
        mx.random.seed(5)
        inject(self.model, LoraConfig(rank=4))
        config = GrpoConfig(**({"num_generations": 4, "max_completion_length": 6} | more))
        training = TrainingConfig(batch_size=4, grad_accumulation_steps=2, num_epochs=epochs)
        reference = None
        if config.beta:
            scorer = choose_gradients(
                self.model, partial(target_logprobs, temperature=config.temperature), Kernels(), compiled=False
            )
            reference = Reference(self.model, scorer)
        entropies = None
        if config.top_entropy_quantile < 1:
            asked = partial(target_entropies, temperature=config.temperature)
            of_targets = choose_gradients(self.model, asked, CpuKernels(), compiled=False)
            entropies = Compared(self.model, of_targets, config.top_entropy_quantile)
            self.compared = entropies.steps
        self.reports: list[RolloutReport] = []
        self.workers = Workers(
            self.model,
            lambda m: choose_gradients(m, partial(grpo_loss, config=config), Kernels(), compiled=False),
        )
        stop = StopRequest() if stop is None else stop
        drawing = CompletionSampler(
            self.workers, tokenizer, config, FixedRewards(rule, named), seed=training.seed, concurrency=8,  # type: ignore[arg-type]
            deadline=Deadline(1e9), stop=stop,
        )  # fmt: skip
        self.source = Rollouts(
            self.workers, drawing, PROMPTS, config, training, 64, Shape(32), reference=reference, entropies=entropies,
            deadline=Deadline(1e9), stop=stop, listener=self.reports.append, end=self.end,
        )  # fmt: skip

    ending, reason = None, ""

    def end(self, ending: str, reason: str) -> None:
        self.ending, self.reason = ending, reason

    def windows(self, count: int = 100) -> list[StepBatch]:
        found = []
        for window in self.source.steps():
            found.append(window)
            self.source.step_done()
            if len(found) == count:
                break
        return found


def problems_of(window: StepBatch) -> set[int]:
    return set(window.row_numbers(window.row_ids))


def varied(problem: int, number: int) -> float:
    return float(number == problem % 4)


def test_an_epoch_takes_each_problem_once(tokenizer: TokenizerWrapper) -> None:
    windows = Made(tokenizer, varied).windows()
    assert [len(problems_of(window)) for window in windows] == [2] * 6
    for epoch in (windows[:3], windows[3:]):
        assert sorted(p for window in epoch for p in problems_of(window)) == list(range(6))
    assert [problems_of(w) for w in windows[:3]] != [problems_of(w) for w in windows[3:]]


def test_a_groups_without_variance_stay_out_but_count_in_the_denominator(tokenizer: TokenizerWrapper) -> None:
    made = Made(tokenizer, lambda p, i: varied(p, i) if p < 3 else 1.0, loss_type="dapo")
    windows = made.windows()
    assert {p for window in windows for p in problems_of(window)} == {0, 1, 2}
    mixed = [r for r in made.reports if r.zero_variance == 0.5]
    assert mixed
    for window in windows:
        report = next(r for r in made.reports if divmod(r.rollout, 3) == (window.epoch, window.index))
        for batch in window.batches():
            num = sum(b.num_targets for b in window.batches())
            present = np.array(batch.weights_N)[: batch.num_targets]
            np.testing.assert_allclose(present / num, 1 / report.num_tokens, rtol=1e-5)


def test_with_a_constant_reward_nothing_is_trained(tokenizer: TokenizerWrapper) -> None:
    made = Made(tokenizer, lambda p, i: 1.0)
    assert made.windows() == [] and len(made.reports) == 6
    assert made.ending == "no_signal"
    with_kl = Made(tokenizer, lambda p, i: 1.0, beta=0.1)
    assert len(with_kl.windows()) == 6  # the KL still pulls
    assert with_kl.ending == "no_signal"
    by_entropy = Made(tokenizer, lambda p, i: 1.0, top_entropy_quantile=0.3)
    assert by_entropy.windows() == [] and by_entropy.ending == "no_signal"
    learned = Made(tokenizer, lambda p, i: varied(p, i) if p == 3 else 1.0)
    assert learned.windows() and learned.ending is None, "there was something to learn"


REASONS = [
    ({"max_completion_length": 1}, 0.0, "cut off at 1 tokens; raise --max-completion-length"),
    ({"max_completion_length": 400}, 0.0, r"100% of the answers are wrong \(0% cut off\); start from an adapter"),
    ({"max_completion_length": 400}, 1.0, "all answers are right already; take harder problems"),
    ({"max_completion_length": 400}, 0.5, "all were right or all wrong; raise --num-generations"),
    ({"max_completion_length": 400, "reward_weights": {"mine:same": 1.0}}, None, r"rewards \(mine:same\) do not tell"),
]


@pytest.mark.parametrize(("settings", "right", "message"), REASONS)
def test_why_nothing_could_be_learned(settings: dict[str, Any], right: float | None, message: str) -> None:
    config = GrpoConfig(**settings)
    silence = Silence()
    for _ in range(5):
        cut_off = 16.0 if config.max_completion_length == 1 else 0.0
        silence = silence.after(2, 16, cut_off, None if right is None else 16 * right)
    assert (silence.rollouts, silence.groups, silence.completions) == (5, 10, 80)
    assert re.search(message, silence.reason(config))
    assert silence.all_right == (right == 1.0)


def test_a_run_without_signal_gives_up_early_and_says_why(
    tokenizer: TokenizerWrapper, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollouts, "SILENT_GROUPS", 20)
    made = Made(tokenizer, lambda p, i: 1.0, epochs=1000)
    assert made.windows() == [] and made.ending == "no_signal"
    assert len(made.reports) == rollouts.SILENT_ROLLOUTS
    assert "in the last 10 rollouts" in made.reason
    assert capsys.readouterr().err.count("warning: nothing to learn from in 3 rollouts in a row: ") == 1

    late = Made(tokenizer, lambda p, i: varied(p, i) if len(late.reports) < 3 else 1.0, epochs=1000)
    windows = late.windows()
    assert len(windows) >= 2 and late.ending == "no_signal" and len(late.reports) < 20
    state = late.source.state()["rollouts"]
    assert state["num_signals"] == len(windows) and state["silence"]["rollouts"] == 0, "drawn again on a resume"


def test_micro_batches_that_were_too_large_stay_smaller(tokenizer: TokenizerWrapper) -> None:
    source, largest = Made(tokenizer, varied, max_completion_length=2).source, []
    source._max_tokens = 512
    for window in source.steps():
        source.step_done()
        largest.append(max(map(len, window.micro_batches)))
        if len(largest) == 2:
            while window := window.finer():
                pass
    assert min(largest[:2]) > 1 and set(largest[2:]) == {1}


def test_what_is_learned_already_is_no_reason_to_give_up(
    tokenizer: TokenizerWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollouts, "SILENT_GROUPS", 20)
    made = Made(tokenizer, lambda p, i: varied(p, i) if len(made.reports) < 3 else 1.0, epochs=8, named="correctness")
    assert made.windows() and made.ending is None and len(made.reports) == 24


def test_dynamic_sampling_draws_others(tokenizer: TokenizerWrapper) -> None:
    made = Made(tokenizer, lambda p, i: varied(p, i) if p % 2 else 0.0, dynamic_sampling=True)
    windows = made.windows()
    assert max(len(problems_of(window)) for window in windows) == 2
    assert len(windows) < 6 and {p for w in windows for p in problems_of(w)} == {1, 3, 5}
    assert sum(r.num_completions for r in made.reports) == 2 * 6 * 4


def test_dynamic_sampling_draws_no_prompt_twice_for_a_step(tokenizer: TokenizerWrapper) -> None:
    settings: dict[str, Any] = {"dynamic_sampling": True, "epochs": 6, "max_completion_length": 2}
    made = Made(tokenizer, lambda p, i: varied(p, i) if p in (3, 4) else 0.0, **settings)
    windows = made.windows()
    for window in windows:
        drawn = Counter(one.prompt_id for one in window.sampler.rows.trajectories)  # type: ignore[attr-defined]
        assert set(drawn.values()) == {4}
    assert sum(r.num_completions for r in made.reports) == 6 * 6 * 4, "each epoch has each prompt once"
    straight = [window.sampler.rows.trajectories for window in windows]  # type: ignore[attr-defined]
    first, second = (Made(tokenizer, lambda p, i: varied(p, i) if p in (3, 4) else 0.0, **settings) for _ in range(2))
    first.windows(3)
    second.source.restore(Checkpoint(Path(), Position(), {}, json.loads(json.dumps(first.source.state()))))
    rest = second.windows()
    assert [window.sampler.rows.trajectories for window in rest] == straight[3:]  # type: ignore[attr-defined]


def test_all_truncated_and_masked_leaves_nothing(tokenizer: TokenizerWrapper) -> None:
    made = Made(tokenizer, varied, max_completion_length=1, mask_truncated_completions=True)
    made.model.lm_head.weight = made.model.lm_head.weight * 0
    found = made.windows()
    for window in found:  # only those that ended at their first token
        assert all(len(window.sampler.rows.row(i)[1]) for i in window.row_ids)
    assert np.mean([r.truncated for r in made.reports]) > 0.9
    assert sum(len(window.row_ids) for window in found) < 0.1 * sum(r.num_completions for r in made.reports)


def test_the_reference_is_the_start_and_the_policy_comes_back(tokenizer: TokenizerWrapper) -> None:
    made = Made(tokenizer, varied, beta=0.1)
    base = make_tiny_llama()
    for name, array in tree_flatten(made.model.trainable_parameters()):
        if name.endswith("lora_b"):
            made.model.load_weights([(name, mx.random.normal(array.shape))], strict=False)
    before = dict(tree_flatten(made.model.trainable_parameters()))
    (window,) = made.windows(1)
    after = dict(tree_flatten(made.model.trainable_parameters()))
    assert all(mx.array_equal(before[name], after[name]) for name in before)
    for trajectory in window.sampler.rows.trajectories:  # type: ignore[attr-defined]
        logits = np.array(base(mx.array([trajectory.prompt + trajectory.drawn])))[0].astype(np.float64)
        logits = logits[len(trajectory.prompt) - 1 : -1]
        expected = logits[np.arange(len(logits)), list(trajectory.drawn)] - np.log(np.exp(logits).sum(-1))
        np.testing.assert_allclose(trajectory.reference, expected, atol=1e-4)
        assert not np.allclose(trajectory.reference, trajectory.logprobs, atol=1e-3)


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_the_tokens_of_highest_entropy_are_those_of_the_whole_step(tokenizer: TokenizerWrapper, beta: float) -> None:
    """Completions that teach nothing are compared too, and learned from no more than otherwise."""
    rule: Rule = lambda p, i: varied(p, i) if p < 3 else 1.0  # noqa: E731
    made = Made(tokenizer, rule, top_entropy_quantile=0.3, beta=beta, temperature=0.8)
    windows = made.windows()
    assert ({p for window in windows for p in problems_of(window)} == {0, 1, 2}) == (not beta)
    mixed = 0
    for window, place in zip(windows, made.compared, strict=True):
        of_all = []
        for t in place:
            logits = made.model(mx.array([t.prompt + t.drawn]))[0, len(t.prompt) - 1 : -1] / 0.8
            logprobs = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True), np.float64)
            of_all.append(-(np.exp(logprobs) * logprobs).sum(-1))
        least = np.quantile(np.concatenate(of_all), 0.7)
        expected = [e for e, t in zip(of_all, place, strict=True) if t.advantage or beta]
        rows = window.sampler.rows
        for entropies, kept in zip(expected, rows.entropic, strict=True):  # type: ignore[attr-defined]
            clear = np.abs(entropies - least) > 1e-5  # the first tokens of a group are drawn from the same
            assert ((entropies >= least) == kept)[clear].all()
        mixed += len(expected) < len(of_all)
        found = [(b.extra.entropic_N.sum().item(), b.num_targets) for b in window.batches()]
        assert sum(kept for kept, _ in found) == sum(map(sum, rows.entropic))  # type: ignore[attr-defined]
        assert sum(targets for _, targets in found) == sum(map(len, expected))
    assert bool(mixed) == (not beta)


def test_on_policy_ratios_are_one_and_all_ways_to_the_gradient_agree(tokenizer: TokenizerWrapper) -> None:
    made = Made(tokenizer, varied, temperature=0.8, importance_sampling_level="sequence")
    (window,) = made.windows(1)
    batch = window.batch(0)
    config = GrpoConfig(temperature=0.8, importance_sampling_level="sequence")
    found = {}
    for name, kernels, compiled in (
        ("plain", Kernels(), False), ("compiled", Kernels(), True), ("blocks", CpuKernels(), False),
    ):  # fmt: skip
        way = choose_gradients(made.model, partial(grpo_loss, config=config), kernels, compiled=compiled)
        sums, gradients = way.loss_and_gradients(batch)
        found[name] = np.array(sums), {key: np.array(g) for key, g in tree_flatten(gradients)}
    sums, gradients = found["plain"]
    weighted = np.array(batch.weights_N) * np.array(batch.extra.advantages_N)
    assert sums[0] == pytest.approx(-weighted.sum(), abs=1e-4) and sums[1] == 0
    assert any(np.abs(g).max() > 1e-4 for g in gradients.values())
    for name in ("compiled", "blocks"):
        np.testing.assert_allclose(found[name][0], sums, atol=1e-4)
        for key, gradient in gradients.items():
            np.testing.assert_allclose(found[name][1][key], gradient, atol=1e-4)


def test_it_goes_on_where_it_was_even_between_iterations(tokenizer: TokenizerWrapper) -> None:
    straight = Made(tokenizer, varied, num_iterations=2).windows()
    assert len(straight) == 12
    first = Made(tokenizer, varied, num_iterations=2)
    first.windows(5)
    saved = json.loads(json.dumps(first.source.state()))
    second = Made(tokenizer, varied, num_iterations=2)
    second.source.restore(Checkpoint(Path(), Position(), {}, saved))
    rest = second.windows()
    assert len(rest) == 7
    for one, other in zip(straight[5:], rest, strict=True):
        assert one.sampler.rows.trajectories == other.sampler.rows.trajectories  # type: ignore[attr-defined]
        assert (one.epoch, one.index) == (other.epoch, other.index)


def test_a_stop_ends_it(tokenizer: TokenizerWrapper) -> None:
    stop = StopRequest()
    made = Made(tokenizer, varied, stop=stop)
    made.windows(1)
    stop.signal = 15
    assert made.windows() == [] and made.ending == "stopped"
    assert dataclasses.asdict(made.reports[0])["rollout"] == 0
