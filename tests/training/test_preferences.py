"""Preference and reward-model gradients on a model: the reference, micro-batches, workers, scores as rewards."""

from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlxmath.config.losses import DpoConfig, RewardModelConfig
from mlxmath.config.schema import LoraConfig
from mlxmath.config.training import TrainingConfig
from mlxmath.data.batch import Shape
from mlxmath.data.batching import StepBatch
from mlxmath.data.codec import load_tokenizer
from mlxmath.data.pairs import Pairs, PairSampler
from mlxmath.errors import MlxmathError
from mlxmath.grading import grade
from mlxmath.models.kernels.cpu import CpuKernels
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.linear_ce import FullLogits
from mlxmath.models.lm_head import add_score_head
from mlxmath.models.lora.adapter import CONFIG, WEIGHTS, adapter_config, load_adapter, read_reward_model, save_weights
from mlxmath.models.lora.inject import adapter_arrays, inject, open_blocks
from mlxmath.runtime.ranks import Ranks
from mlxmath.training.accumulate import Workers, replica
from mlxmath.training.checkpoint import Checkpoint, Position
from mlxmath.training.dpo import ReferenceLogprobs, WithReference, dpo_loss, frozen
from mlxmath.training.gradients import choose_gradients
from mlxmath.training.grpo.rewards import Sample
from mlxmath.training.held_out import mean_loss
from mlxmath.training.pairs import REWARDS, completion_logprobs
from mlxmath.training.reward_model import RewardGradients, RewardModel, bradley_terry_loss, scores, with_score
from tests.conftest import FakeRows, make_tiny_llama
from tests.loop import summed

DEMO_MODEL = Path(__file__).parents[2] / "mlxmath" / "demo" / "model"
LORA = LoraConfig(rank=4, targets=("q_proj", "v_proj", "down_proj"))


