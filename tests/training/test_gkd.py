"""On-policy distillation: its gradients by every way, who writes which text, and what a step depends on."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlxmath.config.gkd import GkdConfig
from mlxmath.config.schema import RunConfig
from mlxmath.config.training import TrainingConfig
from mlxmath.data.batch import Batch, PieceTargets, Shape, make_batch, make_continued
from mlxmath.errors import InputError
from mlxmath.generation.engine import Completion
from mlxmath.models.kernels.cpu import CpuKernels
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.linear_ce import FullLogits
from mlxmath.runtime.ranks import Ranks
from mlxmath.training.gkd.draws import Draws
from mlxmath.training.gkd.kept import kept_of
from mlxmath.training.gkd.loss import TeacherOutputs, WithTeacher, gkd_loss
from mlxmath.training.gkd.pieces import pieces
from mlxmath.training.gkd.teacher import check_teacher
from mlxmath.training.gradients import choose_gradients
from mlxmath.training.grpo.sampling import DrawingStopped, Prompt
from tests.conftest import FakeRows, make_tiny_llama
from tests.generation.words import tokenizer
from tests.models.adapted import adapted, assert_close, rows

__all__ = ["tokenizer"]
BETAS = (0.0, 0.4, 1.0)


def a_teacher(vocab_size: int = 64) -> nn.Module:
    """Another model with more or fewer tokens, frozen."""
    model = make_tiny_llama(num_hidden_layers=1, hidden_size=16, vocab_size=vocab_size)
    mx.random.seed(9)
    model.update(nn.utils.tree_map(lambda a: a + 0.3 * mx.random.normal(a.shape), model.parameters()))
    model.freeze()
    model.eval()
    return model


def wanted(student: nn.Module, teacher: nn.Module, texts: FakeRows, config: GkdConfig) -> tuple[Any, dict[str, Any]]:
    """Loss and entropy sums and the loss's gradients, by autodiff over full logits, text by text."""

    def sums(model: nn.Module) -> tuple[mx.array, mx.array]:
        total, entropy = mx.zeros(()), mx.zeros(())
        for tokens, mask in zip(texts.tokens, texts.masks, strict=True):
            inputs, counted = mx.array(tokens[None, :-1]), mx.array(mask[1:].astype(np.float32))
            s, t = (
                (each(inputs)[0, :, : min(64, len(teacher.model.embed_tokens.weight))] / config.temperature)
                for each in (model, teacher)
            )
            s, t = (x - mx.logsumexp(x, axis=-1, keepdims=True) for x in (s, t))
            p, q = mx.exp(s), mx.exp(t)
            m = mx.log((1 - config.beta) * p + config.beta * q)
            if config.beta == 0:
                rows = (q * (t - s)).sum(-1)
            elif config.beta == 1:
                rows = (p * (s - t)).sum(-1)
            else:
                rows = config.beta * (q * (t - m)).sum(-1) + (1 - config.beta) * (p * (s - m)).sum(-1)
            total, entropy = total + (rows * counted).sum(), entropy - ((p * s).sum(-1) * counted).sum()
        return total, entropy

    found, gradients = nn.value_and_grad(student, sums)(student)
    return found, dict(tree_flatten(gradients))


def ours(student: nn.Module, teacher: nn.Module, config: GkdConfig, kernels: Any, *, compiled: bool) -> WithTeacher:
    outputs = TeacherOutputs(teacher, kernels)
    loss = partial(gkd_loss, config=config, teacher=outputs.head)
    return WithTeacher(choose_gradients(student, loss, kernels, compiled=compiled), outputs)


@pytest.mark.parametrize("vocab_size", [64, 50, 80])
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize(("kernels", "compiled"), [(CpuKernels, False), (Kernels, True)])
def test_gradients_by_every_way_are_those_of_full_logits(
    kernels: Any, compiled: bool, beta: float, vocab_size: int
) -> None:
    config, texts = GkdConfig(beta=beta, temperature=0.8), rows(50)
    texts.masks[1][:7] = 0
    student, teacher = adapted(), a_teacher(vocab_size)
    (total, entropy), gradients = wanted(student, teacher, texts, config)
    way = ours(student, teacher, config, kernels(), compiled=compiled)
    batch = make_batch(texts, (0, 1, 2), Shape(32, few=compiled))
    assert_close(way.loss(batch), mx.stack([total, entropy]), 1e-4, "the loss alone")
    sums, found = way.loss_and_gradients(batch)
    assert_close(sums, mx.stack([total, entropy]), 1e-4, "the sums")
    flat = dict(tree_flatten(found))
    assert flat.keys() == gradients.keys()
    for name, array in gradients.items():
        assert_close(flat[name], array, 1e-3, name)


