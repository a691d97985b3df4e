"""The memory plan against the model itself and hand-counted sizes."""

from typing import Any

import pytest
from mlx.utils import tree_flatten

from mlxmath.backends.base import DeviceInfo
from mlxmath.config.load import resolve
from mlxmath.errors import MlxmathError
from mlxmath.lora.inject import adapter_arrays, inject
from mlxmath.models.memory import Batching, ModelShape, choose_batching, plan_memory, trained_parameters
from tests.conftest import make_tiny_llama

TINY: dict[str, Any] = {
    "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64,
}  # fmt: skip
DEEPSEEK = {
    "num_hidden_layers": 30, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
    "vocab_size": 102400,
}  # fmt: skip


def test_parameters_are_the_models() -> None:
    expected = sum(array.size for _, array in tree_flatten(make_tiny_llama().parameters()))
    assert ModelShape.from_config(TINY).parameters == expected
    assert ModelShape.from_config(DEEPSEEK).parameters == 6_910_365_696  # deepseek-math-7b


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("*",), ("self_attn.k_proj", "down_proj")])
@pytest.mark.parametrize("num_layers", [-1, 1])
def test_trained_parameters_are_the_adapters(targets: tuple[str, ...], num_layers: int) -> None:
    lora = resolve([("t", {"lora.rank": 4, "lora.targets": targets, "lora.num_layers": num_layers})]).config.lora
    model = make_tiny_llama()
    inject(model, lora)
    expected = sum(array.size for array in adapter_arrays(model).values())
    assert trained_parameters(ModelShape.from_config(TINY), lora, full=False) == expected


def test_quantization_checkpointing_and_smaller_batches_take_less() -> None:
    shape = ModelShape.from_config(DEEPSEEK)

    def total(tokens: int = 1024, **values: object) -> int:
        config = resolve([("t", {k.replace("__", "."): v for k, v in values.items()})]).config
        return plan_memory(shape, config, itemsize=2, batching=Batching(1, tokens), longest=1024).total

    plain = total()
    assert 2 * shape.parameters < plain < 2 * shape.parameters + 8e9
    assert total(model__quantize=4) < 0.45 * plain
    assert total(training__grad_checkpoint=1) < plain - 1e9
    assert total(tokens=4096) > plain + 5e9
    assert total(training__optimizer="adamw8bit") < plain


def test_auto_takes_less_where_memory_is_short() -> None:
    config = resolve([]).config

    def tokens(memory: float) -> int:
        device = DeviceInfo("metal", "M", int(memory), "bfloat16", "")
        return choose_batching(DEEPSEEK, config, device, longest=512).tokens

    assert tokens(200e9) == 4096
    assert 256 <= tokens(24e9) < 4096
    assert tokens(15e9) == 256


def test_a_config_without_sizes_is_named() -> None:
    with pytest.raises(MlxmathError, match="hidden_size"):
        ModelShape.from_config({"num_attention_heads": 4})


def test_workers_are_as_many_as_have_something_to_do_and_fit() -> None:
    def chosen(workers: int, memory: float = 500e9, **settings: object) -> Batching:
        config = resolve([("t", {k.replace("__", "."): v for k, v in settings.items()})]).config
        device = DeviceInfo("cpu", "C", int(memory), "float32", "", num_workers=workers)
        return choose_batching(DEEPSEEK, config, device, longest=256)

    assert chosen(1) == Batching(1, 512)
    assert chosen(8) == Batching(8, 256)
    assert chosen(8, training__grad_accumulation_steps=5) == Batching(5, 256)
    assert chosen(8, training__grad_accumulation_steps=4) == Batching(1, 512)  # half of the cores would be idle
    assert (
        chosen(8, training__batching="pad", training__batch_size=8, training__grad_accumulation_steps=1).num_workers
        == 1
    )
    assert chosen(8, runtime__workers=2) == Batching(2, 256)
    assert chosen(8, training__max_batch_tokens=1000) == Batching(8, 1000)
    assert chosen(8, memory=36e9) == Batching(1, 512)