@pytest.fixture
def rows() -> FakeRows:
    rng = np.random.default_rng(3)
    tokens = [rng.integers(1, 64, rng.integers(5, 41)) for _ in range(18)]
    return FakeRows(tokens, [(np.arange(len(t)) >= len(t) // 3).astype(np.uint8) for t in tokens])


def window_of(rows: FakeRows, *, batching: Any = "bucket", tokens: int = 160, scored: bool = False) -> StepBatch:
    config = TrainingConfig(batch_size=9, batching=batching)
    plan = PairSampler(Pairs(rows, packed=batching == "pack", scored=scored), config, tokens, Shape(8))
    return plan.step(np.arange(9), 0, 0)


def moved(model: nn.Module, seed: int = 7) -> None:
    """Let every trained array differ from where it began."""
    mx.random.seed(seed)
    arrays = adapter_arrays(model)
    model.load_weights([(name, a + 0.1 * mx.random.normal(a.shape)) for name, a in arrays.items()], strict=False)
    mx.eval(model.parameters())


class Made:
    """A tiny model before training, its reference, and the workers that train it."""

    def __init__(self, *, with_adapter: bool = False, full: bool = False, count: int = 1, **dpo: Any) -> None:
        self.model = make_tiny_llama()
        base = replica(self.model)
        mx.random.seed(3)
        if full:
            open_blocks(self.model, -1)
        else:
            inject(self.model, LORA)
        if with_adapter:
            moved(self.model)
        reference = frozen(self.model if with_adapter else base)
        self.kept = ReferenceLogprobs()

        def gradients_of(model: nn.Module) -> Any:
            policy = choose_gradients(model, partial(dpo_loss, config=DpoConfig(**dpo)), CpuKernels(), compiled=False)
            return WithReference(
                policy,
                choose_gradients(replica(reference), completion_logprobs, CpuKernels(), compiled=False),
                self.kept,
            )

        self.workers = Workers(self.model, gradients_of, count)


def row_logprobs(model: nn.Module, window: StepBatch) -> dict[int, list[float]]:
    """Of the chosen and the rejected completion by the pair, from this model alone, of which nothing is trained."""
    model.freeze()
    scorer = choose_gradients(model, completion_logprobs, CpuKernels(), compiled=False)
    found = {}
    for batch in window.batches():
        values = scorer.loss(batch).tolist()
        found |= {pair: values[2 * i : 2 * i + 2] for i, pair in enumerate(batch.row_ids)}
    return found


def test_the_reference_is_exactly_the_base(rows: FakeRows) -> None:
    window = window_of(rows)
    expected = row_logprobs(make_tiny_llama(), window)
    for full in (False, True):
        made = Made(full=full)
        first = summed(made.workers, window)
        assert first.loss_sum == pytest.approx(9 * np.log(2), rel=1e-6)
        assert first.metric_sums[:4] == (0, 0, 0, 0), "the policy is its reference, to the last bit"
        other = Made(full=full)
        moved(other.model)
        sums = summed(other.workers, window)
        assert abs(sums.metric_sums[2]) > 0.01
        for each in (made, other):
            assert {pair: list(values) for pair, values in each.kept.known.items()} == expected


def test_with_an_initial_adapter_the_reference_is_its_frozen_copy(rows: FakeRows) -> None:
    window = window_of(rows)
    made = Made(with_adapter=True)
    expected = row_logprobs(replica(made.model), window)
    assert expected != row_logprobs(make_tiny_llama(), window)
    moved(made.model, seed=11)
    summed(made.workers, window)
    assert {pair: list(values) for pair, values in made.kept.known.items()} == expected


def flat(sums: Any) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in tree_flatten(sums.grad_sum)}


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "orpo", "cpo"])
def test_how_a_window_is_split_changes_nothing(rows: FakeRows, loss_type: str) -> None:
    def gradients(count: int = 1, **window: Any) -> tuple[dict[str, np.ndarray], tuple[float, ...]]:
        made = Made(count=count, loss_type=loss_type)
        moved(made.model)
        sums = summed(made.workers, window_of(rows, **window))
        assert sums.num_targets == 9
        return flat(sums), (sums.loss_sum, *sums.metric_sums)

    whole, reported = gradients(tokens=10**6)
    for count, window in ((1, {"tokens": 160}), (2, {"tokens": 80}), (1, {"batching": "pack", "tokens": 90})):
        found, others = gradients(count, **window)
        assert others == pytest.approx(reported, rel=1e-4, abs=1e-4)
        for name, array in whole.items():
            np.testing.assert_allclose(found[name], array, atol=2e-5 * max(1, np.abs(array).max()))


def checkpoint_of(kept: ReferenceLogprobs, folder: Path) -> Checkpoint:
    for name, contents in kept.files().items():
        assert isinstance(contents, bytes)
        (folder / name).write_bytes(contents)
    return Checkpoint(folder, Position(), {}, kept.state())


def test_reference_logprobs_are_computed_once_and_restored(rows: FakeRows, tmp_path: Path) -> None:
    made = Made()
    summed(made.workers, window_of(rows))
    computed = dict(made.kept.known)
    saved = checkpoint_of(made.kept, tmp_path)
    made.kept.known[0] = (-1.0, -2.0)
    summed(made.workers, window_of(rows))
    assert made.kept.known[0] == (-1.0, -2.0), "what is known is not computed again"
    other = ReferenceLogprobs()
    other.restore(saved)
    assert other.known == computed and len(computed) == 9, "to the last bit"


def test_reference_logprobs_of_many_pairs_are_a_small_array_and_nothing_in_json(tmp_path: Path) -> None:
    kept = ReferenceLogprobs()
    for pair in range(10_000):
        kept.add(pair, -1.0 / (1 + pair), -2.0)
    saved = checkpoint_of(kept, tmp_path)
    assert saved.state == {}
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size < 16 * 10_000 + 200
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(MlxmathError, match="reference.npy is not what a checkpoint of pairs holds"):
        ReferenceLogprobs().restore(saved)


class Two(Ranks):
    """The first of two ranks; the other one has found what it is told to have."""

    def __init__(self, other: list[Any]) -> None:
        super().__init__()
        self._other = other

    @property
    def size(self) -> int:
        return 2

    def gather(self, name: str, value: Any) -> list[Any]:
        return [value, self._other]