def test_rows_that_go_on_from_prompts_give_the_same() -> None:
    config, texts = GkdConfig(), rows(50)
    texts.tokens[1][:5] = texts.tokens[0][:5]
    starts = [5, 5, 3]
    for mask, start in zip(texts.masks, starts, strict=True):
        mask[: start + 1] = 0
    student, teacher = adapted(), a_teacher()
    way = ours(student, teacher, config, CpuKernels(), compiled=False)
    assert way.cannot_share() is None
    whole = way.loss_and_gradients(make_batch(texts, (0, 1, 2), Shape(32)))
    shared = way.loss_and_gradients(make_continued(texts, (0, 1, 2), starts, Shape(32)))
    assert_close(shared[0], whole[0], 1e-5, "the sums")
    for name, array in tree_flatten(whole[1]):
        assert_close(dict(tree_flatten(shared[1]))[name], array, 1e-3, name)


PROMPTS = [Prompt(i, f"q{i}", "1", tuple(range(1 + i, 5 + 2 * i)), {}, (40 + i, 2)) for i in range(5)]


class Sampler:
    """Draws what tells who was asked when, and grades half of it right."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, list[int]]] = []

    def completions(self, prompts: Sequence[Prompt], number: int) -> list[Completion]:
        self.asked.append((number, [prompt.id for prompt in prompts]))
        if number == 7:
            raise DrawingStopped
        return [Completion(f"{p.id}", (10 + p.id,), "stop", 4, (10 + p.id, 2)) for p in prompts for _ in range(2)]

    def scores(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Any:
        right = np.arange(len(completions)) % 2 * 1.0
        return SimpleNamespace(total_R=right, by_name={"correctness": right}, num_timed_out=0)


def draws(lmbda: float, sampler: Sampler, ended: list[str]) -> Draws:
    ranks = SimpleNamespace(any=lambda _, own: own)
    workers: Any = SimpleNamespace(ranks=ranks, num_in_all=1, cannot_share=None)
    deadline: Any = SimpleNamespace(room_s=1e9)
    return Draws(
        workers, sampler, PROMPTS, GkdConfig(lmbda=lmbda, num_generations=2),  # type: ignore[arg-type]
        TrainingConfig(batch_size=4, grad_accumulation_steps=1), 64, Shape(32), deadline=deadline, stop=False,  # type: ignore[arg-type]
        end=lambda why, _: ended.append(why),
    )  # fmt: skip


def taken(step: Any) -> list[tuple[int, tuple[int, ...]]]:
    return sorted((t.prompt_id, t.drawn) for t in step.sampler.rows.trajectories)


def test_a_step_is_made_by_its_number_and_ends_with_the_time() -> None:
    sampler, ended = Sampler(), []
    steps = list(draws(1.0, sampler, ended).steps(0, 0))
    assert [(step.epoch, step.index) for step in steps] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert ended == ["deadline"]
    for epoch in range(2):
        asked = [prompt for _, prompts in sampler.asked[3 * epoch : 3 * epoch + 3] for prompt in prompts]
        assert sorted(asked) == [0, 1, 2, 3, 4]
    again = Sampler()
    resumed = next(draws(1.0, again, []).steps(1, 1))
    assert taken(resumed) == taken(steps[4]) and again.asked[0] == sampler.asked[4]
    for step in steps:
        batch = step.batch(0)
        weights = np.array(batch.weights_N)[: batch.num_targets]
        np.testing.assert_allclose(weights, 1, rtol=1e-6)


def test_micro_batches_that_were_too_large_stay_smaller() -> None:
    source = draws(1.0, Sampler(), [])
    source._max_tokens = 512
    steps = source.steps(0, 0)
    first = next(steps)
    assert len(first.micro_batches[0]) > 1
    while first := first.finer():  # type: ignore[assignment]
        pass
    assert {len(ids) for step in steps for ids in step.micro_batches} == {1}


def test_lmbda_is_the_share_of_problems_that_the_student_writes() -> None:
    def written(lmbda: float) -> list[int]:
        source = draws(lmbda, Sampler(), [])
        return [tokens[0] for number in range(6) for _, tokens in taken(next(source.steps(number // 3, number % 3)))]

    assert max(written(1.0)) < 40 and len(written(1.0)) == 20
    assert min(written(0.0)) >= 40 and len(written(0.0)) == 10
    half = written(0.5)
    assert min(half) < 40 <= max(half)


def test_a_teacher_with_other_tokens_is_refused_by_name_where_tokens_are_compared(
    tokenizer: TokenizerWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: dict[str, int] = dict(tokenizer.get_vocab())
    teacher: Any = SimpleNamespace(label="big", model="big", recorded_template=lambda: None)

    def check(vocabulary: dict[str, int], **more: Any) -> bool:
        other = SimpleNamespace(get_vocab=lambda: vocabulary)
        monkeypatch.setattr("mlxmath.training.gkd.teacher.load_tokenizer", lambda _: other)
        template: Any = SimpleNamespace(name="tutor", definition={})
        return check_teacher(teacher, tokenizer, template, GkdConfig(**more))

    assert not check(known, beta=0.5)
    assert not check(known | {"<more>": max(known.values()) + 1}, beta=0.5)
    names = list(known)
    swapped = known | {names[3]: known[names[4]], names[4]: known[names[3]]}
    for more in ({"beta": 0.5}, {"lmbda": 0.5}):
        with pytest.raises(InputError, match=r"--teacher big: its token ids are not the student's \(\d+ is "):
            check(swapped, **more)
    with pytest.raises(InputError, match="it lacks"):
        check({token: known[token] for token in names[: len(names) // 2]}, beta=0.0)
    assert check(swapped)


class Cut:
    """A tokenizer whose token number i is the text number i."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def decode(self, tokens: Sequence[int], **_: Any) -> str:
        return b"".join(self.texts[i].encode("latin-1") for i in tokens).decode("utf-8", "replace")


