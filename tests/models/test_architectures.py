"""Every model type of mlx_lm: training, adapters, answers and plan against mlx_lm's own model.

Each is tiny and random (`tests.models.architectures`), and is tried with the default targets and with adapters on all
linear layers, B away from zero. Tolerances are relative to the largest element of an array.

`pytest tests/models/test_architectures.py -n 2` tries all of them; `make test` leaves out what is marked `rarer`.
"""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.generate import generate_step
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model as mlx_lm_load_model

from mlxmath.config.schema import LoraConfig, ModelConfig, RunConfig, RuntimeConfig
from mlxmath.data.batch import Batch, Shape, make_batch, make_packed
from mlxmath.generation.engine import Sampling, generate_batch
from mlxmath.generation.model import load_generation_tokenizer
from mlxmath.models.kernels import kernels_for
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.layouts import SharedPrompts
from mlxmath.models.load import CANNOT_BE_TRAINED, load_model
from mlxmath.models.lora.inject import Injected, adapter_arrays, inject
from mlxmath.runtime.device import open_backend
from mlxmath.training.gradients import Gradients, choose_gradients
from mlxmath.training.plan import describe, planned
from mlxmath.training.sft import sft_loss
from tests.conftest import FakeRows
from tests.helpers import run
from tests.models import architectures
from tests.models.adapted import assert_agrees, assert_close, plain_gradients, save, token_by_token

ORDINARY = (
    "cohere2", "deepseek_v3", "falcon_h1", "gemma2", "gemma3", "gemma4", "glm4_moe", "gpt_neox", "gpt_oss",
    "granitemoehybrid", "lfm2_moe", "llama", "llama4", "mamba2", "mixtral", "phi3", "qwen3", "qwen3_5", "qwen3_5_moe",
    "qwen3_moe", "qwen3_next", "rwkv7",
)  # fmt: skip
"""Some twenty that differ in structure."""
PREFERRED = (
    "deepseek_v3", "falcon_h1", "gemma2", "gemma3", "glm4_moe", "gpt_oss", "llama", "mamba2", "phi3", "qwen3",
    "qwen3_5", "qwen3_moe",
)  # fmt: skip
"""That also make a step of dpo and of grpo."""
NOT_QUANTIZED = ("afm7", "prism_hadamard_qwen35")
"""By mlx_lm: the first has layers of its own without a quantized form, the second is quantized in a form of its own."""
TARGETS = {"default": {}, "all": {"targets": ("*",)}}
PROMPTS = ([5, 6, 7], [90, 17, 33, 41, 8, 64, 120, 77, 50, 23, 11, 19], [100], [12, 101, 44, 9, 30, 71, 88])
"""One longer than a window."""
PLAIN = ("llama", "phi3", "qwen3")
"""Whose rows can be packed, and can go on from shared prompts."""
ONE_LESS = ("plamo3",)
"""Beyond the window, mlx_lm's cache of these keeps a position less than its mask shows."""

pytestmark = pytest.mark.architectures


def types(but: tuple[str, ...] = ()) -> list[Any]:
    """All that can be trained, and their variants; the rarer ones marked."""
    names = [name for name in architectures.installed() if name not in (*CANNOT_BE_TRAINED, *but)]
    names += architectures.VARIANTS
    return [pytest.param(name, marks=() if name in ORDINARY else pytest.mark.rarer) for name in names]


def aliases() -> list[Any]:
    """Other names of what can be trained."""
    return [name for name, own in architectures.aliases().items() if own not in CANNOT_BE_TRAINED]


every_type = pytest.mark.parametrize("model_type", types())
with_targets = pytest.mark.parametrize("targets", TARGETS)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gives a type's folder, written when it is first asked for."""
    place = tmp_path_factory.mktemp("architectures")
    return functools.cache(lambda model_type, bits=None: architectures.write(model_type, place, bits=bits))


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """That of all the models."""
    folder = tmp_path_factory.mktemp("tokenizer")
    architectures.write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 3}))
    return load_generation_tokenizer(folder)


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    yield
    mx.clear_cache()