def test_what_each_rank_computed_is_in_the_checkpoint_of_the_first(tmp_path: Path) -> None:
    kept = ReferenceLogprobs(Two([[7, -1.5, -2.5]]))
    kept.add(3, -0.5, -0.25)
    kept.share()
    checkpoint_of(kept, tmp_path)
    found = np.load(tmp_path / "reference.npy")
    assert found.tolist() == [(3, -0.5, -0.25), (7, -1.5, -2.5)]


def test_measuring_other_parts_of_what_is_held_out_changes_no_value(rows: FakeRows) -> None:
    """A trial measures fewer pairs together; what is measured later is as if there had been none."""
    found = []
    for trial in (False, True):
        made = Made()
        moved(made.model)
        if trial:
            mean_loss(made.workers, [window_of(rows, tokens=10**6)])
        found.append(mean_loss(made.workers, [window_of(rows, tokens=80)]))
    assert found[0] == found[1] and not made.kept.known


def test_held_out_pairs_are_measured_with_their_metrics(rows: FakeRows) -> None:
    made = Made()
    moved(made.model)
    sums = summed(made.workers, window_of(rows))
    found = mean_loss(made.workers, [window_of(rows, tokens=80)])
    assert found is not None
    loss, num_pairs, *metrics = found
    assert num_pairs == 9
    assert [loss, *metrics] == pytest.approx([v / 9 for v in (sums.loss_sum, *sums.metric_sums)], rel=1e-4, abs=1e-5)


def reward_model() -> nn.Module:
    model = make_tiny_llama()
    mx.random.seed(3)
    inject(model, LORA)
    add_score_head(model)
    moved(model)
    return model


@pytest.mark.parametrize(
    ("kernels", "compiled", "count"),
    [(CpuKernels(), False, 1), (CpuKernels(), False, 2), (Kernels(), True, 1)],
)
def test_reward_gradients_equal_plain_autodiff(rows: FakeRows, kernels: Any, compiled: bool, count: int) -> None:
    config = RewardModelConfig(center_rewards_coefficient=0.05)
    model = reward_model()
    scores_of = partial(
        choose_gradients, loss=partial(bradley_terry_loss, config=config), kernels=kernels, compiled=compiled
    )
    workers = Workers(model, lambda each: RewardGradients(each, scores_of), count)
    if isinstance(kernels, CpuKernels):
        assert workers.how.startswith("block by block")
    model.train()
    sums = summed(workers, window_of(rows, scored=True, tokens=80))
    assert len(sums.metric_sums) == len(REWARDS)
    plain = reward_model()

    def loss(model: nn.Module) -> mx.array:
        found = [model.score(model.model(mx.array(tokens[None])))[0, -1, 0] for tokens in rows.tokens]
        chosen, rejected = mx.stack(found[::2]), mx.stack(found[1::2])
        return (-nn.log_sigmoid(chosen - rejected) + 0.05 * mx.square(chosen + rejected)).sum()

    expected, gradient = nn.value_and_grad(plain, loss)(plain)
    assert sums.loss_sum == pytest.approx(expected.item(), rel=1e-4)
    found = flat(sums)
    assert found.keys() == dict(tree_flatten(gradient)).keys() and "score.weight" in found
    for name, array in tree_flatten(gradient):
        np.testing.assert_allclose(found[name], np.array(array), atol=1e-4 * max(1, np.abs(np.array(array)).max()))


KEYS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")


def save(folder: Path, model: nn.Module, keys: tuple[str, ...] = KEYS, **facts: Any) -> Path:
    folder.mkdir()
    from mlxmath.runtime.files import atomic_json

    atomic_json(folder / CONFIG, adapter_config(LORA, keys, template="plain", base_fingerprint="f", **facts))
    save_weights(folder / WEIGHTS, model)
    return folder


def sample(completion: str, *, truncated: bool = False) -> Sample:
    return Sample("What is 1 + 2?", "3", completion, grade(completion, "3"), 5, 9, truncated)


