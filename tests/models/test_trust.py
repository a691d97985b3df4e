"""A fast way is taken only where its gradients are those of autodiff; that its outputs are right proves nothing."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import llama

from mlxmath.data.batch import Batch, Shape, make_batch, make_packed
from mlxmath.models import segments, trust
from mlxmath.models.blocks import kinds_of
from mlxmath.models.blockwise import Blockwise
from mlxmath.models.kernels.cpu import CpuKernels
from mlxmath.models.kernels.portable import Kernels
from mlxmath.training.gradients import AutodiffGradients, Gradients, choose_gradients
from mlxmath.training.sft import sft_loss
from tests.conftest import FakeRows, make_tiny_llama
from tests.models import architectures
from tests.models.adapted import LENGTHS, adapted, assert_agrees, plain_gradients, random_adapters, rows


@pytest.fixture(autouse=True)
def nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_known", {})


def chosen(model: nn.Module, **changes: Any) -> Gradients:
    return choose_gradients(model, sft_loss, **({"kernels": CpuKernels(), "compiled": False} | changes))


def assert_right(
    model: nn.Module, gradients: Gradients, data: FakeRows, make: Callable[..., Batch] = make_batch
) -> None:
    assert_agrees(gradients, make(data, (0, 1, 2), Shape(4)), *plain_gradients(model, data))


class Branched(llama.MLP):
    """What reaches its input past SwiGLU is lost by a way that knows SwiGLU alone; the outputs are the same."""

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(x) * mx.sigmoid(x.sum(axis=-1, keepdims=True))


def test_a_lost_branch_is_noticed_and_its_block_computed_in_another_way() -> None:
    model = random_adapters(make_tiny_llama(num_hidden_layers=3))
    model.layers[1].mlp.__class__ = Branched
    gradients = chosen(model)
    assert gradients.how.startswith("block by block")
    assert gradients._blocks._whole_mlps == [False, True, False]
    assert_right(model, gradients, rows(64))


@pytest.mark.parametrize("targets", [("q_proj",), ("*",)])
def test_a_way_with_right_outputs_and_wrong_gradients_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, targets: tuple[str, ...]
) -> None:
    """Only what the MLP adds to the gradient of the block's input is wrong; only the block before it shows it."""
    model = random_adapters(make_tiny_llama(), targets=targets)
    down, whole = segments.down, segments.whole_mlp
    monkeypatch.setattr(segments, "down", lambda block, h, s: down(block, h, mx.stop_gradient(s)))
    monkeypatch.setattr(segments, "whole_mlp", lambda block, h: whole(block, mx.stop_gradient(h)))
    gradients = chosen(model)
    assert isinstance(gradients, AutodiffGradients)
    assert "gradients" in gradients.how and "% off" in gradients.how
    assert_right(model, gradients, rows(64))


def test_a_missing_gradient_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_adapters(make_tiny_llama(), targets=("q_proj", "down_proj"))
    of = segments.Trained.of
    monkeypatch.setattr(segments.Trained, "of", lambda block: segments.Trained(of(block).attention, []))
    assert "not all have a gradient" in chosen(model).how


@pytest.mark.parametrize(
    ("model_type", "targets"),
    [
        ("qwen2_moe", ("q_proj", "v_proj")),
        ("qwen2_moe", ("*",)),  # shared expert, its gate, router and experts
        ("qwen3_moe", ("*",)),
        ("glm4_moe", ("*",)),  # a dense block first
        ("deepseek_v2", ("*",)),  # values less wide than keys
        ("olmoe", ("switch_mlp.*",)),
    ],
)
@pytest.mark.parametrize("checkpoint_every", [0, 2])
def test_mixtures_block_by_block(model_type: str, targets: tuple[str, ...], checkpoint_every: int) -> None:
    model = random_adapters(architectures.make(model_type)[0], targets=targets)
    gradients = chosen(model, checkpoint_every=checkpoint_every)
    assert gradients.how.startswith("block by block")
    data = rows(architectures.VOCAB_SIZE)
    assert_right(model, gradients, data)
    assert gradients.cannot_pack() is None
    assert_right(model, gradients, data, make_packed)


@pytest.mark.parametrize("model_type", ["exaone_moe", "step3p5", "baichuan_m1"])
def test_windows_are_seen_however_long_they_are(model_type: str) -> None:
    assert architectures.config_of(model_type)["sliding_window"] < max(LENGTHS)
    model = random_adapters(architectures.make(model_type)[0])
    assert_right(model, chosen(model), rows(architectures.VOCAB_SIZE))


def test_a_window_longer_than_anything_tried_is_seen() -> None:
    long = make_tiny_llama(layer_types=["full_attention", "sliding_attention"], sliding_window=300_000)
    assert "windowed" in (Blockwise.unsupported(random_adapters(long)) or "")