def test_pieces_lie_between_places_where_tokens_of_both_end() -> None:
    euro = "\xe2", "\x82\xac"  # a character in two tokens
    own, other = Cut(" 1", "2", " +", " 3", *euro, "!"), Cut("12", " ", "+ 3", "\xe2\x82\xac", "?")
    assert pieces(own, range(4), other, range(3), has_end=False) == [
        (slice(0, 2), slice(0, 1)), (slice(2, 4), slice(1, 3)),
    ]  # fmt: skip
    with_euro = pieces(own, range(6), other, range(4), has_end=True)
    assert with_euro[2:] == [(slice(4, 6), slice(3, 4)), (slice(6, 7), slice(4, 5))]
    # of texts that go apart, what they have in common
    assert pieces(own, (0, 1, 6), other, (0, 4), has_end=False) == [(slice(0, 2), slice(0, 1))]


def test_of_pieces_the_value_is_the_sampled_divergence_and_the_gradient_the_policys() -> None:
    mx.random.seed(2)
    logits, targets = mx.random.normal((6, 11)), mx.array([1, 5, 2, 2, 9, 0])
    old = FullLogits().logprobs(logits, targets, 0.7)
    excess, shares = mx.array([0.6, 0.6, -0.3, 0, 1.5, 4]), mx.array([0.3, 0.3, -0.3, 0, 1.5, 4])
    weights = mx.array([1.0, 1, 1, 1, 1, 0])
    extra = PieceTargets(excess, shares, old)
    batch = Batch(mx.zeros((1, 6), mx.int32), mx.arange(6), targets, weights, (0,), 6, 5, extra)
    loss = lambda x: gkd_loss(x, batch, FullLogits(), config=GkdConfig(temperature=0.7))  # noqa: E731
    total, entropy = loss(logits).tolist()
    assert total == pytest.approx(1.8, rel=1e-5) and entropy == pytest.approx(-old[:5].sum().item(), rel=1e-5)
    wanted = mx.grad(lambda x: (excess * weights * FullLogits().logprobs(x, targets, 0.7)).sum())(logits)
    np.testing.assert_allclose(np.array(mx.grad(lambda x: loss(x)[0])(logits)), np.array(wanted), rtol=1e-4, atol=1e-6)


def test_a_token_that_the_teacher_has_no_embedding_for_is_not_looked_up() -> None:
    texts, clipped = rows(64), rows(64)
    for tokens, mask, other, of_other in zip(*vars(texts).values(), *vars(clipped).values(), strict=True):
        tokens[1], mask[:6], of_other[:6] = 60, 0, 0
        np.minimum(tokens, 49, out=other)
    for kernels in (Kernels(), CpuKernels()):
        teacher = TeacherOutputs(a_teacher(50), kernels)
        for make in (make_batch, partial(make_continued, starts=[4, 4, 4])):
            found, wanted = (np.array(teacher(make(each, (0, 1, 2), shape=Shape(32)))) for each in (texts, clipped))
            np.testing.assert_array_equal(found, wanted)


def test_what_a_teacher_said_is_of_a_student_with_so_many_embeddings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are padded otherwise have the same tokens, but ids above their embedding would be read anywhere."""
    asked: list[int] = []

    def ask(run: Any, *_: Any) -> tuple[np.ndarray, np.ndarray]:
        asked.append(len(run.model.model.embed_tokens.weight))
        return np.zeros((2 * len(PROMPTS), 1), np.int32), np.zeros((2 * len(PROMPTS), 2), np.float32)

    monkeypatch.setattr("mlxmath.training.gkd.kept._ask", ask)
    config = RunConfig.model_validate({"data": {"cache_dir": str(tmp_path)}, "gkd": {"teacher_top_k": 1, "lmbda": 0.0}})
    teacher: Any = SimpleNamespace
    data: Any = SimpleNamespace(fingerprint="f", prompts=PROMPTS)
    for size in (64, 80, 64):
        run: Any = SimpleNamespace(
            config=config, ranks=Ranks(), device=SimpleNamespace(compute_dtype="float32"),
            model=make_tiny_llama(vocab_size=size),
        )  # fmt: skip
        assert len(kept_of(run, data, {}, teacher)) == len(PROMPTS)
    assert asked == [64, 80]