def test_a_saved_reward_model_scores_and_shares_the_base(tmp_path: Path) -> None:
    trained = make_tiny_llama(vocab_size=1024)
    base = replica(trained)
    mx.random.seed(3)
    inject(trained, LORA)
    add_score_head(trained)
    moved(trained)
    folder = save(tmp_path / "reward", trained, reward_model=True)
    tokenizer = load_tokenizer(DEMO_MODEL)

    def scorer(model: nn.Module, folder: Path, count: int = 1, fingerprint: str = "f") -> RewardModel:
        return RewardModel(
            model, folder, fingerprint, tokenizer, TrainingConfig(), max_tokens=64, shape=Shape(8),
            kernels=CpuKernels(), num_workers=count,
        )  # fmt: skip

    texts = ["1 + 2 = 3", "", "It is 4. " * 5, "3"]
    samples = [sample(text) for text in texts] + [sample("It is", truncated=True)]
    state = mx.array(mx.random.state[0])
    mine = replica(base)
    score = scorer(mine, folder)
    assert mx.array_equal(mx.random.state[0], state), "loading it draws no random numbers of the run's"
    assert mine.model.embed_tokens.weight is base.model.embed_tokens.weight
    assert mine.model.layers[0].self_attn.q_proj.linear.weight is base.model.layers[0].self_attn.q_proj.weight

    trained.eval()
    expected = []
    for one in samples:
        ids = tokenizer.encode(f"{one.question}\n{one.completion}", add_special_tokens=False)
        ids += [] if one.truncated else [tokenizer.eos_token_id]
        expected.append(trained.score(trained.model(mx.array([ids])))[0, -1, 0].item())
    assert len(set(expected)) == len(expected)
    assert score(samples) == pytest.approx(expected, abs=1e-4)
    assert scorer(replica(base), folder, 2)(samples[:3]) == pytest.approx(expected[:3], abs=1e-4)

    with pytest.raises(MlxmathError, match="was trained on another base model"):
        scorer(replica(base), folder, fingerprint="g")
    with pytest.raises(MlxmathError, match=r"holds a reward model, which scores .* grpo --reward model:"):
        load_adapter(replica(base), folder, "f")
    plain = make_tiny_llama(vocab_size=1024)
    inject(plain, LORA)
    with pytest.raises(MlxmathError, match="holds a plain adapter, not a reward model"):
        read_reward_model(save(tmp_path / "plain", plain))
    with pytest.raises(MlxmathError, match="absent holds no reward model; train one"):
        read_reward_model(tmp_path / "absent")


def test_scores_need_hidden_states() -> None:
    batch = window_of(FakeRows([np.arange(1, 6)] * 18, [np.ones(5, np.uint8)] * 18), scored=True).batch(0)
    with pytest.raises(MlxmathError, match="hidden states of this model cannot be had"):
        scores(mx.zeros((2, 3)), with_score(reward_model(), batch), FullLogits())
    assert with_score(reward_model(), batch).extra.score_D is not None


def test_answers_are_scored_alone_where_rows_are_to_be_packed(tmp_path: Path) -> None:
    """A model with learned positions, whose rows cannot be packed."""
    from mlx_lm.models.gpt2 import Model, ModelArgs

    sizes = {"n_ctx": 128, "n_embd": 32, "n_head": 4, "n_layer": 1, "n_positions": 128, "vocab_size": 1024}
    trained = Model(ModelArgs(model_type="gpt2", layer_norm_epsilon=1e-5, **sizes))
    trained.model.wpe.weight = 20 * trained.model.wpe.weight
    base = replica(trained)
    inject(trained, LORA.model_copy(update={"targets": ("c_attn",)}))
    add_score_head(trained)
    moved(trained)
    folder = save(tmp_path / "reward", trained, ("attn.c_attn",), reward_model=True)
    samples = [sample(text) for text in ("1 + 2 = 3", "It is 4. " * 3, "3")]
    found = []
    for batching in ("bucket", "pack"):
        scorer = RewardModel(
            replica(base), folder, "f", load_tokenizer(DEMO_MODEL), TrainingConfig(batching=batching), max_tokens=256,
            shape=Shape(8), kernels=CpuKernels(),
        )  # fmt: skip
        found.append(scorer(samples))
    assert found[0] == found[1] and len(set(found[0])) == len(samples)