@pytest.mark.parametrize(
    "model_type",
    ["phi", "stablelm", "rwkv7", "gemma3n", "afm7", "talkie", "gemma4", "granite", "minicpm", "nanbeige", "kimi_k3"],
)
def test_what_is_put_together_in_its_own_way_trains_by_its_own_call(model_type: str) -> None:
    model = random_adapters(architectures.make(model_type)[0])
    gradients = chosen(model)
    if model_type != "stablelm":
        assert ", since " in gradients.how
    assert_right(model, gradients, rows(architectures.VOCAB_SIZE))


def test_a_model_is_left_as_it_was() -> None:
    model = adapted(targets=("*",), dropout=0.4)
    model.update(tree_map(mx.zeros_like, model.trainable_parameters()))
    before = {name: np.array(array) for name, array in tree_flatten(model.parameters())}
    state, kinds = np.array(mx.random.state[0]), [type(module) for module in model.modules()]
    gradients = chosen(model)
    assert gradients.cannot_pack() is None and gradients.cannot_share() is None
    assert np.array_equal(np.array(mx.random.state[0]), state)
    assert [type(module) for module in model.modules()] == kinds and all(m.training for m in model.modules())
    for name, array in tree_flatten(model.parameters()):
        np.testing.assert_array_equal(np.array(array), before[name])


def test_one_block_of_each_kind_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    autodiff = trust.autodiff
    monkeypatch.setattr(
        "mlxmath.models.blockwise.autodiff", lambda *arguments: tried.append(arguments[1]) or autodiff(*arguments)
    )
    model = random_adapters(make_tiny_llama(num_hidden_layers=6), num_layers=4)
    assert len(dict.fromkeys(kinds_of(model.layers))) == 2
    chosen(model)
    assert tried == [[0], [2]]
    chosen(random_adapters(make_tiny_llama(num_hidden_layers=6), num_layers=4))
    assert len(tried) == 2


def test_a_counter_is_no_kind_and_a_setting_is() -> None:
    blocks = make_tiny_llama(num_hidden_layers=4).layers
    for number, block in enumerate(blocks):
        block.layer_idx = number
    assert len(set(kinds_of(blocks))) == 1
    for number, block in enumerate(blocks):
        block.self_attn.window = 128 if number % 2 else 4096
    assert len(set(kinds_of(blocks))) == 2


PACKS = ("qwen3", "gemma3", "gemma4", "gpt_oss", "glm4_moe", "deepseek_v3", "granite")
DOES_NOT_PACK = (
    "qwen3_5", "qwen3_next", "lfm2", "mamba2", "falcon_h1", "granitemoehybrid", "llama4", "gemma3n",
    "mistral3",  # scales queries by their position
    "gpt2",  # learned positions
    "hunyuan_v1_dense",  # norms after the rotation, which then is not relative
)  # fmt: skip


@pytest.mark.parametrize("kernels", [CpuKernels, Kernels])
@pytest.mark.parametrize("model_type", [*PACKS, *DOES_NOT_PACK])
def test_rows_are_packed_where_each_text_stays_what_it_is_alone(model_type: str, kernels: Any) -> None:
    model = random_adapters(architectures.make(model_type)[0])
    gradients = chosen(model, kernels=kernels())
    reason = gradients.cannot_pack()
    assert (reason is None) == (model_type in PACKS), reason
    if reason is None:
        assert_right(model, gradients, rows(architectures.VOCAB_SIZE), make_packed)


def test_sharing_a_prompt_is_tried_by_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlxmath.models.layouts import ContinuedRows

    model = random_adapters(make_tiny_llama())
    assert chosen(model).cannot_share() is None
    backward = ContinuedRows.attention_backward

    def forgetting(self: ContinuedRows, *arguments: Any) -> Any:
        found = backward(self, *arguments)
        computed = self._computed.gradients
        computed.update({block: tuple(map(mx.zeros_like, pair)) for block, pair in computed.items()})
        return found

    monkeypatch.setattr(ContinuedRows, "attention_backward", forgetting)
    trust._known.clear()
    assert "gradients" in (chosen(model).cannot_share() or "")


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize(
    ("model_type", "bits"), [("llama", None), ("gemma3", None), ("qwen3_moe", None), ("gpt_oss", None), ("llama", 4)]
)
def test_in_16_bits_what_is_no_more_than_rounding_is_no_reason(
    model_type: str, bits: int | None, dtype: mx.Dtype
) -> None:
    model, _ = architectures.make(model_type)
    model.set_dtype(dtype)
    if bits:
        nn.quantize(model, group_size=32, bits=bits)
    model = random_adapters(model)
    before = dict(tree_flatten(model.parameters()))
    gradients = chosen(model, kernels=Kernels())
    assert gradients.cannot_pack() is None and gradients.cannot_share() is None
    assert all(array is before[name] for name, array in tree_flatten(model.parameters()))


def test_quantized_blocks_are_tried_too() -> None:
    model, _ = architectures.make("qwen3_moe")
    nn.quantize(model, group_size=32, bits=4)
    model = random_adapters(model, targets=("q_proj", "v_proj", "switch_mlp.*"))
    gradients = chosen(model)
    assert gradients.how.startswith("block by block") and gradients.cannot_pack() is None
    assert_right(model, gradients, rows(architectures.VOCAB_SIZE))