@pytest.fixture
def rows() -> FakeRows:
    """Three texts of different lengths, longer than a window; the first third of each is no target."""
    rng = np.random.default_rng(5)
    tokens = [rng.integers(architectures.FIRST_PIECE, architectures.VOCAB_SIZE, length) for length in (25, 17, 11)]
    return FakeRows(tokens, [(np.arange(len(t)) >= len(t) // 3).astype(np.uint8) for t in tokens])


def theirs(folder: Path) -> nn.Module:
    """mlx_lm's own, without anything of ours."""
    model, _ = mlx_lm_load_model(folder)
    if not hasattr(model, "_no_grad"):  # RecurrentGemma's class leaves out what every module has
        nn.Module.__init__(model)
    return model


def lora(targets: str) -> LoraConfig:
    return LoraConfig(rank=2, alpha=4, **TARGETS[targets])


def adapted(model: nn.Module, targets: str) -> Injected:
    """Adapters whose B is not zero."""
    mx.random.seed(1)
    injected = inject(model, lora(targets))
    arrays = [
        (name, array + 0.2 * mx.random.normal(array.shape)) if name.endswith("lora_b") else (name, array)
        for name, array in sorted(adapter_arrays(model).items())
    ]
    model.update(tree_unflatten(arrays))
    mx.eval(model.parameters())
    return injected


def ours(folder: Path, targets: str, *, trains: bool = True) -> tuple[nn.Module, Injected]:
    model = load_model(folder, "float32").model
    injected = adapted(model, targets)
    model.train(trains)
    return model, injected


def ways_of(model: nn.Module, *, portable: bool = False, checkpoint_every: int = 0) -> Gradients:
    kernels = Kernels() if portable else kernels_for(open_backend(RuntimeConfig(), seed=0)[1])
    return choose_gradients(model, sft_loss, kernels, compiled=False, checkpoint_every=checkpoint_every)


def bucket(rows: FakeRows) -> Batch:
    return make_batch(rows, (0, 1, 2), Shape(open_backend(RuntimeConfig(), seed=0)[0].bucket_multiple))


def wanted_of(folder: Path, targets: str, rows: FakeRows) -> tuple[mx.array, dict[str, mx.array]]:
    """That loss, and its gradients by plain autodiff."""
    reference = theirs(folder)
    adapted(reference, targets)
    reference.train()
    return plain_gradients(reference, rows)


def continued() -> tuple[Batch, FakeRows]:
    """Three texts that go on from two prompts, and the same texts whole. Only what goes on is a target."""
    rng = np.random.default_rng(8)
    prompts = [rng.integers(architectures.FIRST_PIECE, architectures.VOCAB_SIZE, length).tolist() for length in (11, 6)]
    groups, width = (0, 1, 0), 9
    ends = [rng.integers(architectures.FIRST_PIECE, architectures.VOCAB_SIZE, width + 1).tolist() for _ in groups]
    batch = Batch(
        mx.array([end[:-1] for end in ends]),
        mx.arange(3 * width),
        mx.array([token for end in ends for token in end[1:]]),
        mx.ones(3 * width),
        (0, 1, 2),
        num_tokens=3 * width,
        num_targets=3 * width,
        prompts=SharedPrompts(mx.array([prompts[0], [*prompts[1], *[0] * 5]]), mx.array([11, 6]), mx.array(groups)),
    )
    texts = [np.array([*prompts[group], *end]) for group, end in zip(groups, ends, strict=True)]
    masks = [
        (np.arange(len(text)) > len(prompts[group])).astype(np.uint8) for group, text in zip(groups, texts, strict=True)
    ]
    return batch, FakeRows(texts, masks)


def test_no_model_type_is_missing() -> None:
    assert sorted(architectures.OWN) == architectures.installed()
    assert set(ORDINARY) | set(PREFERRED) <= set(architectures.OWN)
    assert set(architectures.aliases().values()) <= set(architectures.OWN)


@every_type
@with_targets
def test_first_loss_and_gradients_are_those_of_full_logits(
    folders: Any, rows: FakeRows, model_type: str, targets: str
) -> None:
    wanted_loss, wanted = wanted_of(folders(model_type), targets, rows)
    batch = bucket(rows)
    for portable, checkpoint_every in ((False, 0), (True, 0), (False, 1)):
        model, _ = ours(folders(model_type), targets)
        ways = ways_of(model, portable=portable, checkpoint_every=checkpoint_every)
        assert_agrees(ways, batch, wanted_loss, wanted)


@pytest.mark.parametrize("model_type", types(but=NOT_QUANTIZED))
def test_gradients_and_adapter_of_a_quantized_model_are_right(
    folders: Any, tmp_path: Path, rows: FakeRows, model_type: str
) -> None:
    folder = folders(model_type, 4)
    model, injected = ours(folder, "all")
    assert_agrees(ways_of(model), bucket(rows), *wanted_of(folder, "all", rows))

    save(tmp_path, model, lora("all"), injected.keys)
    model.eval()
    served = load_adapters(theirs(folder), str(tmp_path))
    served.eval()
    tokens_BL = mx.array(rows.tokens[0][None])
    with token_by_token():
        served_BLV = served(tokens_BL)
    assert_close(model(tokens_BL), served_BLV, 1e-4, "logits")


@every_type
@pytest.mark.parametrize("own", [True, False], ids=["own", "portable"])
def test_packed_rows_and_shared_prompts_are_taken_only_where_gradients_are_right(
    folders: Any, rows: FakeRows, model_type: str, own: bool
) -> None:
    model, _ = ours(folders(model_type), "all")
    ways = ways_of(model, portable=not own)
    cannot_pack, cannot_share = ways.cannot_pack(), ways.cannot_share()
    if model_type in PLAIN:
        assert cannot_pack is None and cannot_share is None
    if cannot_pack is None:
        batch = make_packed(rows, (0, 1, 2), Shape(8))
        assert_agrees(ways, batch, *wanted_of(folders(model_type), "all", rows))
    if cannot_share is None:
        batch, whole = continued()
        assert_agrees(ways, batch, *wanted_of(folders(model_type), "all", whole))


@every_type
@with_targets
def test_mlx_lm_serves_the_saved_adapter(
    folders: Any, tmp_path: Path, rows: FakeRows, model_type: str, targets: str
) -> None:
    model, injected = ours(folders(model_type), targets, trains=False)
    experts = any(isinstance(module, SwitchLinear | QuantizedSwitchLinear) for module in model.modules())
    if targets == "all":
        assert experts == any(array.ndim == 3 for array in adapter_arrays(model).values())
    save(tmp_path, model, lora(targets), injected.keys)
    base = theirs(folders(model_type))
    tokens_BL = mx.array(rows.tokens[0][None])
    with token_by_token():
        base_BLV = base(tokens_BL)
        served = load_adapters(base, str(tmp_path))
        served.eval()
        served_BLV = served(tokens_BL)
    assert_close(model(tokens_BL), served_BLV, 1e-4, "logits")
    assert mx.abs(served_BLV - base_BLV).max() > 1e-2 * mx.abs(base_BLV).max()


@every_type
@with_targets
def test_greedy_answers_alone_in_a_batch_and_from_mlx_lm_are_the_same(
    folders: Any, tokenizer: Any, model_type: str, targets: str
) -> None:
    model, _ = ours(folders(model_type), targets, trains=False)
    sampling = Sampling(max_new_tokens=8)
    together = [completion.tokens for completion in generate_batch(model, tokenizer, PROMPTS, sampling)]
    for prompt, tokens in zip(PROMPTS, together, strict=True):
        (alone,) = generate_batch(model, tokenizer, [prompt], sampling)
        assert alone.tokens == tokens
        expected = []
        for token, _ in generate_step(mx.array(prompt), model, max_tokens=sampling.max_new_tokens):
            if token in tokenizer.eos_token_ids:
                break
            expected.append(token)
        assert alone.tokens == tuple(expected)


def drawing_error(model: nn.Module, prompt: tuple[int, ...], count: int) -> float:
    """How far log-probabilities with a cache are from those of one pass, relative to the largest."""
    drawn, logprobs = zip(*generate_step(mx.array(prompt), model, max_tokens=count), strict=True)
    whole_LV = model(mx.array([[*prompt, *drawn]]))[0, len(prompt) - 1 : -1]
    whole_LV = whole_LV - mx.logsumexp(whole_LV, axis=-1, keepdims=True)
    return float(mx.abs(mx.stack(logprobs) - whole_LV).max() / mx.abs(whole_LV).max())


@every_type
def test_what_is_drawn_with_a_cache_is_what_training_sees(folders: Any, model_type: str) -> None:
    model = theirs(folders(model_type))
    prompt, count = (PROMPTS[0], architectures.WINDOW - 4) if model_type in ONE_LESS else (PROMPTS[1], 8)
    assert drawing_error(model, prompt, count) < 1e-3


@pytest.mark.parametrize("alias", aliases())
def test_another_name_of_a_type_trains(folders: Any, rows: FakeRows, alias: str) -> None:
    model, _ = ours(folders(alias), "default")
    assert_agrees(ways_of(model), bucket(rows), *wanted_of(folders(alias), "default", rows))


@pytest.mark.parametrize("model_type", [*types(), *aliases()])
def test_plan_gives_figures(folders: Any, model_type: str) -> None:
    folder = folders(model_type)
    config = RunConfig(model=ModelConfig(model=str(folder), mlx_path=str(folder)))
    _, device = open_backend(RuntimeConfig(), seed=0)
    model_config = json.loads((folder / "config.json").read_text())
    lines, fits = describe(config, model_config, device)
    assert fits and len(lines) > 3
    plan, _ = planned(config, model_config, device, 64)
    model = theirs(folder)
    held = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    assert plan.weights == pytest.approx(held, rel=0.02)


@pytest.mark.parametrize("model_type", PREFERRED)
@pytest.mark.parametrize("method", ["dpo", "grpo"])
def test_a_step_of_dpo_and_of_grpo(folders: Any, tmp_path: Path, model_type: str, method: str) -> None:
    folder = folders(model_type)
    settings = (
        "--model", folder, "--mlx-path", "converted", "--dtype", "float32", "--template", "plain", "--max-steps", "1",
        "--max-seq-len", "48", "--batch-size", "4", "--grad-accumulation-steps", "1", "--dataset", "data.jsonl",
        "--learning-rate", "1e-3",
    )  # fmt: skip
    numbers = range(10, 18)
    data: list[dict[str, str]]
    if method == "dpo":
        more = ()
        data = [{"prompt": f"{n} + 9", "chosen": f"so {n + 9}", "rejected": f"or {n} 9"} for n in numbers]
    else:
        (tmp_path / "mine.py").write_text(
            "def ids(samples):\n    return [sum(map(len, s.completion)) % 7 for s in samples]\n"
        )
        more = ("--reward", "mine:ids", "--num-generations", "4", "--max-completion-length", "8")
        data = [{"question": f"{n} + 9", "answer": f"so #### {n + 9}"} for n in numbers]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    finished = run(tmp_path, method, *settings, *more)
    assert finished.returncode == 0, finished.stderr
    steps = [json.loads(line) for line in (tmp_path / "adapters" / "events.jsonl").read_text().splitlines()]
    (step,) = [event for event in steps if event["event"] == "step"]
    assert np.isfinite(step["loss"])
    arrays = mx.load(str(tmp_path / "adapters" / "adapters.safetensors"))
    assert any(array.any().item() for name, array in arrays.items() if name.endswith("lora_b"))


def test_few_types_cannot_be_trained() -> None:
    assert len(CANNOT_BE_TRAINED) <= 12
    assert set(CANNOT_BE_TRAINED) < set(architectures.installed())


@pytest.mark.parametrize("model_type", [*CANNOT_BE_TRAINED, "deepseek_v41_text"])
def test_one_that_cannot_be_trained_gets_its_reason_in_a_line(folders: Any, tmp_path: Path, model_type: str) -> None:
    folder, reason = folders(model_type), CANNOT_BE_TRAINED[architectures.aliases().get(model_type, model_type)]
    (tmp_path / "data.jsonl").write_text(json.dumps({"question": "7 + 9", "answer": "#### 16"}) + "\n")
    for command in ("train", "plan"):
        more = ("--dataset", "data.jsonl") if command == "train" else ()
        finished = run(tmp_path, command, "--model", folder, "--mlx-path", folder, *more)
        assert finished.returncode == 2
        errors = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and model_type in errors[0] and reason in errors[0]


@pytest.mark.parametrize("model_type", CANNOT_BE_TRAINED)
def test_the_reason_still_holds(folders: Any, rows: FakeRows, model_type: str) -> None:
    """Where mlx_lm has mended it, the row can go."""
    model = theirs(folders(model_type))
    try:
        mx.eval(plain_gradients(model, rows))
        error = drawing_error(model, PROMPTS[1], 8)
    except (RuntimeError, ValueError) as failure:
        assert any(part in str(failure) for part in ("Metal", "with respect to indices", "inplace addition"))
    else:
        assert not error < 1e-2
