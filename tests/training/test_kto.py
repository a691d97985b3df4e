"""KTO on a model: a step's baseline by hand, however its rows share micro-batches; and whole runs, resumed too."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file

import mlxmath
from mlxmath.config.losses import DpoConfig
from mlxmath.config.schema import LoraConfig
from mlxmath.config.training import TrainingConfig
from mlxmath.data.batch import Shape
from mlxmath.data.completions import Completions, CompletionSampler, CompletionStep
from mlxmath.data.gold import gold
from mlxmath.data.problem import Problem
from mlxmath.errors import InputError, MlxmathError
from mlxmath.models.kernels.cpu import CpuKernels
from mlxmath.models.lora.inject import adapter_arrays, inject
from mlxmath.sweeps.runs import state_of
from mlxmath.training.accumulate import Workers
from mlxmath.training.checkpoint import Position, Saver
from mlxmath.training.dpo import ReferenceLogprobs, WithReference, frozen
from mlxmath.training.gradients import choose_gradients
from mlxmath.training.kto import METRICS, Baseline, kto_loss
from mlxmath.training.pairs import completion_logprobs
from tests.conftest import FakeRows, make_tiny_llama
from tests.loop import summed

CONFIG = DpoConfig(loss_type="kto", beta=0.3, desirable_weight=1.4, undesirable_weight=0.8)
IS_DESIRABLE = np.array([True, False, True, True, False, True, False])
QUESTIONS = np.array([5, 5, 6, 7, 7, 8, 9], np.uint64)
PROMPTS, LENGTHS = (3, 3, 5, 2, 2, 4, 6), (9, 12, 8, 20, 7, 11, 19)


def completions() -> Completions:
    rng = np.random.default_rng(3)
    tokens = [rng.integers(1, 64, length) for length in LENGTHS]
    masks = [(np.arange(n) >= p).astype(np.uint8) for n, p in zip(LENGTHS, PROMPTS, strict=True)]
    return Completions(FakeRows(tokens, masks), np.arange(7), IS_DESIRABLE, QUESTIONS)


def step(**training: Any) -> CompletionStep:
    max_tokens = training.pop("max_tokens", 400)
    config = TrainingConfig(**{"batch_size": 7, "grad_accumulation_steps": 1} | training)
    return CompletionSampler(completions(), config, max_tokens, Shape(8)).step(np.arange(7)[::-1], 0, 0)


class Made:
    """A model whose adapters have moved, its reference, and workers."""

    def __init__(self, seed: int = 7, count: int = 1) -> None:
        self.model = make_tiny_llama()
        self.base = frozen(self.model)
        mx.random.seed(seed)
        inject(self.model, LoraConfig(rank=4))
        arrays = adapter_arrays(self.model)
        moved = [(name, a + 0.3 * mx.random.normal(a.shape)) for name, a in arrays.items()]
        self.model.load_weights(moved, strict=False)
        known = ReferenceLogprobs(rows_each=1)

        def gradients_of(model: nn.Module) -> WithReference:
            policy = choose_gradients(model, partial(kto_loss, config=CONFIG), CpuKernels(1), compiled=False)
            reference = choose_gradients(self.base, completion_logprobs, CpuKernels(1), compiled=False)
            return WithReference(policy, reference, known)

        self.known = known
        self.workers = Workers(self.model, gradients_of, count)
        self.baseline = Baseline(self.workers, CONFIG.beta)


def logprob(model: nn.Module, prompt: Any, completion: Any) -> float:
    tokens = mx.array(np.concatenate([prompt, completion]))
    logits = model(tokens[None, :-1])[0]
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    chosen = mx.take_along_axis(logprobs, tokens[1:, None], axis=-1)[len(prompt) - 1 :, 0]
    return float(chosen.sum().item())


def test_the_baseline_and_the_loss_by_hand() -> None:
    """Moved on by one, rows 1 and 4 would meet their own questions; by two, none does."""
    rows, positive = completions(), 0
    parts = [(rows.row(i)[0][:p], rows.row(i)[0][p:]) for i, p in enumerate(PROMPTS)]
    for seed in range(6):
        made = Made(seed)
        ratios = []
        for i, (prompt, _) in enumerate(parts):
            other = parts[(i - 2) % 7][1][: max(LENGTHS) - len(prompt)]
            ratios.append(logprob(made.model, prompt, other) - logprob(made.base, prompt, other))
        kl = max(0.0, float(np.mean(ratios)))
        positive += kl > 0
        found = made.baseline.of(step(), lambda: False)
        assert isinstance(found, CompletionStep)
        assert found.whole.kl == pytest.approx(kl, abs=1e-4)
        assert (found.whole.num_rows, found.whole.num_desirable) == (7, 4)
        assert not made.known.known and not made.known.of_batches  # the others are never asked for again
        own = np.array([logprob(made.model, *each) - logprob(made.base, *each) for each in parts])
        signs = np.where(IS_DESIRABLE, 1, -1)
        losses = np.where(IS_DESIRABLE, 1.4, 0.8) / (1 + np.exp(0.3 * signs * (own - kl)))
        sums = summed(made.workers, found)
        assert sums.num_targets == 7
        assert sums.loss_sum == pytest.approx(losses.sum(), abs=1e-4)
        metrics = dict(zip(METRICS, np.array(sums.metric_sums) / 7, strict=True))
        assert metrics["chosen_reward"] == pytest.approx(0.3 * own[IS_DESIRABLE].mean(), abs=1e-4)
        assert metrics["rejected_reward"] == pytest.approx(0.3 * own[~IS_DESIRABLE].mean(), abs=1e-4)
        assert metrics["accuracy"] == pytest.approx((signs * (own - kl) > 0).mean())
        assert metrics["kl"] == pytest.approx(kl, abs=1e-4)
    assert 0 < positive < 6


def test_how_a_step_is_split_changes_nothing() -> None:
    def found(count: int = 1, **training: Any) -> tuple[Any, float]:
        made = Made(count=count)
        prepared = made.baseline.of(step(**training), lambda: False)
        assert isinstance(prepared, CompletionStep)
        sums = dict(tree_flatten(summed(made.workers, prepared).grad_sum))
        finer = prepared.finer()
        assert finer is not None and finer.whole == prepared.whole and len(finer.micro_batches) > 1
        made.workers.close()
        return sums, prepared.whole.kl

    (expected, kl) = found()
    for ways in ({"count": 2}, {"max_tokens": 48}, {"batching": "pack"}, {"batching": "pad", "batch_size": 2}):
        sums, other = found(**ways)
        assert other == pytest.approx(kl, abs=1e-5)
        for name, array in expected.items():
            np.testing.assert_allclose(sums[name], array, atol=2e-5, err_msg=f"{ways} {name}")


def test_no_completion_but_a_prompts_own_is_left_out() -> None:
    rows = completions()
    assert rows.mismatched([3]).row(0)[0].tolist() == rows.row(3)[0].tolist()
    same = Completions(rows.rows, rows.numbers, IS_DESIRABLE, np.zeros(7, np.uint64))
    made = [same.mismatched(range(7)).row(i) for i in range(7)]
    ends = [rows.row(i)[0][PROMPTS[i] :].tolist() for i in range(7)]
    for i, (tokens, mask) in enumerate(made):
        assert tokens[: PROMPTS[i]].tolist() == rows.row(i)[0][: PROMPTS[i]].tolist() and not mask[: PROMPTS[i]].any()
        kept = tokens[PROMPTS[i] :].tolist()
        assert mask[PROMPTS[i] :].all() and kept == ends[i - 1][: len(kept)] and len(tokens) <= max(LENGTHS)


ROWS = [
    {"prompt": f"What is {a} + {b}?", "completion": f"{a + b + (0 if good else 7)}", "label": good}
    for a in (3, 4, 5, 6)
    for b in (1, 2)
    for good in (True, False)
]
FEW: dict[str, Any] = {
    "model": "demo", "loss_type": "kto", "batch_size": 4, "grad_accumulation_steps": 1, "learning_rate": 3e-3,
    "max_seq_len": 64, "template": "plain", "num_epochs": 2, "validation_split": 2, "eval_every": 2, "save_every": 2,
    "lora_dropout": 0.1,
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def figures(result: Any, kind: str) -> list[dict[str, Any]]:
    clocks = ("time", "seconds", "checksum")
    return [{k: v for k, v in e.items() if k not in clocks} for e in result.events if e["event"] == kind]


@pytest.mark.usefixtures("place")
def test_labels_are_learned_and_a_killed_run_goes_on_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    straight = mlxmath.dpo(ROWS, adapter_path="straight", **FEW)
    steps, held_out = figures(straight, "step"), figures(straight, "validation")
    assert steps[0]["targets"] == 4 and steps[0]["kl"] == 0 and steps[0]["loss"] == pytest.approx(0.5)
    assert steps[-1]["margin"] > 0.02 and steps[-1]["margin"] == pytest.approx(
        steps[-1]["chosen_reward"] - steps[-1]["rejected_reward"], abs=1e-5
    )
    assert len(held_out) >= 3 and held_out[0]["targets"] == 4 and held_out[0]["loss"] == pytest.approx(0.5)
    assert all(0 <= event["accuracy"] <= 1 and event["kl"] >= 0 for event in (*steps, *held_out))

    plain = Saver.after

    def die(self: Saver, position: Position) -> None:
        plain(self, position)
        if position.step == 5:
            raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Saver, "after", die)
        with pytest.raises(ZeroDivisionError):
            mlxmath.dpo(ROWS, adapter_path="killed", **FEW)
    resumed = mlxmath.dpo(ROWS, adapter_path="killed", resume=True, **FEW)
    one, other = (load_file(run.folder / "adapters.safetensors") for run in (straight, resumed))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert figures(resumed, "step") == steps and figures(resumed, "validation") == held_out


@pytest.mark.usefixtures("place")
def test_labels_are_judged_and_chosen_by_answers() -> None:
    """Golds are those of desirable completions, and rows are told by what the best adapters are the best by."""
    rows = [
        {"prompt": f"What is {n} + 2?", "completion": f" {n + 2 + wrong}\n#### {n + 2 + wrong}", "label": not wrong}
        for n in range(9) for wrong in (1, 0)
    ]  # fmt: skip
    Path("exam.jsonl").write_text(json.dumps({"question": "What is 40 + 2?", "answer": "42"}))
    found = mlxmath.dpo(
        rows, adapter_path="answers", judge="exam.jsonl", validation_metric="answers", row_losses=True,
        **FEW | {"max_steps": 2, "validation_split": 3},
    )  # fmt: skip
    assert found.verdict is not None and found.verdict["total"] == 1
    told = json.loads(Path("answers/held_out.json").read_text())
    best = max(figures(found, "validation"), key=lambda event: event["answers"])
    assert told["metric"] == "answers" and [count for _, _, count in told["rows"]] == [1, 1, 1]
    assert sum(value for _, value, _ in told["rows"]) / 3 == pytest.approx(best["answers"])
    state = state_of(Path("answers"))
    assert state.metric == "answers" and state.higher_is_better and state.best() == (best["step"], best["answers"])
    problem = partial(Problem, id="0", question="What is 1 + 2?", solution="4\n#### 4")
    assert [gold(problem(is_desirable=label)) for label in (None, True, False)] == ["4", "4", None]


@pytest.mark.usefixtures("place")
def test_a_pair_is_one_of_each_and_what_is_no_label_is_counted_or_refused() -> None:
    pairs = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": other["completion"]}
        for row, other in zip(ROWS[::2], ROWS[1::2], strict=True)
    ]
    once = FEW | {"max_steps": 1, "eval_every": None, "validation_split": None}
    paired = mlxmath.dpo(pairs, adapter_path="paired", **once)
    single = mlxmath.dpo(ROWS, adapter_path="single", **once)
    for run in (paired, single):
        assert '"training_rows": 16' in (run.folder / "run.json").read_text()
    odd = [*ROWS[:4], ROWS[4] | {"label": "perhaps"}, ROWS[5] | {"label": 1}, ROWS[6] | {"completion": " "}]
    mlxmath.dpo(odd, adapter_path="odd", **once | {"batch_size": 2})
    assert '"training_rows": 5' in Path("odd/run.json").read_text()
    with pytest.raises(MlxmathError, match="no completion is left.*label that is neither true nor false"):
        mlxmath.dpo([row | {"label": "so so"} for row in ROWS], adapter_path="none", **once)
    for method, settings in (
        (mlxmath.dpo, once | {"loss_type": "sigmoid"}),
        (mlxmath.reward_model, {k: v for k, v in once.items() if k != "loss_type"}),
    ):
        with pytest.raises(InputError, match="completions with a label .* are for `mlxmath dpo --loss-type kto`"):
            method(ROWS, adapter_path="other", **settings)  # type: ignore[operator]
    with pytest.raises(InputError, match="make the step larger"):
        mlxmath.dpo(ROWS, adapter_path="other", **once | {"batch_size": 1})
    planned = [mlxmath.plan("dpo", loss_type=name, model="demo", batching="bucket") for name in ("kto", "sigmoid")]
    assert planned[0].memory.total <= planned[1].memory.total
